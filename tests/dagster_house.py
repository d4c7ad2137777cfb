"""`dg.materialize` over a real Temporal server, a real worker and the simulator."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from claude_batch_dagster import (
    ClaudeBatchResource,
    ClaudeTask,
    Moderate,
    ParquetDataset,
    Summarize,
    claude_batch_assets,
    claude_batch_resources,
)
from tests.stack import MODEL, Process, RunningSimulator

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
DAILY = dg.DailyPartitionsDefinition(DAYS[0], end_date="2026-11-04")
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}
LABELS = ("praise", "mixed", "complaint")


class Topics(BaseModel):
    topic: Literal["price", "quality", "other"]
    score: int | None


SUMMARIES = Summarize(name="summaries", column="text", model=MODEL, max_words=20)
MODERATION = Moderate(name="labels", column="text", model=MODEL, labels=LABELS)
TOPICS = ClaudeTask(name="topics", model=MODEL, prompt="Review:\n{text}", output=Topics, max_tokens=200)
PLAIN = ClaudeTask(name="plain", model=MODEL, prompt="Say it in French:\n{text}", max_tokens=200)
SCHEMA = ClaudeTask(
    name="sentiments",
    model=MODEL,
    prompt="Review:\n{text}",
    output={"type": "object", "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}}, "required": ["sentiment"]},
    max_tokens=200,
)


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    books = tmp_path_factory.mktemp("books")
    process = Process.start(
        [sys.executable, "-m", "claude_batch_dagster.simulator", "--port", "0", "--seconds", "0.3", "--books", str(books)], {}
    )
    try:
        yield RunningSimulator(url=process.wait_for_line("simulator ready on").rpartition(" ")[2], process=process)
    finally:
        process.stop()


@pytest.fixture(scope="session")
def task_queue(temporal_server: str, simulator: RunningSimulator) -> Iterator[str]:
    name = f"dagster-{time.monotonic_ns()}"
    environ = {
        "TEMPORAL_ADDRESS": temporal_server,
        "CLAUDE_BATCH_TASK_QUEUE": name,
        "CLAUDE_BATCH_POLL_SECONDS": "0.2",
        "ANTHROPIC_BASE_URL": simulator.url,
    }
    process = Process.start([sys.executable, "-m", "temporal_worker"], environ)
    process.wait_for_line("worker ready on task queue")
    try:
        yield name
    finally:
        process.stop()


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporal_server: str, simulator: RunningSimulator, task_queue: str
) -> Iterator[Path]:
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_server)
    monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", task_queue)
    monkeypatch.setenv("CLAUDE_BATCH_TEMPORAL_UI", "http://temporal.example")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", simulator.url)
    yield tmp_path
    simulator.clear()


def write_reviews(place: Path, *days: str | None, rows: int = 4) -> None:
    for day in days or (None,):
        file = place / "reviews" / (f"day={day}" if day else "") / "part-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        texts = [f"{day}, {place.name}: the tent number {row} is great, it kept us dry." for row in range(rows - 1)]
        pq.write_table(pa.table({"review_id": range(rows), "text": [*texts, None], "stars": [5] * rows}), file)


def define(place: Path, *tasks: ClaudeTask, partitioned: bool = False, **arguments: Any) -> dg.AssetsDefinition:
    source = ParquetDataset(path=str(place / "reviews"), asset="reviews", key="review_id", partition_column="day" if partitioned else None)

    @claude_batch_assets(source=source, tasks=tasks or (SUMMARIES, MODERATION), partitions_def=DAILY if partitioned else None, **arguments)
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
        yield from claude_batch.run(context)

    return insights


OpenHouse = Callable[..., "House"]


class House:
    """An instance with resources, over which assets are materialized."""

    def __init__(self, place: Path, instance: dg.DagsterInstance, **resource: Any) -> None:
        self.instance = instance
        self.output = place / "out"
        shared = claude_batch_resources(root=str(place / "root"), output=str(self.output))
        own = {"root": str(place / "root"), "output": str(self.output), **resource}
        self.resources = {**shared, "claude_batch": ClaudeBatchResource(**own)}

    def materialize(self, *assets: Any, **options: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize(assets, instance=self.instance, resources=self.resources, raise_on_error=False, **options)

    def metadata(self, key: str) -> dict[str | None, dict[str, Any]]:
        """The newest materialization's metadata by partition."""
        found: dict[str | None, dict[str, Any]] = {}
        for record in self.instance.fetch_materializations(dg.AssetKey(key), limit=100).records:
            materialization = record.asset_materialization
            assert materialization is not None
            found.setdefault(record.partition_key, {name: value.value for name, value in materialization.metadata.items()})
        return found


@pytest.fixture
def open_house(place: Path) -> Iterator[Callable[..., House]]:
    with ExitStack() as stack:
        yield lambda **resource: House(place, stack.enter_context(dg.DagsterInstance.ephemeral()), **resource)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data is not None, failed.step_failure_data.error
    return str(failed.step_failure_data.user_failure_data.description)


def failure_metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data is not None
    return dict(failed.step_failure_data.user_failure_data.metadata)


def config(**values: Any) -> dict[str, Any]:
    return {"ops": {"insights": {"config": values}}}


def info_lines(output: str) -> list[str]:
    return [line.rpartition(" - insights - ")[2] for line in output.splitlines() if " - INFO - " in line]


def asked(simulator: RunningSimulator) -> int:
    return int(simulator.books()["requests"])
