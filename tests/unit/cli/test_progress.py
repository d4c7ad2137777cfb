"""What a run shows while it goes."""

import io

from claude_batch_dagster.cli.progress import LINE_EVERY_S, LiveProgress, PlainProgress
from claude_batch_dagster.verbs.progress import JobProgress


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def waiting(**counts) -> JobProgress:
    return JobProgress(phase="wait", run="r1", batches_total=3, **counts)


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_unchanged_progress_writes_one_line():
    stream, clock = io.StringIO(), Clock()
    view = PlainProgress(stream, clock)
    for elapsed_s in range(0, 600, 60):
        clock.now_s = elapsed_s
        view(waiting(batches_submitted=1, elapsed_s=float(elapsed_s)))
    assert lines_of(stream) == ["r1: batches: 1 of 3 submitted, 0 in progress, 0 ended; $0.00 so far; 0 s, usually under 1 h, at most 24 h"]


def test_changes_within_a_few_seconds_write_only_the_last():
    stream, clock = io.StringIO(), Clock()
    view = PlainProgress(stream, clock)
    for submitted in range(4):
        clock.now_s = submitted * 0.1
        view(waiting(batches_submitted=submitted))
    view.close()
    assert [line.split(" submitted")[0] for line in lines_of(stream)] == ["r1: batches: 0 of 3", "r1: batches: 3 of 3"]


def test_change_after_a_pause_is_written_at_once():
    stream, clock = io.StringIO(), Clock()
    view = PlainProgress(stream, clock)
    view(waiting(batches_submitted=1))
    clock.now_s = LINE_EVERY_S
    view(waiting(batches_submitted=2))
    assert len(lines_of(stream)) == 2


def test_new_phase_is_written_at_once_after_what_was_held_back():
    stream = io.StringIO()
    view = PlainProgress(stream, Clock())
    view(JobProgress(phase="plan"))
    view(JobProgress(phase="plan", rows_planned=1, requests_asked=1))
    view(JobProgress(phase="publish", run="r1"))
    assert lines_of(stream) == ["planning", "planned: 1 row, 1 request to ask, 0 already answered", "r1: writing the output"]


def test_messages_and_questions_are_written_once_each():
    stream = io.StringIO()
    view = PlainProgress(stream, Clock())
    for _ in range(3):
        view(waiting(message="no worker", question="which batch?"))
    assert lines_of(stream)[:2] == ["r1: no worker", "r1: waits for an answer: which batch?"]
    assert len(lines_of(stream)) == 3


def test_no_progress_shows_a_percentage_of_a_running_batch():
    stream = io.StringIO()
    PlainProgress(stream, Clock())(waiting(batches_submitted=2, batches_in_progress=1, batches_ended=1))
    assert "%" not in stream.getvalue()


def test_live_view_says_simulated_and_where_the_run_stands():
    from rich.console import Console

    view = LiveProgress(simulated=True)
    view.latest = waiting(
        rows_planned=300, requests_asked=290, requests_already_answered=10, batches_submitted=2, batches_in_progress=2, cost_usd=1.5
    )
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(view._render())
    text = console.export_text()
    for part in (
        "Batch run r1   SIMULATED",
        "300 rows, 290 requests asked, 10 already answered",
        "2 of 3 submitted, 2 in progress, 0 ended",
        "$1.50 so far",
        "at most 24 h",
    ):
        assert part in text
