"""What a person is told whose answer does not fit: the shard, the run, that nothing was changed, and what to do. On both sides."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from claude_batch_dagster.core.errand_contract import AdoptInput
from claude_batch_dagster.core.errors import RunError, UsageError
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason, NotAccepted, Send
from claude_batch_dagster.storage.plans import append_submission, write_done
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.answer import Choice, _find_shard, _put_answer, answer_run
from claude_batch_dagster.verbs.connection import Connection
from temporal_worker.settle import Settler
from temporal_worker.vendor import Batch, VendorReply
from tests.stack import stage_plan, texts

NOW = datetime(2026, 11, 23, tzinfo=UTC)
NOWHERE = Connection(address="127.0.0.1:9", task_queue="none")
SEND = Send(count=1, sha256="0" * 64, send_s=15.0, vendor_date="", sender="somebody", sent_at=NOW.isoformat())
ENDED = Batch(
    id="msgbatch_1", processing_status="ended", requests=1, created_at=NOW, ended_at=NOW, archived=False, age_s=1.0, retry_after_s=None
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture
def entry(store: Store) -> LogEntry:
    return stage_plan(store, texts(3), max_requests=1)


def send(store: Store, entry: LogEntry, *shards: int) -> None:
    for shard in shards:
        assert append_submission(store, entry.run_id, 1, shard, 0, SEND)


def test_a_run_that_has_ended_takes_no_answer(store: Store, entry: LogEntry) -> None:
    write_done(
        store,
        1,
        DoneRecord(run_id=entry.run_id, finished_at=NOW.isoformat(), outcome="finished", rows={}, batches=0, usage=(), cost_nano_usd=0),
    )
    with pytest.raises(UsageError, match=r"r1 has ended \(finished\): it waits for no answer\. Nothing was changed\."):
        answer_run(NOWHERE, store, entry, Choice.RESUME)


@pytest.mark.parametrize(
    ("sent", "shard", "told"),
    [
        ((), None, "Not exactly one shard of batch run r1 waits for an answer. No shard of it does."),
        ((0, 2), None, "Not exactly one shard of batch run r1 waits for an answer. Its shards 0, 2 do: name one."),
        ((0,), 1, "Shard 1 of batch run r1 waits for an answer. Its shards 0 do: name one."),
    ],
)
def test_a_shard_that_waits_for_nothing_is_not_answered(
    store: Store, entry: LogEntry, sent: tuple[int, ...], shard: int | None, told: str
) -> None:
    send(store, entry, *sent)
    with pytest.raises(UsageError) as raised:
        _find_shard(store, entry, 1, shard)
    assert str(raised.value) == f"{told} Nothing was changed. See claude-batch status r1."


def test_the_only_shard_that_waits_need_not_be_named(store: Store, entry: LogEntry) -> None:
    send(store, entry, 2)
    assert _find_shard(store, entry, 1, None) == (2, 1)


@pytest.mark.parametrize("choice", [Choice.RESEND, Choice.ABANDON])
def test_the_machine_was_faster(store: Store, entry: LogEntry, choice: Choice) -> None:
    send(store, entry, 0)
    append_submission(store, entry.run_id, 1, 0, 1, NotAccepted(why="the list has none"))
    with pytest.raises(RunError, match=r"Shard 0 of batch run r1 was settled meanwhile\. Nothing was changed\."):
        _put_answer(store, entry, 1, 0, 1, choice)


def test_an_answer_is_a_record_at_the_tip(store: Store, entry: LogEntry) -> None:
    send(store, entry, 0, 1)
    assert _put_answer(store, entry, 1, 0, 1, Choice.RESEND) == "Shard 0 of batch run r1 is sent again."
    told = _put_answer(store, entry, 1, 1, 1, Choice.ABANDON)
    assert "its rows stay without an answer" in told
    assert "that exists after all is paid for" in told


def settler(batch: Batch, *lines: bytes) -> Settler:
    @contextmanager
    def stream(_: str) -> Iterator[Iterator[bytes]]:
        yield iter([b"\n".join(lines)])

    reply = VendorReply(date="", workspace_id=None)
    calls = {"find_endpoint": lambda: "simulator", "check_key_and_list": lambda: reply, "get": lambda _: batch, "stream_results": stream}
    return Settler(open_store=Store, batches=cast(Any, SimpleNamespace(**calls)), clock=lambda: NOW)


def adopt(store: Store, entry: LogEntry, found: Settler) -> str:
    return found.adopt(AdoptInput(root=store.uri, number=1, run_id=entry.run_id, round=1, shard=0, batch_id="msgbatch_1"))


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (replace(ENDED, processing_status="in_progress"), "is in_progress: only its results prove whose it is. Nothing was changed."),
        (replace(ENDED, archived=True), "are gone, so nothing proves whose it is. Nothing was changed."),
        (ENDED, "does not hold the requests of shard 0 of batch run r1. Nothing was changed."),
    ],
)
def test_a_batch_that_nothing_proves_is_not_adopted(store: Store, entry: LogEntry, batch: Batch, told: str) -> None:
    send(store, entry, 0)
    line = b'{"custom_id":"theirs","result":{"type":"expired"}}'
    with pytest.raises(RunError) as raised:
        adopt(store, entry, settler(batch, line))
    assert told in str(raised.value)


def test_a_settled_shard_adopts_nothing(store: Store, entry: LogEntry) -> None:
    append_submission(store, entry.run_id, 1, 0, 0, Closed(reason=CloseReason.DRAINED))
    with pytest.raises(RunError, match=r"Shard 0 of batch run r1 waits for no answer\. Nothing was changed\. See claude-batch status r1\."):
        adopt(store, entry, settler(ENDED))


def test_a_batch_of_another_shard_is_not_adopted(store: Store, entry: LogEntry) -> None:
    send(store, entry, 0, 1)
    append_submission(store, entry.run_id, 1, 1, 1, Accepted(id="msgbatch_1", created_at=NOW.isoformat()))
    with pytest.raises(RunError, match=r"msgbatch_1 belongs to another submission of this root\. Nothing was changed\."):
        adopt(store, entry, settler(ENDED))
