"""A lake in a temporary folder: a source, a root, outputs, and a vendor that answers what was admitted, by hand and without a network."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.request import parse_custom_id
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.shard import iter_lines
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.plans import write_done
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.admit import Admission, admit_plan
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.plan import Plan, plan_job
from claude_batch_dagster.verbs.publish import Published, publish_job

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HAIKU = "claude-haiku-5-5"
SUMMARIES = Summarize(name="summaries", column="text", model=HAIKU)


@dataclass(frozen=True)
class Asked:
    """A request as it stands in a staged body."""

    custom_id: str
    name: str
    key: str
    tag: str
    text: str


@dataclass(frozen=True)
class Lake:
    folder: Path

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "root"))

    def write(self, columns: Mapping[str, Any] | pa.Table, path: str = "reviews.parquet", **options: Any) -> Path:
        file = self.folder / "source" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), file, **options)
        return file

    def texts(self, *texts: str | None, path: str = "reviews.parquet") -> Path:
        return self.write({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())}, path)

    def job(
        self,
        *tasks: ClaudeTask,
        path: str = "reviews.parquet",
        key: str | Sequence[str] = "id",
        partition_column: str | None = None,
        columns: str | Sequence[str] = "key",
        **more: Any,
    ) -> Job:
        targets = tuple(Target(task=task, output=str(self.folder / "out" / task.name), columns=columns) for task in tasks or (SUMMARIES,))
        source = ParquetDataset(path=str(self.folder / "source" / path), key=key, partition_column=partition_column)
        fixed = {"root": self.store.uri, "endpoint": "simulator", "temporal_namespace": "default", "source": source, "targets": targets}
        return Job(**fixed | more)

    def plan(self, job: Job, **more: Any) -> Plan:
        return plan_job(job, **more)

    def admit(self, job: Job) -> tuple[Plan, Admission]:
        plan = plan_job(job)
        return plan, admit_plan(job, plan)

    def requests(self, entry: LogEntry | Plan) -> list[list[Asked]]:
        """Return what stands in each shard's body."""
        shards = []
        for shard in entry.shards:
            asked = []
            for line in iter_lines(self.store.stream(shard.path)):
                request = json.loads(line)
                identity = parse_custom_id(request["custom_id"])
                content = request["params"]["messages"][0]["content"]
                asked.append(Asked(request["custom_id"], identity.name, identity.request_key, identity.tag, content))
            shards.append(asked)
        return shards

    def answer(self, job: Job, entry: LogEntry, how: Callable[[Asked], Mapping[str, Any]] | None = None) -> None:
        """Answer all that a run owns, without ending it."""
        tasks = {target.task.name: target.task for target in job.targets}
        for at, asked in enumerate(self.requests(entry)):
            for name in sorted({one.name for one in asked}):
                responses = [
                    Response(**{"request_key": bytes.fromhex(one.key), "outcome": "succeeded", "model": HAIKU} | dict((how or _echo)(one)))
                    for one in asked
                    if one.name == name
                ]
                write_responses(
                    self.store,
                    endpoint=job.endpoint,
                    task_key=tasks[name].task_key,
                    batch_id=f"batch-{entry.number}-{at}",
                    round_number=1,
                    answered_at=NOON,
                    responses=responses,
                )

    def end(self, entry: LogEntry, outcome: str = "finished") -> None:
        record = DoneRecord(
            run_id=entry.run_id,
            finished_at=NOON.isoformat(),
            outcome=outcome,
            rows={},
            batches=len(entry.shards),
            usage=(),
            cost_nano_usd=0,
        )
        write_done(self.store, entry.number, record)

    def finish(self, job: Job, how: Callable[[Asked], Mapping[str, Any]] | None = None) -> LogEntry | None:
        """Plan, admit, answer and end a run; None where there was nothing to ask."""
        _, admission = self.admit(job)
        if admission.own is not None:
            self.answer(job, admission.own, how)
            self.end(admission.own)
        return admission.own

    def publish(self, job: Job, partitions: Sequence[str | None] = (None,), **more: Any) -> Published:
        return publish_job(job, list(partitions), **{"run": "r1"} | more)

    def read(self, name: str = "summaries", path: str = "part-0.parquet") -> pa.Table:
        return pq.ParquetFile(self.folder / "out" / name / path).read()


def _echo(asked: Asked) -> dict[str, Any]:
    text = asked.text.removeprefix("<document>\n").removesuffix("\n</document>")
    return {"answer": json.dumps({"summary": text}), "cost_nano_usd": 1_000, "input_tokens": 10, "output_tokens": 5}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def new_lake(tmp_path: Path) -> Callable[[], Lake]:
    """For hypothesis, which runs a test many times: each call is a lake of its own."""
    made: list[Lake] = []

    def make() -> Lake:
        made.append(Lake(tmp_path / str(len(made))))
        return made[-1]

    return make
