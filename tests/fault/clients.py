"""Clients as processes that go on while the test does something else, and a Temporal server that can be killed and started again."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from temporalio.client import Client

from claude_batch_dagster.embedded.server import temporal_command
from claude_batch_dagster.storage.store import Store
from tests.fault.judge import CommandLine
from tests.stack import START_S, Bench, Process, free_port


def write_rows(folder: Path, name: str, first: int, count: int) -> Path:
    """Write a source with some of the texts that all sources of a test share."""
    ids = range(first, first + count)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": [f"Review {n}: the tent kept us dry, its poles are light." for n in ids]}), folder / name)
    return folder / name


def start_client(command: CommandLine, source: Path, output: Path, *options: str) -> Process:
    """Start `claude-batch run` of one source; it ends with the test."""
    arguments = ["--source", str(source), "--task", "summarize", "--column", "text", "--key", "id", "--output", str(output), "--json"]
    process = Process.start([sys.executable, "-m", "claude_batch_dagster.cli", "run", *arguments, *options], command.environ())
    command.bench.stack.callback(process.stop)
    return process


def assert_answered(output: Path, first: int, count: int) -> None:
    """Every row is there, in order, with the answer to its own text."""
    rows = pq.read_table(output / "part-0.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(first, first + count))
    assert {row["status"] for row in rows} == {"succeeded"}
    assert [row["summary"] for row in rows] == [
        f"[simulated] Review {row['id']}: the tent kept us dry, its poles are light." for row in rows
    ]


def wait_until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class KeptTemporal:
    """A Temporal server on one port that keeps its state in a file."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._database = folder / "temporal.db"
        self._ui_port = free_port()
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process.start(temporal_command(self._database, port=self.port, ui_port=self._ui_port), {})
        asyncio.run(self._connect())

    @property
    def pid(self) -> int:
        """The running server's."""
        assert self._process is not None
        return self._process.popen.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.stop()

    def lose_database(self) -> None:
        """Delete what a killed server kept."""
        for path in self._database.parent.glob("temporal.db*"):
            path.unlink()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    async def _connect(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                await Client.connect(self.address)
                return
            except RuntimeError:
                assert time.monotonic() < deadline, self._process and self._process.output
                await asyncio.sleep(0.1)


@contextmanager
def kept_temporal(folder: Path) -> Iterator[KeptTemporal]:
    """A running server of the test's own."""
    server = KeptTemporal(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def own_bench(address: str, folder: Path) -> Iterator[Bench]:
    """A bench at a server of the test's own, or behind a proxy."""
    with ExitStack() as stack:
        yield Bench(address=address, task_queue=f"test-{time.monotonic_ns()}", store=Store(str(folder / "root")), stack=stack)
