"""core/submission.py: every log that can come about, and the one thing that may be done with it."""

import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from claude_batch_dagster.core.submission import (
    Accepted,
    Closed,
    CloseReason,
    DoAsk,
    DoAwait,
    DoClose,
    DoSend,
    How,
    Mode,
    NotAccepted,
    Record,
    Send,
    Settled,
    Unknown,
    decode_record,
    earliest_creation,
    encode_record,
    is_candidate,
    is_proof,
    next_step,
    seconds_to_send,
    seconds_to_settle,
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


LOST = NotAccepted(why="not listed", how=How.RECONCILED)
LATE = NotAccepted(why="too slow", how=How.LATE)
TOLD = NotAccepted(why="a person", how=How.PERSON)


@pytest.mark.parametrize(
    ("log", "asks"),
    [
        ([SEND, LOST] * 2, False),
        ([SEND, LOST] * 3, True),
        ([SEND, LOST] * 4, True),
        ([SEND, LOST, SEND, NOT, SEND, LOST], False),
        ([SEND, LOST, SEND, LATE, SEND, LOST, SEND, LOST], False),
        ([*[SEND, LOST] * 3, TOLD], False),
        ([*[SEND, LOST] * 3, TOLD, *[SEND, LOST] * 2], False),
    ],
)
def test_the_third_loss_in_a_row_is_asked_until_a_person_answers(log: list[Record], asks: bool) -> None:
    """A drain, which buys nothing, need not ask."""
    slot = len(log)
    assert next_step(log, Mode.RUN) == (DoAsk(slot=slot) if asks else DoSend(slot=slot))
    assert next_step(log, Mode.DRAIN) == DoClose(slot=slot)


def test_a_sender_that_was_too_slow_gets_twice_the_time() -> None:
    """Once more for each time; other ends change nothing."""
    assert [seconds_to_send([SEND, LATE] * times, 15, 5) for times in range(3)] == [20, 40, 80]
    assert seconds_to_send([SEND, LOST, SEND, NOT], 15, 5) == 20


def test_large_bodies_settle_later() -> None:
    """Half a second a megabyte."""
    assert seconds_to_settle(60, 256_000_000) == 188


SENT = datetime(2026, 11, 23, 3, 11, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("requests", "created_at", "claimed", "candidate"),
    [
        (3, SENT, set(), True),
        (3, SENT - timedelta(minutes=10), set(), True),
        (3, SENT - timedelta(minutes=10, seconds=1), set(), False),
        (3, SENT + timedelta(days=2), set(), True),
        (2, SENT, set(), False),
        (3, SENT, {"msgbatch_01"}, False),
    ],
)
def test_which_listed_batch_could_be_it(requests: int, created_at: datetime, claimed: set[str], candidate: bool) -> None:
    """Its size, not older than the send by the vendor's own clock, and nobody else's."""
    assert is_candidate(SEND, batch_id="msgbatch_01", requests=requests, created_at=created_at, claimed=claimed) is candidate


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_without_a_vendor_date_every_batch_of_the_size_could_be_it(date: str) -> None:
    """A proxy may strip the header."""
    send = Send(count=3, sha256="ab" * 32, send_s=15.0, vendor_date=date, sender="me", sent_at="2026-11-23T03:11:15+00:00")
    assert earliest_creation(send).year == 1970


def test_one_custom_id_of_ours_proves_a_batch() -> None:
    """Its tag names the run, the round and the shard; a result that the vendor lost disproves nothing."""
    assert is_proof(["theirs", "a"], {"a", "b"})
    assert not is_proof(["theirs"], {"a", "b"})
    assert not is_proof([], {"a", "b"})
