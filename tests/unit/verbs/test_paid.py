"""verbs/paid.py: what was paid for, before a run is over and after it."""

from typing import Any

import pytest

from claude_batch_dagster.core.records import DoneRecord, ModelUsage
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.storage.plans import append_submission, read_done, write_done
from claude_batch_dagster.verbs.paid import Paid, read_paid


def priced(cost_nano_usd: int | None) -> Any:
    return lambda asked: {"answer": '{"summary":"x"}', "input_tokens": 100, "output_tokens": 7, "cost_nano_usd": cost_nano_usd}


def accept(lake: Any, entry: Any, shard: int, batch_id: str) -> None:
    append_submission(lake.store, entry.run_id, 1, shard, 0, Accepted(id=batch_id, created_at="2026-11-22T12:00:00+00:00"))


@pytest.mark.parametrize(("cost", "sum_nano_usd"), [(50_000, 100_000), (None, None)])
def test_of_an_open_run_what_was_collected_counts(lake: Any, cost: int | None, sum_nano_usd: int | None) -> None:
    lake.texts("a", "b")
    job = lake.job()
    _, admission = lake.admit(job)
    assert read_paid(job.root, admission.own) == Paid(
        batches=0, tokens=dict.fromkeys(("input", "output", "cache_read", "cache_write"), 0), cost_nano_usd=0
    )
    lake.answer(job, admission.own, priced(cost))
    accept(lake, admission.own, 0, "batch-1-0")
    accept(lake, admission.own, 1, "batch-that-is-out")
    assert read_done(lake.store, 1) is None
    assert read_paid(job.root, admission.own) == Paid(
        batches=2, tokens={"input": 200, "output": 14, "cache_read": 0, "cache_write": 0}, cost_nano_usd=sum_nano_usd
    )


def test_of_a_run_that_is_over_its_report_counts(lake: Any) -> None:
    lake.texts("a", "b")
    job = lake.job()
    _, admission = lake.admit(job)
    lake.answer(job, admission.own, priced(50_000))
    usage = ModelUsage(
        model="m", over_100k=False, requests=2, input_tokens=3, output_tokens=4, cache_read_tokens=5, cache_write_tokens=6, cost_nano_usd=7
    )
    record = DoneRecord(
        run_id=admission.own.run_id,
        finished_at="2026-11-22T12:00:00+00:00",
        outcome="finished",
        rows={},
        batches=1,
        usage=(usage, usage),
        cost_nano_usd=14,
    )
    write_done(lake.store, admission.own.number, record)
    assert read_paid(job.root, admission.own) == Paid(
        batches=1, tokens={"input": 6, "output": 8, "cache_read": 10, "cache_write": 12}, cost_nano_usd=14
    )
