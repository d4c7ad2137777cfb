"""The client is killed at every point at which it writes or lists; the same command then finishes the job."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.judge import CommandLine, assert_whole, last_object
from tests.stack import Bench, RunningSimulator

POINTS = [
    "put:root.json.before",
    "put:root.json.after",
    "list:log.after",
    "list:done.after",
    "list:responses.before",
    "put:keys.before",
    "put:keys.after",
    "put:plans.before",
    "put:plans.after",
    "put:plans.after@2",
    "put:tasks.before",
    "put:tasks.after",
    "put:log.before",
    "put:log.after",
    "put:_claude_batch.json.before",
    "put:_claude_batch.json.after",
    "put:part-0.parquet.before",
    "put:part-0.parquet.after",
]


@pytest.mark.parametrize("point", POINTS)
def test_client_killed_anywhere_leaves_a_job_that_the_same_command_finishes(
    point: str, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Nothing is paid twice, and no row is lost."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    bench.start_worker(simulator)
    name, _, nth = point.partition("@")

    killed = command.run(CLAUDE_BATCH_FAULT_POINTS=f"{name}=kill" + (f"@{nth}" if nth else ""))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = command.run()

    assert again.returncode == 0, again.stderr
    assert last_object(again)["rows"]["succeeded"] == 40
    assert_whole(command)
