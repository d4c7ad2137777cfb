"""A worker is suspended for longer than its heartbeat's timeout, another takes over, and then it wakes: a zombie."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.fault.judge import CommandLine, assert_whole, last_object, sent
from tests.stack import Bench, RunningSimulator

# Of a POST's own two points: test_worker_settle.py.
POINTS = ["put:submissions.before", "put:responses.before", "put:submissions.before@3", "put:rounds.before", "put:done.before"]


@pytest.mark.parametrize("point", POINTS)
def test_zombie_that_wakes_after_another_worker_finished_changes_nothing(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """What it writes is there already, and what it would buy is not its own any more."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    name, _, nth = point.partition("@")
    zombie = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=f"{name}=stop@{nth or 1}")
    assert command.run("--detach").returncode == 0
    wait_until_stopped(zombie.popen.pid)
    bench.start_worker(simulator)
    finished = command.run(timeout_s=180)
    assert finished.returncode == 0, finished.stderr
    before = records(command)

    os.kill(zombie.popen.pid, signal.SIGCONT)
    time.sleep(3)

    assert zombie.popen.poll() is None, zombie.output
    assert records(command) == before
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command)
    assert sent(simulator) == [40]


def records(command: CommandLine) -> dict[str, bytes]:
    """Return every record and response of the root."""
    root = Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated"
    folders = ("log", "done", "rounds", "submissions", "responses")
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def wait_until_stopped(pid: int) -> None:
    deadline = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "the worker did not reach the point"
        time.sleep(0.05)
