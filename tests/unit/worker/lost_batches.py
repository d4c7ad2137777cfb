"""Batches at a simulator whose clock tests move, and a root without records of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.recovery_contract import AuditInput, AuditReport, HarvestStep, RecoverInput, WantedTask
from claude_batch_dagster.core.request import Renderer, Request, short_name
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.simulator import Simulator, serve_in_thread
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import pin_root
from claude_batch_dagster.storage.recovered import WantedKeys, remove_recovery, wanted_keys_path
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import price_usage
from temporal_worker.audit import Auditor
from temporal_worker.batches import Batches
from temporal_worker.harvest import Harvester
from tests.lines import encode_line

DAY_S = 86_400.0
HEADERS = {"authorization": "Bearer k", "anthropic-version": "2026-10-21", "content-type": "application/json"}


@dataclass(slots=True)
class Clock:
    """Epoch seconds, for the simulator and for the worker."""

    now: float = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now

    def at(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


@dataclass(slots=True, kw_only=True)
class Lost:
    """A vendor with batches, and a root that knows none of them."""

    simulator: Simulator
    clock: Clock
    store: Store
    batches: Batches
    recoveries: int = 0
    said: list[str] = field(default_factory=list)

    def send(self, task: ClaudeTask, texts: Sequence[str], *, tag: str = "00000001", more: Sequence[str] = ()) -> str:
        """Create a batch of a task's requests, and of others by their custom_id; it ends after 10 s."""
        lines = [encode_line(task.name, request, tag) for request in render(task, texts)]
        return self.post(lines + [foreign_line(custom_id) for custom_id in more])

    def post(self, lines: Sequence[bytes]) -> str:
        connection = HTTPConnection("127.0.0.1", self.simulator.port, timeout=10)
        connection.request("POST", "/v1/messages/batches", b'{"requests":[' + b",\n".join(lines) + b"]}", HEADERS)
        reply = json.loads(connection.getresponse().read())
        connection.close()
        return str(reply["id"])

    def delete(self, batch_id: str) -> None:
        connection = HTTPConnection("127.0.0.1", self.simulator.port, timeout=10)
        connection.request("DELETE", f"/v1/messages/batches/{batch_id}", headers=HEADERS)
        assert connection.getresponse().status == 200
        connection.close()

    def recover(self, *wanted: tuple[ClaudeTask, Sequence[str]]) -> HarvestStep:
        """Go on until every batch of the list was looked at."""
        self.recoveries += 1
        ask = RecoverInput(
            root=self.store.uri,
            recovery_id=f"recovery-{self.recoveries}",
            tasks=tuple(self.stage(f"recovery-{self.recoveries}", task, texts) for task, texts in wanted),
        )
        harvester = Harvester(open_store=Store, batches=self.batches, price_usage=price_usage, clock=self.clock.at, poll_s=0.2)
        try:
            return harvester.harvest(ask, self.said.append)
        finally:
            remove_recovery(self.store, ask.recovery_id)

    def stage(self, recovery_id: str, task: ClaudeTask, texts: Sequence[str]) -> WantedTask:
        self.store.put_if_absent(f"tasks/{task.task_key}.json", task.encode_document())
        path = wanted_keys_path(recovery_id, task.task_key)
        with self.store.scratch() as scratch:
            with WantedKeys(scratch / "keys.parquet") as wanted:
                wanted.add(pack_keys([request.key for request in render(task, texts)]))
            self.store.put_file(path, wanted.file)
        return WantedTask(name=short_name(task.name), task_key=task.task_key, keys=path, count=len(wanted))

    def audit(self) -> AuditReport:
        return Auditor(open_store=Store, batches=self.batches, clock=self.clock.at).audit(AuditInput(root=self.store.uri), self.said.append)

    def stored(self, task: ClaudeTask) -> list[dict[str, Any]]:
        """Return the stored responses to a task, in the order of their files."""
        paths = self.store.list(f"responses/simulator/{task.task_key}")
        return [row for path in paths for row in pq.read_table(self.store.open(path)).to_pylist()]


@contextmanager
def lost_batches(folder: Path, *faults: str) -> Iterator[Lost]:
    """Run a simulator; the root beside it is pinned and empty."""
    clock = Clock()
    with serve_in_thread(books=folder / "books", seconds=10, faults=faults, clock=clock) as simulator:
        store = Store(str(folder / "root"))
        pin_root(store, RootRecord(root_id="root", endpoint="simulator", temporal_namespace="default"))
        batches = Batches("any", simulator.url)
        yield Lost(simulator=simulator, clock=clock, store=store, batches=batches)
        batches.close()


def render(task: ClaudeTask, texts: Sequence[str]) -> list[Request]:
    """Return a task's requests about some texts."""
    return [request for request in Renderer(task, ["text"]).render((text,) for text in texts) if request is not None]


def foreign_line(custom_id: str) -> bytes:
    """Return a request of anybody's."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
    return json.dumps({"custom_id": custom_id, "params": params}).encode()
