"""The root cannot be written while a paid batch is collected; once that is mended, nothing is lost and nothing is paid twice."""

from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import CommandLine, assert_whole, last_object
from tests.stack import Bench, RunningSimulator


def test_answers_that_could_not_be_stored_are_collected_once_the_root_is_mended(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The client says why, and does not wait for ever; the same command then finishes the job with the batch that was paid for."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    root = Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated"
    root.mkdir(parents=True)
    (root / "responses").write_text("a file where a folder should be")
    bench.start_worker(simulator)

    failed = command.run()
    assert failed.returncode == 1, failed.stderr
    assert "responses" in last_object(failed)["error"]["message"]

    (root / "responses").unlink()
    again = command.run()
    assert again.returncode == 0, again.stderr
    assert_whole(command)
    assert len(simulator.batches()) == 1
