"""The worker's errors that records, keys and settings can cause, each provoked once; a person who reads one knows what to do."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from claude_batch_dagster.core.contract import BatchInput, FinishInput, OpenInput, ShardInput
from claude_batch_dagster.core.errors import (
    CredentialsError,
    RefusedError,
    RootError,
    RunError,
    TemporalUnavailableError,
    TransientError,
    UsageError,
    VendorUnavailableError,
)
from claude_batch_dagster.core.records import LogEntry, PreflightRef, RoundRecord
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason, Mode, Send
from claude_batch_dagster.storage.plans import append_submission, pin_workspace, read_root, write_round
from claude_batch_dagster.storage.store import Store
from temporal_worker import collect, submit, worker
from temporal_worker.activities import BatchActivities
from temporal_worker.collect import Collector
from temporal_worker.preflight import Preflights
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, open_root
from temporal_worker.runs import Runs
from temporal_worker.submit import Submitter
from temporal_worker.vendor import Batch, Created, VendorReply
from tests.stack import stage_plan, texts

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SEND = Send(count=2, sha256="0" * 64, send_s=15.0, vendor_date="", sender="somebody", sent_at=NOW.isoformat())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


@pytest.fixture
def entry(store: Store) -> LogEntry:
    return stage_plan(store, texts(2))


def opened(store: Store, entry: LogEntry) -> OpenRoot:
    record = read_root(store)
    assert record is not None
    return OpenRoot(store=store, record=record, entry=entry)


def shard_input(store: Store, entry: LogEntry) -> ShardInput:
    return ShardInput(root=store.uri, number=entry.number, run_id=entry.run_id, round=1, shard=0, mode=Mode.RUN)


def batch_input(store: Store, entry: LogEntry, batch_id: str = "msgbatch_1") -> BatchInput:
    return BatchInput(root=store.uri, number=entry.number, run_id=entry.run_id, round=1, shard=0, batch_id=batch_id)


def ended(batch_id: str = "msgbatch_1") -> Batch:
    return Batch(
        id=batch_id,
        processing_status="ended",
        requests=2,
        created_at=NOW,
        ended_at=NOW,
        archived=True,
        age_s=1.0,
        retry_after_s=None,
    )


def vendor(**calls: Callable[..., Any]) -> Any:
    """Return a vendor of which only these calls are asked."""
    reply = VendorReply(date="Mon, 23 Nov 2026 00:00:00 GMT", workspace_id=None)
    return cast(Any, SimpleNamespace(**{"find_endpoint": lambda: "simulator", "check_key_and_list": lambda: reply, **calls}))


def price(*_: object, **__: object) -> int:
    return 1


def runs(store: Store) -> Runs:
    preflights = Preflights(batches=vendor(), price_usage=price, clock=lambda: NOW)
    return Runs(open_store=Store, batches=vendor(), price_usage=price, preflights=preflights, clock=lambda: NOW)


def collector() -> Collector:
    return Collector(open_store=Store, batches=vendor(), price_usage=price)


def quiet(_: str) -> None:
    return None


def test_a_root_without_its_record_is_not_worked_on(store: Store, entry: LogEntry) -> None:
    store.delete("root.json")
    with pytest.raises(
        RootError, match=r"root\.json is missing: the root lost its records\. Nothing is sent\. Restore the folder, or: claude-batch rec"
    ):
        open_root(store, number=entry.number, run_id=entry.run_id)


def test_a_root_that_was_replaced_is_not_worked_on(store: Store, entry: LogEntry) -> None:
    with pytest.raises(RootError, match=r"log/1\.json is of run .*, not of another: the root was replaced\. Nothing is sent\. Restore"):
        open_root(store, number=entry.number, run_id="another")


def test_a_worker_of_another_endpoint_leaves_the_root_to_others(store: Store, entry: LogEntry) -> None:
    with pytest.raises(
        TransientError, match=r"holds answers of 'simulator', this worker talks to 'anthropic'\. Nothing was sent\. Set ANTHR"
    ):
        check_endpoint(opened(store, entry), "anthropic")


def test_a_key_of_another_workspace_is_refused(store: Store, entry: LogEntry) -> None:
    pin_workspace(store, "wrkspc_ours")
    with pytest.raises(
        CredentialsError, match=r"belongs to the workspace wrkspc_ours, the worker's key to wrkspc_other\. Nothing was sent\. Give"
    ):
        check_workspace(opened(store, entry), "wrkspc_other")


def test_a_lost_batch_without_a_record_is_refused(store: Store, entry: LogEntry) -> None:
    with pytest.raises(
        RootError, match=r"has no record of batch msgbatch_1: the root lost its records\. Restore the folder, or: claude-batch recover"
    ):
        runs(store).lost_batch(batch_input(store, entry))


def finish(store: Store, entry: LogEntry) -> FinishInput:
    return FinishInput(root=store.uri, number=entry.number, run_id=entry.run_id, outcome="finished")


def test_a_run_with_an_open_shard_does_not_finish(store: Store, entry: LogEntry) -> None:
    with pytest.raises(RunError, match=r"r1 cannot finish: shard 0 of round 1 ends with no record\. .*claude-batch cancel r1"):
        runs(store).finish_run(finish(store, entry))


def test_a_run_whose_last_round_has_shards_does_not_finish(store: Store, entry: LogEntry) -> None:
    append_submission(store, entry.run_id, 1, 0, 0, Closed(reason=CloseReason.DRAINED))
    with pytest.raises(RunError, match=r"r1 cannot finish: its last round, 1, "):
        runs(store).finish_run(finish(store, entry))


def test_a_run_whose_counts_do_not_add_up_does_not_finish(store: Store, entry: LogEntry) -> None:
    append_submission(store, entry.run_id, 1, 0, 0, Closed(reason=CloseReason.DRAINED))
    write_round(store, entry.run_id, RoundRecord(round=2, shards=()))
    fields = msgspec.json.decode(store.get("log/1.json") or b"")
    fields["keys"]["count"] = 3
    store.put("log/1.json", msgspec.json.encode(fields))
    with pytest.raises(RunError, match=r"r1 cannot finish: its plan owns 3 requests, 2 were counted\. Nothing is lost\. .*report"):
        runs(store).finish_run(finish(store, entry))


def test_a_missing_body_keeps_its_batch_uncollected(store: Store, entry: LogEntry) -> None:
    store.delete(entry.shards[0].path)
    with pytest.raises(
        RootError, match=r"is missing: the root lost its records\. The run does not go on with batch msgbatch_1 .* Restore the file\."
    ):
        collector().collect(batch_input(store, entry), ended(), quiet)


def test_a_body_of_another_length_keeps_its_batch_uncollected(store: Store, entry: LogEntry) -> None:
    store.put(entry.shards[0].path, b'{"requests":[]}')
    with pytest.raises(
        RootError, match=r"holds 0 requests, the plan says 2\. The run does not go on with batch msgbatch_1\. Restore the file\."
    ):
        collector().collect(batch_input(store, entry), ended(), quiet)


def test_a_batch_that_is_not_its_shards_tip_is_stored_and_told(store: Store, entry: LogEntry) -> None:
    append_submission(store, entry.run_id, 1, 0, 0, SEND)
    append_submission(store, entry.run_id, 1, 0, 1, Accepted(id="msgbatch_2", created_at=NOW.isoformat()))
    with pytest.raises(
        RootError, match=r"msgbatch_1 is stored, but the records of shard 0 do not end with it .* Nothing is lost\. .*restore"
    ):
        collector().collect(batch_input(store, entry), ended(), quiet)


def test_responses_that_do_not_add_up_keep_the_shard_open(store: Store, entry: LogEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "write_response_batches", lambda *_, **__: None)
    with pytest.raises(RootError, match=r"msgbatch_1: 0 responses were stored for 2 requests\. The shard stays open\. .*report"):
        collector().collect(batch_input(store, entry), ended(), quiet)


def test_results_that_the_vendor_refuses_are_read_again_later(store: Store, entry: LogEntry) -> None:
    def refuse(_: str) -> object:
        raise RefusedError("the results of batch msgbatch_1: refused by the vendor (HTTP 404).", status=404)

    reader = Collector(open_store=Store, batches=vendor(stream_results=refuse), price_usage=price)
    unarchived = replace(ended(), archived=False)
    with pytest.raises(VendorUnavailableError, match=r"They are read again later, until the batch is archived\."):
        reader.collect(batch_input(store, entry), unarchived, quiet)


def test_a_missing_sample_request_stops_the_run(store: Store, entry: LogEntry) -> None:
    ref = PreflightRef(task_key=entry.tasks[0].task_key, path="plans/x/preflight.json")
    staged = msgspec.structs.replace(entry, preflights=(ref,))
    with pytest.raises(RootError, match=r"plans/x/preflight\.json is missing: the root lost its records\. Nothing was sent\. Restore"):
        Preflights(batches=vendor(), price_usage=price, clock=lambda: NOW).find_failure(opened(store, staged))


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_refused_key_stops_a_new_run_and_not_one_that_has_begun(store: Store, entry: LogEntry, begun: bool) -> None:
    """What has begun goes on until a shard needs the key, which then asks for one."""

    def refuse() -> VendorReply:
        raise CredentialsError("the list of batches: the API refuses this key (HTTP 401).")

    if begun:
        append_submission(store, entry.run_id, 1, 0, 0, SEND)
    opener = replace(runs(store), batches=vendor(check_key_and_list=refuse))
    failure = opener.open_run(OpenInput(root=store.uri, number=entry.number, run_id=entry.run_id, mode=Mode.RUN)).failure
    assert failure == (
        None if begun else "Batch run r1 was not begun, nothing was sent: the list of batches: the API refuses this key (HTTP 401)."
    )


def submitter(**calls: Callable[..., Any]) -> Submitter:
    return Submitter(open_store=Store, batches=vendor(**calls), clock=lambda: NOW, boot_s=time.monotonic, send_s=15.0, settle_s=60.0)


def read_body(body: Any, _: int) -> Any:
    for _chunk in body:
        pass
    return Created(batch_id="msgbatch_1", created_at=NOW.isoformat())


def test_a_body_that_is_gone_is_not_sent(store: Store, entry: LogEntry) -> None:
    store.delete(entry.shards[0].path)
    with pytest.raises(
        RootError, match=r"is missing: the root lost its records\. Nothing was sent\. Restore the folder, or: claude-batch rec"
    ):
        submitter(create=read_body).submit(shard_input(store, entry), quiet)


def test_a_body_that_was_changed_is_not_sent(store: Store, entry: LogEntry) -> None:
    store.put(entry.shards[0].path, b'{"requests":[]}')
    with pytest.raises(RootError, match=r"is not what was planned: 15 bytes against .* SHA-256 .* Nothing was sent\. Restore the file"):
        submitter(create=read_body).submit(shard_input(store, entry), quiet)


def test_a_batch_that_cannot_be_recorded_is_told_with_its_id(store: Store, entry: LogEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    real = submit.append_submission

    def full_disk(*arguments: Any) -> bool:
        if isinstance(arguments[-1], Accepted):
            raise RootError("The disk is full.")
        return real(*arguments)

    monkeypatch.setattr(submit, "append_submission", full_disk)
    with pytest.raises(
        RootError,
        match=r"r1: batch msgbatch_1 was created, and that cannot be recorded: The disk is full\. It is not sent again before .* Make the root writable\.",
    ):
        submitter(create=read_body).submit(shard_input(store, entry), quiet)


def see_through(store: Store, entry: LogEntry, failure: Exception) -> ApplicationError:
    def get(_: str) -> Batch:
        raise failure

    activities = BatchActivities(
        runs=runs(store),
        submitter=submitter(),
        settler=cast(Any, None),
        collector=collector(),
        batches=vendor(get=get),
        examiner=cast(Any, None),
        poll_s=1.0,
        is_called_off=lambda: False,
    )
    with pytest.raises(ApplicationError) as raised:
        ActivityEnvironment().run(activities.see_through, batch_input(store, entry))
    return raised.value


def test_a_batch_that_is_not_found_is_waited_for(store: Store, entry: LogEntry) -> None:
    told = see_through(store, entry, RefusedError("batch msgbatch_1: refused.", status=404))
    assert (told.type, told.non_retryable) == ("VendorUnavailableError", False)
    assert "Check that the worker's key belongs to the workspace of this root." in str(told)


def test_a_batch_that_a_revoked_key_cannot_see_is_asked_about(store: Store, entry: LogEntry) -> None:
    told = see_through(store, entry, CredentialsError("batch msgbatch_1: the vendor refuses this key."))
    assert (told.type, told.non_retryable) == ("CredentialsError", True)


def test_a_poll_time_that_is_no_number_keeps_the_worker_from_starting() -> None:
    with pytest.raises(UsageError, match=r"CLAUDE_BATCH_POLL_SECONDS is 'soon', .* The worker did not start\. Write a number"):
        worker.read_settings({"ANTHROPIC_API_KEY": "k", "CLAUDE_BATCH_POLL_SECONDS": "soon"})


def test_a_worker_without_a_key_does_not_start() -> None:
    with pytest.raises(CredentialsError, match=r"ANTHROPIC_API_KEY is not set\. The worker did not start\. Set it"):
        worker.read_settings({})


def test_a_worker_without_a_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(**_: object) -> None:
        raise RuntimeError("connection refused")

    monkeypatch.setattr(worker.Client, "connect", refuse)
    monkeypatch.setattr(worker, "CONNECT_S", 0.0)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        TemporalUnavailableError, match=r"No Temporal server at 127\.0\.0\.1:9 within 0 s .* The worker did not start\. Start one"
    ):
        asyncio.run(worker.connect())
