"""core/submission.py: every log that can come about, and the one thing that may be done with it."""

import itertools

import msgspec
import pytest

from claude_batch_dagster.core.submission import (
    Accepted,
    Closed,
    CloseReason,
    DoAwait,
    DoClose,
    DoSend,
    Mode,
    NotAccepted,
    Record,
    Send,
    Settled,
    Unknown,
    decode_record,
    encode_record,
    next_step,
)

SEND = Send(
    count=3, sha256="ab" * 32, send_s=15.0, vendor_date="Mon, 23 Nov 2026 03:11:15 GMT", sender="me", sent_at="2026-11-23T03:11:15+00:00"
)
BATCH = Accepted(id="msgbatch_01", created_at="2026-11-23T03:11:16+00:00")
NOT = NotAccepted(why="429")
CLOSED = Closed(reason=CloseReason.COLLECTED)
RECORDS: tuple[Record, ...] = (SEND, BATCH, NOT, CLOSED)
LOGS = [log for length in range(5) for log in itertools.product(RECORDS, repeat=length)]


@pytest.mark.parametrize("mode", Mode)
def test_the_tip_alone_decides(mode: Mode) -> None:
    """Of every log up to four records: what may be done, and at which slot."""
    for log in LOGS:
        step = next_step(log, mode)
        tip = log[-1] if log else None
        if tip is None or isinstance(tip, NotAccepted):
            assert step == (DoSend(slot=len(log)) if mode is Mode.RUN else DoClose(slot=len(log)))
        elif isinstance(tip, Send):
            assert step == Unknown(send=tip, slot=len(log))
        elif isinstance(tip, Accepted):
            assert step == DoAwait(batch_id=tip.id, slot=len(log))
        else:
            assert step == Settled(reason=tip.reason)


def test_nothing_is_sent_while_a_batch_may_exist() -> None:
    """DoSend comes only where no send is without its end, and never in a drain."""
    for log in LOGS:
        if isinstance(next_step(log, Mode.RUN), DoSend):
            assert not log or log[-1] == NOT
        assert not isinstance(next_step(log, Mode.DRAIN), DoSend)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_reads_back_as_it_was(record: Record) -> None:
    """Its file says its kind and format."""
    content = encode_record(record)
    assert decode_record(content) == record
    assert msgspec.json.decode(content)["format"] == 1


def test_a_foreign_record_is_refused() -> None:
    """A kind of a later version is not taken for one of ours."""
    with pytest.raises(msgspec.ValidationError):
        decode_record(b'{"format":1,"kind":"teleport"}')
