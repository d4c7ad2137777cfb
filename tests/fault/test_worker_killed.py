"""The worker is killed at every point at which it writes, lists or sends; another worker takes over."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.judge import CommandLine, assert_whole, last_object
from tests.stack import Bench, RunningSimulator

POINTS = [
    "put:workspace.json.after",
    "list:batches.after",
    "post.before",
    "post.last_byte",
    "post.after",
    "put:submissions.before",
    "put:submissions.after",
    "put:submissions.before@2",
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


@pytest.mark.parametrize("point", POINTS)
def test_worker_killed_anywhere_is_taken_over(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The next worker goes on where the records stand, and finds out what they do not tell: no row is lost, nothing is paid twice."""
    command, simulator = run_with_killed_worker(point, bench, start_simulator, tmp_path / "work")

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert last_object(finished)["requests"]["asked"] == 0
    assert_whole(command)
    assert len(simulator.batches()) == 1
