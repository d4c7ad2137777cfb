"""A real Temporal server, the simulator over real HTTP, and the worker as a real process."""

import asyncio
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from temporalio.client import Client, WorkflowHandle, WorkflowHistory

from claude_batch_dagster.core.contract import PROGRESS_QUERY, WORKFLOW_TYPE, Progress, RunInput, RunReport, workflow_id
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.records import CostRange, DoneRecord, KeysRef, LogEntry, Owner, RootRecord, SourceRef, TaskRef
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.submission import Mode, Record
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import OwnedKeys, owned_keys_path, pack_keys
from claude_batch_dagster.storage.plans import admit_entry, list_submissions, pin_root, read_done
from claude_batch_dagster.storage.staging import ShardStager
from claude_batch_dagster.storage.store import Store
from tests.lines import encode_line
from tests.prefork import popen

T = TypeVar("T")

REPOSITORY = Path(__file__).parents[1]
TEMPORAL = Path(sys.executable).parent / "temporal"
START_S = 90.0
END_S = 120.0
STACK_TRACE = re.compile(r'"stackTrace": "(?:[^"\\]|\\.)*"')
"""It names the folders of the machine that recorded it."""
HISTORIES = Path(__file__).parent / "integration" / "histories"
# RECORD_HISTORIES=1 writes the histories of these tests, which test_worker_replay.py replays.
RECORDED = {
    "test_two_shards_are_sent_once_collected_and_reported": "two_shards",
    "test_what_failed_on_the_way_is_asked_again_in_the_next_round": "second_round",
    "test_continues_as_new_with_its_live_batches[3]": "continued",
    "test_drain_after_a_terminated_workflow_collects_what_lives": "drained",
    "test_cancel_stops_batches_at_the_vendor_and_keeps_their_answers": "canceled",
    "test_cancel_while_a_body_is_uploaded_cancels_the_batch_that_it_becomes": "canceled_in_upload",
    "test_a_shard_that_is_settled_does_not_hold_the_others_up": "settled",
    "test_what_was_never_listed_is_asked_after_three_times_and_sent_on_an_answer": "parked",
    "test_a_limit_that_is_reached_pauses_the_run_until_somebody_says_resume[spend-limit]": "paused",
    "test_a_refusal_in_mid_run_sees_live_batches_through_and_sends_no_more": "refused",
}
# Those of other workflows, which clients start; `Bench.record` names them.
RECORDED_OF_CLIENTS = ("recovered", "recovery_canceled", "audited")
MODEL = "claude-haiku-5-5"
SUMMARIZE = Summarize(name="summaries", column="text", model=MODEL, max_words=20)


@dataclass(kw_only=True)
class Process:
    """A child process whose output is read as it comes."""

    popen: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    seen: "queue.Queue[str]" = field(default_factory=queue.Queue)

    @classmethod
    def start(cls, arguments: Sequence[str], environ: dict[str, str]) -> "Process":
        started = popen(
            arguments,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        process = cls(popen=started)
        threading.Thread(target=process._read, daemon=True).start()
        return process

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.lines.append(line.rstrip("\n"))
            self.seen.put(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, text: str, timeout_s: float = START_S) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(queue.Empty):
                line = self.seen.get(timeout=0.1)
                if text in line:
                    return line
            if self.popen.poll() is not None and self.seen.empty():
                break
        raise AssertionError(f"{text!r} did not come (exit {self.popen.poll()}):\n{self.output}")

    def stop(self) -> int:
        for number in (signal.SIGCONT, signal.SIGTERM):
            with suppress(ProcessLookupError):
                self.popen.send_signal(number)
        try:
            return self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(10)
        finally:
            for pipe in (self.popen.stdin, self.popen.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def temporal_server() -> Iterator[str]:
    """The address of a Temporal dev server that keeps nothing."""
    port = free_port()
    process = Process.start(
        [str(TEMPORAL), "server", "start-dev", "--headless", "--port", str(port), "--log-level", "error", "--ip", "127.0.0.1"], {}
    )
    address = f"127.0.0.1:{port}"

    async def connect() -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                await Client.connect(address)
                return
            except RuntimeError:
                assert time.monotonic() < deadline, process.output
                await asyncio.sleep(0.1)

    try:
        asyncio.run(connect())
        yield address
    finally:
        process.stop()


@dataclass(kw_only=True)
class RunningSimulator:
    """The simulator as a process."""

    url: str
    process: Process

    def books(self) -> dict[str, Any]:
        return dict(msgspec.json.decode(self._call("GET", "/simulator/books")))

    def batches(self) -> list[dict[str, Any]]:
        return list(self.books()["batches"])

    def switch_on(self, name: str, number: float | str | None = None) -> None:
        self._call("POST", "/simulator/faults", msgspec.json.encode({"name": name, "n": number}))

    def clear(self) -> None:
        self._call("DELETE", "/simulator/faults")

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method, headers={"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return bytes(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None


@pytest.fixture
def start_simulator(tmp_path: Path) -> Iterator[Callable[..., RunningSimulator]]:
    """Start simulators; they end with the test."""
    with ExitStack() as stack:

        def start(*faults: str, seconds: float = 0.3, books: Path | None = None) -> RunningSimulator:
            arguments = [sys.executable, "-m", "claude_batch_dagster.simulator", "--port", "0", "--seconds", str(seconds)]
            arguments += ["--books", str(books or tmp_path / f"books-{time.monotonic_ns()}")]
            for fault in faults:
                arguments += ["--fault", fault]
            process = Process.start(arguments, {})
            stack.callback(process.stop)
            url = process.wait_for_line("simulator ready on").rpartition(" ")[2]
            return RunningSimulator(url=url, process=process)

        yield start


@dataclass(kw_only=True)
class Bench:
    """One root, one task queue, and what a test does with them."""

    address: str
    task_queue: str
    store: Store
    stack: ExitStack
    environ: dict[str, str] = field(default_factory=dict)
    records_as: str | None = None

    def start_worker(
        self,
        simulator: RunningSimulator,
        *,
        key: str = "any",
        program: Sequence[str] = ("-m", "temporal_worker"),
        arguments: Sequence[str] = (),
        **environ: str,
    ) -> Process:
        process = Process.start(
            [sys.executable, *program, *arguments],
            {
                "TEMPORAL_ADDRESS": self.address,
                "CLAUDE_BATCH_TASK_QUEUE": self.task_queue,
                "CLAUDE_BATCH_POLL_SECONDS": "0.2",
                "CLAUDE_BATCH_SETTLE_SECONDS": "1",
                "CLAUDE_BATCH_SEND_SECONDS": "3",
                "ANTHROPIC_BASE_URL": simulator.url,
                "ANTHROPIC_API_KEY": key,
                **self.environ,
                **environ,
            },
        )
        self.stack.callback(process.stop)
        process.wait_for_line("worker ready on task queue")
        return process

    def stage(self, texts: Sequence[str], **options: Any) -> LogEntry:
        return stage_plan(self.store, texts, **options)

    def records(self, entry: LogEntry) -> dict[tuple[int, int], list[Record]]:
        return list_submissions(self.store, entry.run_id)

    def kinds(self, entry: LogEntry) -> dict[tuple[int, int], list[str]]:
        return {place: [kind_of(record) for record in records] for place, records in self.records(entry).items()}

    def done(self, entry: LogEntry) -> DoneRecord:
        found = read_done(self.store, entry.number)
        assert found is not None
        return found

    def responses(self, entry: LogEntry) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in self.store.list(f"responses/simulator/{entry.tasks[0].task_key}"):
            rows += pq.read_table(self.store.open(path)).to_pylist()
        return rows

    def run(self, work: Callable[["Driver"], Awaitable[T]]) -> T:
        async def drive() -> T:
            return await work(Driver(client=await Client.connect(self.address), bench=self))

        return asyncio.run(drive())

    def record(self, workflow_type: str, name: str) -> None:
        """Write the newest history of a workflow that a client started here, where histories are recorded."""
        assert name in RECORDED_OF_CLIENTS
        if not os.environ.get("RECORD_HISTORIES"):
            return

        async def write(driver: "Driver") -> None:
            async def newest() -> WorkflowHistory | None:
                found = [
                    one async for one in driver.client.list_workflows(f"TaskQueue='{self.task_queue}' AND WorkflowType='{workflow_type}'")
                ]
                if not found or any(one.close_time is None for one in found):
                    return None
                latest = max(found, key=lambda one: one.start_time)
                return await driver.client.get_workflow_handle(latest.id, run_id=latest.run_id).fetch_history()

            keep_history(name, await until(newest))

        self.run(write)

    def finish(self, entry: LogEntry, **options: Any) -> RunReport:
        async def work(driver: Driver) -> RunReport:
            return await driver.result(await driver.start(entry, **options))

        return self.run(work)


@dataclass(kw_only=True)
class Driver:
    """Starts runs and looks at them, with short calls only."""

    client: Client
    bench: Bench

    async def start(self, entry: LogEntry, *, mode: Mode = Mode.RUN, events_before_continue: int = 4_000) -> WorkflowHandle[Any, RunReport]:
        return await self.client.start_workflow(
            WORKFLOW_TYPE,
            RunInput(
                root=self.bench.store.uri,
                number=entry.number,
                run_id=entry.run_id,
                mode=mode,
                events_before_continue=events_before_continue,
            ),
            id=workflow_id(entry.run_id),
            task_queue=self.bench.task_queue,
            result_type=RunReport,
        )

    async def result(self, handle: WorkflowHandle[Any, RunReport]) -> RunReport:
        await self.closed(handle)
        return await handle.result()

    async def closed(self, handle: WorkflowHandle[Any, RunReport]) -> str:
        """Wait for the end; return the status' name."""

        async def status() -> str | None:
            found = (await self.client.get_workflow_handle(handle.id).describe()).status
            assert found is not None
            return None if found.name in ("RUNNING", "CONTINUED_AS_NEW") else found.name

        name = await until(status)
        if self.bench.records_as is not None:
            keep_history(self.bench.records_as, await self.history(handle))
        return name

    async def progress(self, handle: WorkflowHandle[Any, RunReport]) -> Progress:
        return await self.client.get_workflow_handle(handle.id).query(PROGRESS_QUERY, result_type=Progress)

    async def history(self, handle: WorkflowHandle[Any, RunReport]) -> WorkflowHistory:
        return await self.client.get_workflow_handle(handle.id).fetch_history()


def keep_history(name: str, history: WorkflowHistory) -> None:
    """Write a history without what tells of the machine that recorded it."""
    text = STACK_TRACE.sub('"stackTrace": ""', history.to_json().replace(socket.gethostname(), "host"))
    HISTORIES.mkdir(exist_ok=True)
    (HISTORIES / f"{name}.json").write_text(text + "\n")


async def asked(driver: Driver, handle: "WorkflowHandle[Any, RunReport]") -> Progress:
    """Wait until the run asks a person; return its progress then."""

    async def asks() -> Progress | None:
        progress = await driver.progress(handle)
        return progress if progress.questions else None

    return await until(asks)


async def until(look: Callable[[], Awaitable[T | None]], timeout_s: float = END_S) -> T:
    """Look until there is something."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await look()
        if found is not None:
            return found
        assert time.monotonic() < deadline, f"nothing within {timeout_s} s"
        await asyncio.sleep(0.05)


def kind_of(record: Record) -> str:
    fields = msgspec.to_builtins(record)
    return f"{fields['kind']}:{fields['reason']}" if fields["kind"] == "closed" else str(fields["kind"])


def stage_plan(
    store: Store,
    texts: Sequence[str],
    *,
    number: int = 1,
    tasks: Sequence[ClaudeTask] = (SUMMARIZE,),
    max_requests: int = 100_000,
    max_in_flight: int = 2,
    max_attempts: int = 3,
    cap: int | None = None,
    worst: int | None = 1_000,
    endpoint: str = "simulator",
) -> LogEntry:
    """Stage and admit a plan by hand, one request a text and task."""
    run_id = f"0192-test-{time.monotonic_ns()}"
    pin_root(store, RootRecord(root_id=f"root-{run_id}", endpoint=endpoint, temporal_namespace="default"))
    with store.scratch() as scratch:
        stager = ShardStager(store, run_id=run_id, round_number=1, scratch=scratch, max_requests=max_requests)
        owned = OwnedKeys(scratch / "keys.parquet")
        for task in tasks:
            store.put_if_absent(f"tasks/{task.task_key}.json", task.encode_document())
            requests = [request for request in Renderer(task, ["text"]).render((text,) for text in texts) if request is not None]
            places = [stager.add(encode_line(task.name, request, "0" * 8), worst) for request in requests]
            assert all(places)
            owned.append(
                task.task_key,
                pack_keys([request.key for request in requests]),
                np.array([place.shard for place in places if place], np.int32),
                np.array([place.position for place in places if place], np.int32),
            )
        shards = stager.finish()
        sha256 = owned.close()
        store.put_file(owned_keys_path(run_id), owned.file)
    entry = LogEntry(
        run_id=run_id,
        number=number,
        admitted_at="2026-11-23T00:00:00+00:00",
        endpoint=endpoint,
        owner=Owner(host="test", pid=os.getpid()),
        tasks=tuple(TaskRef(name=task.name, task_key=task.task_key) for task in tasks),
        source=SourceRef(uri="memory", fingerprint="none"),
        keys=KeysRef(path=owned_keys_path(run_id), sha256=sha256, count=owned.count),
        shards=shards,
        cost_nano_usd=CostRange(expected=None, worst=None, cap=cap),
        max_attempts=max_attempts,
        max_in_flight_batches=max_in_flight,
    )
    assert admit_entry(store, entry)
    return entry


def texts(count: int) -> list[str]:
    return [f"Row {number}: the tent kept us dry for a week of rain, its poles are light." for number in range(count)]


@pytest.fixture
def bench(temporal_server: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A root and a task queue of the test's own; its workers end with the test."""
    with ExitStack() as stack:
        yield Bench(
            address=temporal_server,
            task_queue=f"test-{time.monotonic_ns()}",
            store=Store(str(tmp_path / "root")),
            stack=stack,
            records_as=RECORDED.get(request.node.name) if os.environ.get("RECORD_HISTORIES") else None,
        )
