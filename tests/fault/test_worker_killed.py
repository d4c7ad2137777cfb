"""The worker is killed at every point at which it writes, lists or sends; another worker takes over."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.judge import CommandLine, answered_twice, assert_whole, last_object
from tests.stack import Bench, RunningSimulator

SAFE_POINTS = [
    "put:workspace.json.after",
    "list:batches.after",
    "put:submissions.before",
    "put:submissions.after@2",
    "put:responses.before",
    "put:responses.after",
    "put:submissions.before@3",
    "put:submissions.after@3",
    "put:rounds.before",
    "put:rounds.after",
    "put:done.before",
    "put:done.after",
]
UNKNOWN_POINTS = ["put:submissions.after", "post.before", "post.after", "put:submissions.before@2"]


def run_with_killed_worker(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], folder: Path
) -> tuple[CommandLine, RunningSimulator]:
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    command.write_source()
    name, _, nth = point.partition("@")
    doomed = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=f"{name}=kill" + (f"@{nth}" if nth else ""))
    detached = command.run("--detach")
    assert detached.returncode == 0, detached.stderr
    assert doomed.popen.wait(60) == -signal.SIGKILL, doomed.output
    bench.start_worker(simulator)
    return command, simulator


@pytest.mark.parametrize("point", SAFE_POINTS)
def test_worker_killed_where_nothing_is_unknown_is_taken_over(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The next worker goes on where the records stand: no row is lost, nothing is paid twice."""
    command, simulator = run_with_killed_worker(point, bench, start_simulator, tmp_path / "work")

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert last_object(finished)["requests"]["asked"] == 0
    assert_whole(command)
    assert len(simulator.batches()) == 1


@pytest.mark.parametrize("point", UNKNOWN_POINTS)
def test_worker_killed_around_the_post_parks_the_shard_and_never_sends_again(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """A batch may exist, so a person is asked; cancel ends the run and its rows are pending."""
    command, simulator = run_with_killed_worker(point, bench, start_simulator, tmp_path / "work")
    existing = len(simulator.batches())

    question = wait_for_question(command)
    assert "40 requests" in question
    assert "claude-batch cancel r1" in question
    canceled = command.call("cancel", "r1")

    assert canceled.returncode == 0, canceled.stderr
    assert len(simulator.batches()) == existing <= 1
    assert answered_twice(simulator) == {}


def wait_for_question(command: CommandLine) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        shown = command.call("status", "r1").stdout
        if "may exist" in shown:
            return " ".join(shown.split())
        time.sleep(0.5)
    raise AssertionError("the run asked nothing")
