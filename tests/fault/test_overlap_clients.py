"""Clients whose work overlaps: each request is bought once, each output is whole, and nobody waits for ever."""

from collections.abc import Callable
from pathlib import Path

from tests.fault.clients import assert_answered, start_client, wait_until, write_rows
from tests.fault.judge import CommandLine, answered_twice, sent
from tests.stack import Bench, RunningSimulator


def test_two_clients_over_overlapping_rows_buy_each_once(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Rows 0 to 399 and 200 to 599, in several batches each, started at the same instant."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
    bench.start_worker(simulator)
    options = ("--max-requests-per-batch", "90")
    first = start_client(command, write_rows(tmp_path, "a.parquet", 0, 400), tmp_path / "a", *options)
    second = start_client(command, write_rows(tmp_path, "b.parquet", 200, 400), tmp_path / "b", *options)

    assert first.popen.wait(120) == 0, first.output
    assert second.popen.wait(120) == 0, second.output

    assert_answered(tmp_path / "a", 0, 400)
    assert_answered(tmp_path / "b", 200, 400)
    assert sum(sent(simulator)) == 600
    assert answered_twice(simulator) == {}


def test_three_planners_at_once_over_the_same_rows(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """One owns the rows; the others wait for it and publish the same answers."""
    simulator = start_simulator()
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
    bench.start_worker(simulator)
    source = write_rows(tmp_path, "source.parquet", 0, 300)

    clients = [start_client(command, source, tmp_path / f"out-{number}") for number in range(3)]

    for number, client in enumerate(clients):
        assert client.popen.wait(120) == 0, client.output
        assert_answered(tmp_path / f"out-{number}", 0, 300)
    assert sent(simulator) == [300]
    assert answered_twice(simulator) == {}


def test_one_is_canceled_and_the_other_goes_on(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """The one that waited plans what is missing and buys it: no row is left, none that was answered is bought again."""
    simulator = start_simulator("hold=2", seconds=0.2)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
    bench.start_worker(simulator)
    options = ("--max-requests-per-batch", "100", "--max-in-flight-batches", "1")
    canceled = start_client(command, write_rows(tmp_path, "a.parquet", 0, 300), tmp_path / "a", *options)
    # The first batch is answered and stored, the second is out.
    wait_until(lambda: len(simulator.batches()) == 2)
    other = start_client(command, write_rows(tmp_path, "b.parquet", 0, 300), tmp_path / "b", *options)
    other.wait_for_line("Waiting for r1")

    cancel = command.call("cancel", "r1")
    simulator.clear()

    assert cancel.returncode == 0, cancel.stderr
    assert canceled.popen.wait(60) == 3, canceled.output
    assert other.popen.wait(120) == 0, other.output
    assert_answered(tmp_path / "b", 0, 300)
    assert answered_twice(simulator) == {}
    # The same command as the canceled one: all is answered by now.
    again = start_client(command, tmp_path / "a.parquet", tmp_path / "a", *options)
    assert again.popen.wait(60) == 0, again.output
    assert_answered(tmp_path / "a", 0, 300)
    assert answered_twice(simulator) == {}


def test_one_is_killed_and_the_other_goes_on(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """A run outlives its client: the other waits for it as before."""
    simulator = start_simulator("hold")
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
    bench.start_worker(simulator)
    killed = start_client(command, write_rows(tmp_path, "a.parquet", 0, 100), tmp_path / "a")
    wait_until(lambda: len(simulator.batches()) == 1)
    other = start_client(command, write_rows(tmp_path, "b.parquet", 50, 100), tmp_path / "b")
    wait_until(lambda: len(simulator.batches()) == 2)

    killed.kill()
    simulator.clear()

    assert other.popen.wait(120) == 0, other.output
    assert_answered(tmp_path / "b", 50, 100)
    assert sent(simulator) == [100, 50]
    assert answered_twice(simulator) == {}
