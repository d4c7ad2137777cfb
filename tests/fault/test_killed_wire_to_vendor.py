"""The network between the worker and the vendor is cut before, in, and after an upload, and while results are read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy
from tests.fault.clients import assert_answered, start_client, wait_until, write_rows
from tests.fault.judge import CommandLine, answered_twice, sent
from tests.stack import Bench, Process, RunningSimulator

ROWS = 400


@pytest.fixture
def wire(start_simulator: Callable[..., RunningSimulator]) -> tuple[RunningSimulator, int]:
    simulator = start_simulator()
    return simulator, int(simulator.url.rpartition(":")[2])


def start(
    bench: Bench, simulator: RunningSimulator, wire: Proxy, folder: Path, prepare: Callable[[], None] = lambda: None
) -> tuple[Process, CommandLine]:
    """Start a worker behind the wire and a client; what happens to the wire first happens once the worker is ready."""
    bench.start_worker(replace(simulator, url=f"http://127.0.0.1:{wire.port}"))
    prepare()
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    return start_client(command, write_rows(folder, "source.parquet", 0, ROWS), folder / "out", "--no-preflight"), command


def test_no_connection_at_first_is_waited_out(bench: Bench, wire: tuple[RunningSimulator, int], tmp_path: Path) -> None:
    """Nothing was sent for certain, so nothing has to be settled."""
    simulator, port = wire
    with Proxy(port) as proxy:
        client, _ = start(bench, simulator, proxy, tmp_path, proxy.cut)
        wait_until(lambda: bool(list((tmp_path / "root" / "simulated" / "log").glob("*.json"))))
        proxy.open()
        assert client.popen.wait(120) == 0, client.output
    assert_answered(tmp_path / "out", 0, ROWS)
    assert sent(simulator) == [ROWS]


@pytest.mark.parametrize("after_bytes", [2_000, 100_000])
def test_body_that_was_cut_short_is_sent_anew(after_bytes: int, bench: Bench, wire: tuple[RunningSimulator, int], tmp_path: Path) -> None:
    """The vendor accepts no body that is cut short: one batch comes of it."""
    simulator, port = wire
    with Proxy(port) as proxy:
        client, _ = start(bench, simulator, proxy, tmp_path, lambda: proxy.cut_after(after_bytes))
        assert client.popen.wait(120) == 0, client.output
        assert proxy.cuts == 1
    assert_answered(tmp_path / "out", 0, ROWS)
    assert sent(simulator) == [ROWS]


def test_batch_whose_reply_was_lost_on_the_wire_is_not_bought_again(
    bench: Bench, wire: tuple[RunningSimulator, int], tmp_path: Path
) -> None:
    """The whole body arrived, the connection died before the reply: the batch is found in the vendor's list."""
    simulator, port = wire
    with Proxy(port) as proxy:
        client, _ = start(bench, simulator, proxy, tmp_path, lambda: proxy.lose_reply_after(50_000))
        assert client.popen.wait(120) == 0, client.output
        assert proxy.cuts == 1
    assert_answered(tmp_path / "out", 0, ROWS)
    assert sent(simulator) == [ROWS]
    assert answered_twice(simulator) == {}


def test_connection_lost_while_a_batch_is_looked_at_and_collected(bench: Bench, wire: tuple[RunningSimulator, int], tmp_path: Path) -> None:
    """Looks and downloads are repeated until they succeed."""
    simulator, port = wire
    simulator.switch_on("hold")
    with Proxy(port) as proxy:
        client, _ = start(bench, simulator, proxy, tmp_path)
        wait_until(lambda: bool(list((tmp_path / "root" / "simulated" / "submissions").rglob("1.json"))))
        proxy.cut()
        simulator.clear()
        simulator.switch_on("cut-results", 4)
        proxy.open()
        assert client.popen.wait(120) == 0, client.output
    assert_answered(tmp_path / "out", 0, ROWS)
    assert sent(simulator) == [ROWS]
