"""The root, or the root and the Temporal database, deleted: what was paid for is harvested, and the next run pays only the rest."""

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fault.judge import ROWS, CommandLine, answered_twice, assert_whole, last_object
from tests.stack import TEMPORAL, Bench, Driver, Process, RunningSimulator, free_port

JOB = ("--source", "source.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", "--json")
HALF = ROWS // 2


def delete(root: Path) -> None:
    """Delete a root as a person does: what a worker writes into it meanwhile goes with it, in a further try."""
    for _ in range(50):
        with suppress(OSError):
            shutil.rmtree(root)
            return
        time.sleep(0.1)
    shutil.rmtree(root)


@pytest.fixture
def start_temporal(tmp_path: Path) -> Iterator[Callable[[], tuple[Process, str]]]:
    """Start Temporal servers on one database file; they end with the test."""
    with ExitStack() as stack:

        def start() -> tuple[Process, str]:
            port = free_port()
            arguments = [
                str(TEMPORAL),
                "server",
                "start-dev",
                "--headless",
                "--port",
                str(port),
                "--log-level",
                "error",
                "--ip",
                "127.0.0.1",
            ]
            process = Process.start([*arguments, "--db-filename", str(tmp_path / "temporal.db")], {})
            stack.callback(process.stop)
            return process, f"127.0.0.1:{port}"

        yield start


def post_batch(simulator: RunningSimulator, *custom_ids: str) -> str:
    """Create a batch that is none of ours, through plain HTTP."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        simulator.url + "/v1/messages/batches",
        data=json.dumps({"requests": [{"custom_id": custom_id, "params": params} for custom_id in custom_ids]}).encode(),
        headers={"content-type": "application/json", "x-api-key": "any", "anthropic-version": "2026-10-21"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.loads(reply.read())["id"])


def wait_for_batches(simulator: RunningSimulator, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while len(simulator.batches()) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def wait_for_second_look(simulator: RunningSimulator) -> None:
    """Wait until a recovery has looked at the list, and looks at it again."""
    first = simulator.books()["calls"].get("list", 0)
    deadline_s = time.monotonic() + 60
    while simulator.books()["calls"].get("list", 0) < first + 4:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def recover(command: CommandLine, *options: str, code: int = 0) -> dict[str, Any]:
    finished = command.call("recover", *JOB, *options)
    assert finished.returncode == code, finished.stderr + finished.stdout
    return last_object(finished)


async def find_status(driver: Driver, workflow_id: str) -> str:
    status = (await driver.client.get_workflow_handle(workflow_id).describe()).status
    assert status is not None
    return status.name


def root_of(command: CommandLine) -> Path:
    return Path(command.bench.store.uri)


def test_root_and_temporal_database_deleted(
    bench: Bench,
    start_simulator: Callable[..., RunningSimulator],
    start_temporal: Callable[[], tuple[Process, str]],
    tmp_path: Path,
) -> None:
    """One batch had ended, one was in progress, others are foreign: all of ours is harvested, and nothing is paid twice."""
    simulator = start_simulator()
    server, bench.address = start_temporal()
    worker = bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run("--limit", str(HALF)).returncode == 0
    foreign = post_batch(simulator, "customer-1-extraction", "customer-2-extraction")
    twin = post_batch(simulator, f"summaries-{'0' * 32}-01234567")
    simulator.switch_on("hold", 4)
    assert command.run("--detach").returncode == 0
    wait_for_batches(simulator, 4)
    worker.kill()
    server.kill()
    delete(root_of(command))
    (tmp_path / "temporal.db").unlink()

    _, bench.address = start_temporal()
    bench.start_worker(simulator)
    left = recover(command, "--no-wait", code=3)
    assert left["batches"]["in_progress"] == 1
    assert left["answers"] == {"succeeded": HALF}
    assert left["requests"] == {"asked": ROWS - HALF, "already_answered": HALF, "in_flight": 0}

    with ThreadPoolExecutor(1) as threads:
        recovering = threads.submit(recover, command)
        wait_for_second_look(simulator)
        simulator.clear()
        found = recovering.result(90)
    assert found["batches"] == {
        "looked": 4,
        "harvested": 1,
        "stored_before": 1,
        "left_to_runs": 0,
        "other": 1,
        "foreign": 1,
        "archived": 0,
        "unreadable": 0,
        "strays": 0,
        "in_progress": 0,
    }
    assert (found["answers"], found["requests"]["asked"]) == ({"succeeded": ROWS - HALF}, 0)
    stored = [path.stem for path in root_of(command).glob("simulated/responses/*/*/*.parquet")]
    assert len(stored) == 2
    assert not {foreign, twin} & set(stored)
    assert not list(root_of(command).glob("simulated/recoveries/*/*"))

    again = recover(command)
    assert (again["batches"]["harvested"], again["answers"]) == (0, {})

    command.write_source(ROWS + 5)
    ran = last_object(command.run())
    assert ran["requests"] == {"asked": 5, "already_answered": ROWS, "in_flight": 0}
    assert_whole(command, ROWS + 5)


def test_root_deleted_in_mid_run_is_refused_and_recovered(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The run's workflow lives on without its records: a new run would pay again, so it refuses; recover takes over."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    started = last_object(command.run("--detach"))
    wait_for_batches(simulator, 1)
    delete(root_of(command))

    refused = command.run()
    assert refused.returncode == 1
    assert last_object(refused)["error"]["type"] == "RootError"
    assert started["workflow_id"] in refused.stderr
    assert "claude-batch recover" in refused.stderr
    assert len(simulator.batches()) == 1
    # The refused run pinned the root again; that is no reason to let the next one through.
    assert command.run().returncode == 1

    simulator.clear()
    found = recover(command)
    assert found["ended_runs"] == ["r1"]
    assert bench.run(lambda driver: find_status(driver, started["workflow_id"])) == "TERMINATED"
    assert found["answers"] == {"succeeded": ROWS}

    ran = last_object(command.run())
    assert ran["requests"]["asked"] == 0
    assert_whole(command)


def test_root_deleted_while_a_batch_is_uploaded(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """Its batch comes into being after the root is gone: it is waited for, and harvested."""
    simulator = start_simulator("slow-upload=10")
    bench.start_worker(simulator, CLAUDE_BATCH_SEND_SECONDS="60")
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run("--detach").returncode == 0
    deadline_s = time.monotonic() + 60
    while not list(root_of(command).glob("simulated/submissions/*/*/0.json")):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    # The intent stands before the body is opened, without which nothing is sent.
    time.sleep(1)
    delete(root_of(command))
    finished = command.call("recover", *JOB, CLAUDE_BATCH_SETTLE_SECONDS="1")
    assert finished.returncode == 0, finished.stderr
    assert "is sending a batch; it is waited for" in finished.stderr
    assert last_object(finished)["answers"] == {"succeeded": ROWS}
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command)


@pytest.mark.parametrize("point", ["put:responses.before", "put:responses.after", "put:recoveries.after"])
def test_worker_killed_while_it_harvests(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path, point: str
) -> None:
    """The next worker goes on where it was: every answer is stored, none twice."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run("--max-requests-per-batch", "10").returncode == 0
    worker.stop()
    delete(root_of(command))
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=f"{point}=kill")
    with ThreadPoolExecutor(1) as threads:
        recovering = threads.submit(recover, command)
        worker.popen.wait(60)
        bench.start_worker(simulator)
        found = recovering.result(90)
    assert found["requests"] == {"asked": 0, "already_answered": ROWS, "in_flight": 0}
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command)


def test_batches_of_an_open_run_are_left_to_it(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """On a root that lost nothing recover changes nothing: the open run collects its own batch."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run("--detach").returncode == 0
    wait_for_batches(simulator, 1)
    found = recover(command)
    assert (found["batches"]["in_progress"], found["batches"]["harvested"], found["ended_runs"]) == (0, 0, [])
    assert found["requests"] == {"asked": 0, "already_answered": 0, "in_flight": ROWS}
    simulator.clear()
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command)
    assert len(simulator.batches()) == 1
    assert answered_twice(simulator) == {}
