"""Whole runs on storage that fails: an object store whose worker is killed, that is down, or that may not be written; a disk that is full."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.storage.store import Store
from tests.fault.judge import ROWS, CommandLine, answered_twice, assert_whole, last_object
from tests.fault.object_store import BUCKET, ObjectStore, Request, run_object_store
from tests.fault.test_storage_disk import fill, small_disk
from tests.stack import Bench, Process, RunningSimulator

prefixes = count()


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with run_object_store() as found:
        yield found


@dataclass(frozen=True, kw_only=True)
class Lake:
    """A job whose source, root and output are all in one bucket."""

    command: CommandLine
    prefix: str
    server: ObjectStore

    @property
    def environ(self) -> dict[str, str]:
        return {**self.server.environ(), "CLAUDE_BATCH_ROOT": f"{self.prefix}/root"}

    def run(self) -> "subprocess.CompletedProcess[str]":
        return self.command.run("--source", f"{self.prefix}/source", "--output", f"{self.prefix}/out", **self.environ)

    def rows(self) -> list[dict[str, Any]]:
        return list(pq.read_table(Store(f"{self.prefix}/out").open("part-0.parquet")).to_pylist())

    def assert_whole(self) -> None:
        written = self.rows()
        assert [row["id"] for row in written] == list(range(ROWS))
        assert {row["status"] for row in written} == {"succeeded"}
        assert answered_twice(self.command.simulator) == {}
        assert len(self.command.simulator.batches()) == 1


@pytest.fixture
def lake(
    server: ObjectStore, bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lake]:
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    command = CommandLine(bench=bench, simulator=start_simulator(seconds=2), folder=tmp_path / "work")
    command.write_source()
    lake = Lake(command=command, prefix=f"s3://{BUCKET}/job-{next(prefixes)}", server=server)
    Store(f"{lake.prefix}/source").put_file("part-0.parquet", command.folder / "source.parquet")
    server.requests.clear()
    yield lake
    server.open()


def beside(run: Callable[[], "subprocess.CompletedProcess[str]"]) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    """Start a command in a thread; return what waits for its end."""
    ended: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: ended.append(run()))
    thread.start()

    def join() -> "subprocess.CompletedProcess[str]":
        thread.join(180)
        return ended[0]

    return join


def wait_for(found: Callable[[], object], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline, f"nothing within {timeout_s} s"
        time.sleep(0.1)


@pytest.mark.parametrize("point", ["put:submissions.after@2", "put:responses.after", "put:done.before"])
def test_a_run_on_an_object_store_survives_its_worker_and_is_asked_once(lake: Lake, bench: Bench, point: str) -> None:
    name, _, nth = point.partition("@")
    doomed = bench.start_worker(lake.command.simulator, CLAUDE_BATCH_FAULT_POINTS=f"{name}=kill" + (f"@{nth}" if nth else ""))
    first = beside(lake.run)
    assert doomed.popen.wait(90) == -signal.SIGKILL, doomed.output
    bench.start_worker(lake.command.simulator)

    assert first().returncode == 0, first().stderr
    lake.assert_whole()
    again = lake.run()
    assert again.returncode == 0, again.stderr
    assert last_object(again)["requests"]["asked"] == 0
    lake.assert_whole()


@pytest.mark.parametrize("status", [503, 409])
def test_a_store_that_is_down_for_a_while_is_waited_for(lake: Lake, bench: Bench, status: int) -> None:
    """503 is tried again by the store's client, 409 by Temporal and the waiting command."""
    bench.start_worker(lake.command.simulator)
    run = beside(lake.run)
    wait_for(lambda: lake.command.simulator.batches())
    lake.server.refuse = lambda request: (status, "SlowDown")
    before = len(lake.server.requests)
    time.sleep(6)
    refused = len(lake.server.requests) - before
    lake.server.open()

    assert run().returncode == 0, run().stderr
    assert refused > 3
    if status == 409:
        assert "cannot be read now" in run().stderr
    lake.assert_whole()


@pytest.mark.parametrize(("folder", "kind"), [("root", "RootError"), ("out", "OutputError")])
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_sent(lake: Lake, bench: Bench, folder: str, kind: str) -> None:
    bench.start_worker(lake.command.simulator)

    def forbid(request: Request) -> tuple[int, str] | None:
        return (403, "AccessDenied") if request.method == "PUT" and f"/{folder}/" in request.path else None

    lake.server.refuse = forbid
    refused = lake.run()
    assert refused.returncode == 1
    error = last_object(refused)["error"]
    assert error["type"] == kind
    assert "permission is denied (403 Forbidden AccessDenied)" in error["message"]
    assert lake.command.simulator.batches() == []

    lake.server.open()
    assert lake.run().returncode == 0
    lake.assert_whole()


@dataclass(frozen=True, kw_only=True)
class DiskJob:
    command: CommandLine
    disk: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"CLAUDE_BATCH_ROOT": str(self.disk / "root")}

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.command.call(*arguments, **self.environ)

    def records(self, folder: str) -> list[str]:
        return Store(str(self.disk / "root" / "simulated")).list(folder)

    def wait_for_question(self) -> None:
        def asks() -> bool:
            shown = " ".join(self.call("status", "r1").stdout.split())
            return "no space is left there" in shown and "Free some space there" in shown and "claude-batch answer r1 resume" in shown

        wait_for(asks)

    def finish(self) -> None:
        assert self.call("answer", "r1", "resume").returncode == 0
        finished = self.command.run(**self.environ)
        assert finished.returncode == 0, finished.stderr
        assert_whole(self.command)
        assert len(self.command.simulator.batches()) == 1


@pytest.fixture
def disk_job(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> Iterator[DiskJob]:
    """A job whose root is a small disk of its own."""
    command = CommandLine(bench=bench, simulator=start_simulator(seconds=2), folder=tmp_path / "work")
    command.write_source()
    with small_disk(tmp_path / "disk", "8m") as disk:
        yield DiskJob(command=command, disk=disk)


def test_a_disk_that_is_full_before_a_batch_is_sent_pauses_the_run_and_nothing_is_sent(disk_job: DiskJob, bench: Bench) -> None:
    worker = bench.start_worker(disk_job.command.simulator, CLAUDE_BATCH_FAULT_POINTS="list:batches.before=stop")
    assert disk_job.command.run("--detach", **disk_job.environ).returncode == 0
    wait_for(lambda: is_stopped(worker))
    filler = fill(disk_job.disk)
    worker.popen.send_signal(signal.SIGCONT)

    disk_job.wait_for_question()
    assert disk_job.command.simulator.batches() == []
    assert disk_job.records("submissions") == []
    filler.unlink()
    disk_job.finish()


def test_a_disk_that_is_full_when_a_batch_was_created_records_it_once_there_is_space(disk_job: DiskJob, bench: Bench) -> None:
    """The reply is kept in memory and tried again: without it nobody could know the batch."""
    worker = bench.start_worker(disk_job.command.simulator, CLAUDE_BATCH_FAULT_POINTS="post.after=stop")
    assert disk_job.command.run("--detach", **disk_job.environ).returncode == 0
    wait_for(lambda: is_stopped(worker))
    filler = fill(disk_job.disk)
    worker.popen.send_signal(signal.SIGCONT)
    time.sleep(3)
    told = {path: Store(str(disk_job.disk / "root" / "simulated")).get(path) for path in disk_job.records("submissions")}
    assert [path.rpartition("/")[2] for path in told] == ["0.json"], told
    filler.unlink()

    finished = disk_job.command.run(**disk_job.environ)
    assert finished.returncode == 0, finished.stderr
    assert_whole(disk_job.command)
    assert len(disk_job.command.simulator.batches()) == 1


def test_a_disk_that_is_full_when_answers_are_stored_pauses_the_run_and_they_are_kept(disk_job: DiskJob, bench: Bench) -> None:
    bench.start_worker(disk_job.command.simulator)
    assert disk_job.command.run("--detach", **disk_job.environ).returncode == 0
    wait_for(lambda: len(disk_job.records("submissions")) == 2)
    filler = fill(disk_job.disk)

    disk_job.wait_for_question()
    assert disk_job.records("responses") == []
    filler.unlink()
    disk_job.finish()


def test_a_disk_that_is_full_refuses_a_job_before_anything_is_sent(disk_job: DiskJob, bench: Bench) -> None:
    bench.start_worker(disk_job.command.simulator)
    filler = fill(disk_job.disk)
    refused = disk_job.command.run(**disk_job.environ)
    assert refused.returncode == 1
    assert last_object(refused)["error"]["type"] == "RootError"
    assert "space" in last_object(refused)["error"]["message"]
    assert disk_job.command.simulator.batches() == []
    filler.unlink()
    assert disk_job.command.run(**disk_job.environ).returncode == 0
    assert_whole(disk_job.command)


def is_stopped(process: Process) -> bool:
    return Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
