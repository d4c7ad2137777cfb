"""Exit codes, the JSON object and the summary of a run."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from claude_batch_dagster.cli.report import Known, exit_code_of, failure_object, result_object, summarize_result
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.verbs.paid import Paid
from claude_batch_dagster.verbs.progress import JobProgress
from claude_batch_dagster.verbs.result import JobResult

TOKENS = {"input": 10, "output": 5, "cache_read": 1, "cache_write": 0}
PAID = Paid(batches=2, tokens=TOKENS, cost_nano_usd=500_000_000)


def result(*, detached: bool = False, failed_partitions: dict[str, str] | None = None, **rows: int) -> JobResult:
    return JobResult(
        root="/root",
        run="r42",
        run_id="id",
        workflow_id="claude-batch/id",
        rows={"total": sum(rows.values()), **dict.fromkeys(STATUSES, 0), **rows},
        requests={"asked": 3, "already_answered": 1, "in_flight": 0},
        batches=1,
        tokens={"input": 10, "output": 5, "cache_read": 0, "cache_write": 0},
        cost_usd=0.5,
        outputs=(),
        tallies={},
        failed_partitions=failed_partitions or {},
        detached=detached,
        duration_s=61.0,
        warnings=("A warning.",),
    )


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ({"succeeded": 2}, 0),
        ({"succeeded": 1, "refused": 1, "skipped": 3}, 0),
        *(({"succeeded": 1, status: 1}, 3) for status in ("truncated", "invalid", "errored", "expired", "canceled", "pending")),
    ],
)
def test_exit_code_says_whether_rows_failed(rows, code):
    assert exit_code_of(result(**rows)) == code


def test_accepted_detached_run_is_no_failure():
    assert exit_code_of(result(detached=True, pending=5)) == 0


def test_partition_that_was_not_written_is_a_failure():
    found = result(succeeded=1, failed_partitions={"2026-11-02": "no such folder"})
    assert exit_code_of(found) == 1
    assert "2026-11-02: no such folder" in str(result_object(Known(), found, 1)["error"])


def test_object_has_the_same_shape_on_success_and_on_failure():
    good, bad = result_object(Known(root="/r"), result(succeeded=3), 0), failure_object(Known(root="/r"), "CostError", "too much", 1)
    assert list(good) == list(bad)
    for name in ("rows", "requests", "tokens"):
        assert list(good[name]) == list(bad[name])  # type: ignore[call-overload]
    assert good["error"] is None
    assert bad["error"] == {"type": "CostError", "message": "too much"}


def test_summary_names_failed_rows_and_simulation():
    text = "\n".join(summarize_result(Known(root="/r", output="/out"), result(succeeded=2, truncated=1), simulated=True))
    for part in (
        "Batch run r42 is done after 1 min 1 s",
        "SIMULATED",
        "3: 2 succeeded, 1 truncated",
        "1 row without a usable answer",
        "$0.50",
        "A warning.",
    ):
        assert part in text


def test_summary_of_a_command_that_asked_nothing_says_who_did():
    nothing = replace(
        result(succeeded=3), run=None, batches=0, requests={"asked": 0, "already_answered": 2, "in_flight": 1}, tokens={"input": 1}
    )
    lines = summarize_result(Known(root="/r"), nothing, simulated=False)
    assert lines[0] == "Nothing new had to be asked. The output is written."
    assert lines[2] == "  Requests  0 asked in 0 batches, 2 already answered, 1 answered in another run"
    assert lines[3] == "  Cost      $0.50 (1 token of input, 0 of output)"


@pytest.mark.parametrize(("paid", "cost_usd"), [(None, None), (Paid(batches=2, tokens=TOKENS, cost_nano_usd=None), None), (PAID, 0.5)])
def test_object_of_a_failed_run_says_what_was_asked_and_paid(paid, cost_usd):
    known = Known(root="/r", entry=SimpleNamespace(keys=SimpleNamespace(count=7)))  # type: ignore[arg-type]
    known.progress = JobProgress(phase="publish", requests_already_answered=3)
    found = failure_object(known, "OutputError", "no space", 1, paid)
    assert found["requests"] == {"asked": 7, "already_answered": 3, "in_flight": 0}
    assert found["cost_usd"] == cost_usd
    assert found["batches"] == (2 if paid else 0)
    assert found["tokens"] == (TOKENS if paid else dict.fromkeys(TOKENS, 0))


def test_object_of_a_command_without_a_run_of_its_own_cost_nothing():
    assert failure_object(Known(), "SourceError", "no such file", 1)["cost_usd"] == 0


def test_detached_command_that_asked_nothing_names_no_run():
    text = "\n".join(summarize_result(Known(root="/r"), replace(result(detached=True), run=None), simulated=False))
    assert "nothing new to ask" in text
    assert "None" not in text


def test_summary_of_a_detached_run_says_how_to_look_and_how_to_write():
    text = "\n".join(summarize_result(Known(root="/r"), result(detached=True), simulated=False))
    assert "claude-batch status r42 --root /r" in text
    assert "claude-batch cancel r42 --root /r" in text
    assert "without --detach" in text
