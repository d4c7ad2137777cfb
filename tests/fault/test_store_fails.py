"""The root cannot be written while a paid batch is collected; once that is mended, nothing is lost and nothing is paid twice."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import CommandLine, assert_whole
from tests.stack import Bench, RunningSimulator


def test_answers_that_could_not_be_stored_are_collected_once_the_root_is_mended(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The run asks for it, also a client that comes later; after an answer everybody goes on, with the batch that was paid for."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    root = Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated"
    root.mkdir(parents=True)
    (root / "responses").write_text("a file where a folder should be")
    bench.start_worker(simulator)

    assert command.run("--detach").returncode == 0
    asked = wait_for_question(command)
    assert "responses" in asked
    assert "claude-batch answer r1 resume" in asked

    (root / "responses").unlink()
    answered = command.call("answer", "r1", "resume")
    assert (answered.returncode, answered.stdout) == (0, "Batch run r1 looks again now.\n"), answered.stderr
    finished = command.run()
    assert finished.returncode == 0, finished.stderr
    assert_whole(command)
    assert len(simulator.batches()) == 1


def wait_for_question(command: CommandLine) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        shown = " ".join(command.call("status", "r1").stdout.split())
        if "Waits for an answer" in shown:
            return shown
        time.sleep(0.5)
    raise AssertionError("the run asked nothing")
