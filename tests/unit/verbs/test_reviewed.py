"""What a review found: ways to pay twice or to lose a plan that an ordinary day can bring."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.plans import admit_entry
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.verbs import admit, run
from claude_batch_dagster.verbs.connection import Connection

LATER = datetime(2026, 11, 23, 12, tzinfo=UTC)


def canceled(lake: Any, job: Any, entry: LogEntry) -> None:
    """End a run whose only request the vendor canceled."""
    [[asked]] = lake.requests(entry)
    write_responses(
        lake.store,
        endpoint=job.endpoint,
        task_key=job.targets[0].task.task_key,
        batch_id=f"canceled-{entry.number}",
        round_number=1,
        answered_at=LATER,
        responses=[Response(request_key=bytes.fromhex(asked.key), outcome="canceled", error="canceled: x")],
    )
    lake.end(entry)


def test_a_canceled_retry_leaves_the_earlier_failure_as_final_as_it_was(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job(), lambda _: {"outcome": "truncated", "error": "max_tokens: x"})
    retried = lake.job(retry_failed=True)
    _, admission = lake.admit(retried)
    canceled(lake, retried, admission.own)
    assert lake.plan(lake.job()).total.asked == 0
    lake.publish(lake.job())
    assert lake.read()["status"].to_pylist() == ["truncated"]


def test_rows_asked_again_by_a_run_that_was_waited_for_are_not_asked_once_more(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    again = lake.job(ask_again=("1",))
    _, admission = lake.admit(again)
    entry = admission.own
    assert lake.plan(again).waits == (entry,)
    lake.answer(again, entry)
    lake.end(entry)
    assert lake.plan(again, waited_runs=[entry.run_id]).total.asked == 0


def test_rows_of_a_waited_run_that_got_no_answer_are_asked(lake: Any) -> None:
    lake.texts("a")
    again = lake.job()
    _, admission = lake.admit(again)
    canceled(lake, again, admission.own)
    assert lake.plan(again, waited_runs=[admission.own.run_id]).total.asked == 1


def test_an_admission_whose_put_won_though_the_store_denied_it_keeps_its_plan(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store's client repeats a put whose reply was lost, and is told that the object exists: it is its own."""

    def put_and_deny(store: Any, entry: LogEntry) -> bool:
        assert admit_entry(store, entry)
        return False

    lake.texts("a")
    monkeypatch.setattr(admit, "admit_entry", put_and_deny)
    plan, admission = lake.admit(lake.job())
    assert admission.own is not None
    assert admission.own.run_id == plan.run_id
    assert msgspec.json.decode(lake.store.get("log/1.json"), type=LogEntry) == admission.own
    assert lake.store.exists(admission.own.keys.path)


def test_a_partition_that_a_growing_neighbour_pushed_over_the_limit_is_said_and_not_written(lake: Any) -> None:
    lake.texts("a", path="days/day=1/p.parquet")
    lake.texts("b", "c", path="days/day=2/p.parquet")
    job = lake.job(path="days", partition_column="day", limit=2)
    lake.finish(job)
    lake.texts("a", "d", path="days/day=1/p.parquet")
    published = lake.publish(job, ["1", "2"], limit=2)
    assert [output.partition for output in published.outputs] == ["1"]
    assert "no row among the first 2 any more" in published.failed_partitions["2"]


def test_a_second_run_of_one_invocation_gets_what_the_first_left_of_the_cap(lake: Any) -> None:
    lake.texts("a")
    job = lake.job(max_cost_usd=5.0)
    plan = lake.plan(job)
    entry = admit.admit_plan(job, plan, reserved_nano_usd=2_000_000_000).own
    assert entry is not None
    assert entry.cost_nano_usd.cap == 3_000_000_000


def test_what_further_rounds_cost_is_taken_from_the_cap_of_the_next_run(lake: Any) -> None:
    """The worst case asks each request once; a run that asked some again may have cost more, and most cost less."""
    lake.texts("a")
    job = lake.job(max_cost_usd=5.0)
    own = lake.admit(job)[1].own
    runner = run._Runner(job, Connection(address="127.0.0.1:1"), None, None, None)
    runner.own.append((own, None))
    assert runner._reserved_nano_usd() == own.cost_nano_usd.worst
    for cost, reserved in ((4_000_000_000, 4_000_000_000), (0, 0), (None, own.cost_nano_usd.worst)):
        done = DoneRecord(run_id=own.run_id, finished_at="", outcome="finished", rows={}, batches=3, usage=(), cost_nano_usd=cost)
        runner.own[-1] = (own, done)
        assert runner._reserved_nano_usd() == reserved


def test_source_errors_of_one_partition_stop_an_unpartitioned_job(lake: Any) -> None:
    with pytest.raises(SourceError):
        lake.plan(dataclasses.replace(lake.job(path="nowhere.parquet")))
