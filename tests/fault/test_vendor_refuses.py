"""A body that the vendor calls too large, in mid-run: the run ends and says so, keeps what it has, and the next one buys only the rest."""

from collections.abc import Callable
from pathlib import Path

from tests.fault.clients import wait_until
from tests.fault.judge import CommandLine, assert_whole, last_object, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]
ROWS = 6


def test_a_batch_that_is_too_large_fails_the_run_and_the_next_buys_the_rest(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """The batch that is out is collected first; the error names shard, size and status."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source(ROWS)
    options = ("--max-requests-per-batch", "2", "--max-in-flight-batches", "1", "--no-preflight")
    assert command.run("--detach", *options).returncode == 0
    wait_until(lambda: bool(simulator.batches()))
    simulator.clear()
    simulator.switch_on("413", "all")
    wait_until((Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated" / "done" / "1.json").exists)

    told = " ".join(command.call("status", "r1").stdout.split())
    assert "Shard 1 of batch run r1 (2 requests" in told
    assert "HTTP 413" in told
    assert "lower max_requests_per_batch" in told
    assert sent(simulator) == [2]

    simulator.clear()
    again = command.run(*options)

    assert again.returncode == 0, again.stderr
    assert last_object(again)["requests"] == {"asked": ROWS - 2, "already_answered": 2, "in_flight": 0}
    assert sent(simulator) == [2, 2, 2]
    assert_whole(command, ROWS)
