"""The command in a run's question works as pasted: whatever its reader's environment names, it finds the root."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import CommandLine
from tests.stack import Bench, Process, RunningSimulator

JOB = ("--task", "summarize", "--column", "text", "--key", "id")
RESUME = re.compile(r"claude-batch answer r1 resume.*")


def test_the_command_of_a_question_is_typed_as_it_stands(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Where somebody waits for the run, in the list of runs, and in the run's own lines."""
    simulator = start_simulator("spend-cap=all")
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source(3)
    root = command.environ()["CLAUDE_BATCH_ROOT"]
    places = ("--source", str(command.folder / "source.parquet"), "--output", str(command.folder / "out"))
    waiter = Process.start([sys.executable, "-m", "claude_batch_dagster.cli", "run", *places, *JOB], command.environ())
    try:
        found = RESUME.search(waiter.wait_for_line("waits for an answer"))
        assert found is not None
        assert shlex.split(found[0])[-3:] == ["--root", root, "--simulate"]
        for arguments in ((), ("r1",)):
            assert RESUME.findall(command.call("status", *arguments).stdout) == [found[0]]

        simulator.clear()
        # Without the option it would look for the run in a root of its own folder.
        answered = command.call(*shlex.split(found[0])[1:], CLAUDE_BATCH_ROOT="")
        assert answered.returncode == 0, answered.stderr
        assert waiter.popen.wait(90) == 0, waiter.output
    finally:
        waiter.stop()
    assert {row["status"] for row in command.rows()} == {"succeeded"}
