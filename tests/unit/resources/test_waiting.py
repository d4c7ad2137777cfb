"""What a run logs while it waits, and how our errors fail it."""

from types import SimpleNamespace

import dagster as dg
import pytest

from claude_batch_dagster.core.errors import CostError, TemporalUnavailableError
from claude_batch_dagster.resources.waiting import ProgressLog, external_server, readable_failures
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.progress import JobProgress


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def log(clock, lines):
    connection = Connection(address="x", ui_url="http://ui")
    return ProgressLog(write=lines.append, warn=lambda text: lines.append(f"! {text}"), connection=connection, now_s=clock)


def wait(**values) -> JobProgress:
    return JobProgress(
        phase="wait", **{"rows_planned": 300, "requests_asked": 298, "batches_total": 2, "run": "r7", "workflow_id": "w/7", **values}
    )


def test_a_long_wait_is_a_dozen_lines_with_the_link_early(log, clock, lines):
    log(JobProgress(phase="plan"))
    log(JobProgress(phase="plan", rows_planned=300))
    for second in range(24 * 3600):
        clock.now_s = float(second)
        log(
            wait(
                batches_submitted=2,
                batches_in_progress=1 if second > 7200 else 2,
                batches_ended=1 if second > 7200 else 0,
                elapsed_s=second,
            )
        )
    log(wait(batches_submitted=2, batches_ended=2, elapsed_s=24 * 3600, cost_usd=0.5))
    log(JobProgress(phase="publish", rows_planned=300, run="r7", workflow_id="w/7"))
    assert lines[:3] == [
        "Planning: reading the source, and looking up what is answered already.",
        "Planned 300 rows: 298 requests to ask, 0 answered already, 0 in flight in other runs. Batches usually end within 1 h, and within 24 h at most.",
        "Batch run r7 (2 batches). Workflow: http://ui/namespaces/default/workflows/w%2F7",
    ]
    assert lines[3] == "2 of 2 batches submitted, 1 processing, 1 ended, after 2 h 0 min; $0.00 so far."
    assert lines[4] == "2 of 2 batches submitted, 0 processing, 2 ended, after 24 h 0 min; $0.50 so far."
    assert len(lines) == 6


def test_counts_that_change_often_are_logged_once_a_minute(log, clock, lines):
    for second in range(600):
        clock.now_s = float(second)
        log(wait(batches_total=1000, batches_submitted=second, elapsed_s=second))
    assert 10 <= len(lines) <= 12


def test_a_question_and_a_message_are_logged_once_as_warnings(log, lines):
    for _ in range(3):
        log(wait(message="No worker polls the task queue.", question="claude-batch answer r7 0 resend?"))
    assert [line for line in lines if line.startswith("!")] == ["! No worker polls the task queue.", "! claude-batch answer r7 0 resend?"]


@pytest.mark.parametrize(("error", "may_retry"), [(CostError("Too dear."), False), (TemporalUnavailableError("Nobody answers."), True)])
def test_our_errors_fail_the_step_with_their_text_and_are_retried_only_if_that_can_help(error, may_retry):
    with pytest.raises(dg.Failure) as failure:
        with readable_failures():
            raise error
    assert failure.value.description == str(error)
    assert failure.value.allow_retries is may_retry


def test_a_refusals_numbers_are_metadata_with_money_in_dollars():
    with pytest.raises(dg.Failure) as failure:
        with readable_failures():
            raise CostError(
                "Too dear.", rows=5, expected_nano_usd=2_000_000_000, worst_nano_usd=11_000_000_000, max_cost_usd=10.0, keys=("x",)
            )
    assert {name: value.value for name, value in failure.value.metadata.items()} == {
        "claude_batch/error": "CostError",
        "claude_batch/rows": 5,
        "claude_batch/expected_usd": 2.0,
        "claude_batch/worst_usd": 11.0,
        "claude_batch/max_cost_usd": 10.0,
    }


@pytest.mark.parametrize(
    ("worst", "cost"), [(30_000_000, "about $0.02, at most $0.03"), (None, "at an unknown cost")], ids=["priced", "unpriced"]
)
def test_why_rows_are_asked_and_for_how_much_is_logged_before_anything_is_sent(log, lines, worst, cost):
    plan = SimpleNamespace(
        reasons={"new": 3, "task_changed": 2},
        changed_parts={"labels": ("model: claude-haiku-4-5 -> claude-haiku-5-5",)},
        expected_nano_usd=20_000_000,
        worst_nano_usd=worst,
    )
    assert log.explain(plan)
    assert lines == [
        f"To ask: 5 requests (3 new, 2 because the task changed; what changed in labels: model: claude-haiku-4-5 -> claude-haiku-5-5), {cost}."
    ]


def test_one_request_is_one_and_costs_more_than_nothing(log, lines):
    log.explain(SimpleNamespace(reasons={"changed": 1}, changed_parts={}, expected_nano_usd=48_600, worst_nano_usd=200_000))
    log(JobProgress(phase="wait", rows_planned=1, requests_asked=1, batches_total=1))
    assert lines[0].endswith(", about $0.000049, at most $0.0002.")
    assert lines[1].startswith("Planned 1 row: 1 request to ask, 0 answered already, ")


def test_a_limit_is_said_first(lines):
    limited = ProgressLog(write=lines.append, warn=lines.append, connection=Connection(address="x"), limit=1_000)
    limited(JobProgress(phase="plan"))
    assert lines[0].endswith("limit: only the first 1,000 rows.")


def test_the_users_own_temporal_is_used_where_a_field_or_the_environment_names_it(monkeypatch):
    assert external_server(None, None, None, None) is None
    monkeypatch.setenv("TEMPORAL_ADDRESS", "env:7233")
    assert external_server(None, None, None, None).address == "env:7233"
    given = external_server("field:7233", "prod", "q", "http://ui/")
    assert (given.address, given.namespace, given.task_queue, given.ui_url) == ("field:7233", "prod", "q", "http://ui")
