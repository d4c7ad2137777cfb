"""Requests that were never answered: expired, overloaded, broken at the vendor, canceled by others."""

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import ROWS, CommandLine, answered_twice, assert_whole, last_object, rows_by_status, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def start(bench: Bench, simulator: RunningSimulator, folder: Path, rows: int = ROWS) -> CommandLine:
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    command.write_source(rows)
    return command


def wait_for_batch(simulator: RunningSimulator) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := simulator.batches():
            return str(found[0]["id"])
        time.sleep(0.1)
    raise AssertionError("nothing was sent")


def cancel_at_vendor(simulator: RunningSimulator, batch_id: str) -> None:
    """Cancel a batch as somebody does it in the Console."""
    headers = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
    address = f"{simulator.url}/v1/messages/batches/{batch_id}/cancel"
    with urllib.request.urlopen(urllib.request.Request(address, method="POST", headers=headers), timeout=10) as reply:
        assert reply.status == 200


def test_what_was_never_answered_is_asked_again_in_the_same_run(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Expired, overloaded and broken requests, unchanged, in one further batch; no answer is paid twice."""
    simulator = start_simulator("expire=5", "errored-overloaded=5", "errored-api=5")
    command = start(bench, simulator, tmp_path / "work")

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert_whole(command)
    first, second = sent(simulator)
    assert first == ROWS
    assert 5 <= second <= 15


def test_what_expires_each_time_is_left_to_the_next_run(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Three times in all, and it costs nothing; the next run asks it by itself."""
    simulator = start_simulator("expire=all")
    command = start(bench, simulator, tmp_path / "work")

    finished = command.run("--no-preflight")

    assert finished.returncode == 3, finished.stderr
    assert rows_by_status(finished) == {"total": ROWS, "expired": ROWS}
    assert last_object(finished)["cost_usd"] == 0
    assert sent(simulator) == [ROWS] * 3

    simulator.clear()
    again = command.run()

    assert last_object(again)["requests"]["asked"] == ROWS
    assert_whole(command)


def test_a_batch_that_others_canceled_is_not_sent_again_by_its_run(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Who canceled it meant it: its run ends. What it had answered is kept, the next run asks the rest."""
    simulator = start_simulator(seconds=4)
    command = start(bench, simulator, tmp_path / "work")
    assert command.run("--detach").returncode == 0
    batch_id = wait_for_batch(simulator)
    time.sleep(1)
    cancel_at_vendor(simulator, batch_id)

    status = wait_for_end(command)
    assert "canceled" in status
    assert sent(simulator) == [ROWS]
    [batch] = simulator.batches()

    again = command.run()

    assert again.returncode == 0, again.stderr
    assert sent(simulator) == [ROWS, batch["outcomes"]["canceled"]]
    assert last_object(again)["requests"]["already_answered"] == batch["outcomes"].get("succeeded", 0)
    assert_whole(command)
    assert answered_twice(simulator) == {}


def wait_for_end(command: CommandLine) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list((Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated" / "done").glob("*.json")):
            return command.call("status", "r1").stdout
        time.sleep(0.2)
    raise AssertionError("the run did not end")
