"""The Temporal server is killed in mid-run, with and without its database: the records go on where they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault.clients import assert_answered, kept_temporal, own_bench, start_client, wait_until, write_rows
from tests.fault.judge import CommandLine, answered_twice, last_object, sent
from tests.stack import RunningSimulator

ROWS = 30


def test_killed_and_restarted_server_is_waited_for(start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """Neither the client nor the run notices more than a pause."""
    simulator = start_simulator("hold")
    with kept_temporal(tmp_path) as temporal, own_bench(temporal.address, tmp_path) as bench:
        command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
        worker = bench.start_worker(simulator)
        source = write_rows(tmp_path, "source.parquet", 0, ROWS)
        client = start_client(command, source, tmp_path / "out", "--max-requests-per-batch", "10", "--max-in-flight-batches", "1")
        wait_until(lambda: len(simulator.batches()) == 1)

        temporal.kill()
        simulator.clear()
        temporal.start()

        assert client.popen.wait(120) == 0, client.output
        assert worker.popen.poll() is None
        assert_answered(tmp_path / "out", 0, ROWS)
        assert sent(simulator) == [10, 10, 10]
        assert answered_twice(simulator) == {}


@pytest.mark.parametrize("killed", [False, True], ids=["client waits", "client killed too"])
def test_run_whose_database_is_lost_is_drained_and_its_rest_is_asked_by_the_same_command(
    killed: bool, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The batch that was out is collected, not bought again; what was not sent yet is asked in a run of its own."""
    simulator = start_simulator("hold")
    with kept_temporal(tmp_path) as temporal, own_bench(temporal.address, tmp_path) as bench:
        command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
        bench.start_worker(simulator)
        options = ("--max-requests-per-batch", "10", "--max-in-flight-batches", "1")
        source = write_rows(tmp_path, "source.parquet", 0, ROWS)
        client = start_client(command, source, tmp_path / "out", *options)
        wait_until(lambda: len(simulator.batches()) == 1)

        if killed:
            client.kill()
        temporal.kill()
        temporal.lose_database()
        simulator.clear()
        temporal.start()

        if not killed:
            # A living owner's run is drained after a minute.
            assert client.popen.wait(180) in (0, 3), client.output
        again = command.run(*options, timeout_s=180)
        assert again.returncode == 0, again.stderr
        assert last_object(again)["rows"]["succeeded"] == ROWS
        assert_answered(tmp_path / "out", 0, ROWS)
        assert sum(sent(simulator)) == ROWS
        assert answered_twice(simulator) == {}
