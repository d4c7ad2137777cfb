"""The network between Temporal and everybody else is cut, held, or loses every reply: a pause, and nothing more."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy
from tests.fault.clients import assert_answered, own_bench, start_client, wait_until, write_rows
from tests.fault.judge import CommandLine, answered_twice, sent
from tests.stack import RunningSimulator

ROWS = 30


@pytest.mark.parametrize(("how", "for_s"), [("cut", 5), ("mute", 5), ("hold", 20)])
def test_run_goes_on_when_the_wire_is_back(
    how: str, for_s: float, temporal_server: str, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Held for longer than a heartbeat's timeout, the worker's own attempts are given up meanwhile."""
    simulator = start_simulator("hold=2")
    with Proxy(int(temporal_server.rpartition(":")[2])) as wire, own_bench(f"127.0.0.1:{wire.port}", tmp_path) as bench:
        command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
        worker = bench.start_worker(simulator)
        options = ("--max-requests-per-batch", "10", "--max-in-flight-batches", "1")
        client = start_client(command, write_rows(tmp_path, "source.parquet", 0, ROWS), tmp_path / "out", *options)
        wait_until(lambda: len(simulator.batches()) == 2)

        getattr(wire, how)()
        simulator.clear()
        time.sleep(for_s)
        wire.open()

        assert client.popen.wait(120) == 0, client.output
        assert worker.popen.poll() is None, worker.output
        assert_answered(tmp_path / "out", 0, ROWS)
        assert sent(simulator) == [10, 10, 10]
        assert answered_twice(simulator) == {}
