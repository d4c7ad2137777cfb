"""`dg.materialize` over a real Temporal server, a real worker and the simulator: what is asked, published and said."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
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
from claude_batch_dagster.storage.output import STATUSES
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


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSimulator]:
    books = tmp_path_factory.mktemp("books")
    process = Process.start(
        [sys.executable, "-m", "claude_batch_dagster.simulator", "--port", "0", "--seconds", "0.3", "--books", str(books)], {}
    )
    try:
        yield RunningSimulator(url=process.wait_for_line("simulator ready on").rpartition(" ")[2], process=process)
    finally:
        process.stop()


@pytest.fixture(scope="module")
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
        self.resources = {**shared, "claude_batch": ClaudeBatchResource(root=str(place / "root"), output=str(self.output), **resource)}

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


def test_an_unpartitioned_run_publishes_every_kind_of_task_and_says_so_in_numbers(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    house = open_house()
    result = house.materialize(define(place, SUMMARIES, MODERATION, TOPICS, PLAIN, SCHEMA, columns=["review_id", "stars"]))
    assert result.success
    columns = {"summaries": "summary", "labels": "label", "topics": "topic", "plain": "answer", "sentiments": "sentiment"}
    for name, column in columns.items():
        table = pq.read_table(house.output / name / "part-0.parquet")
        assert table.column_names[:3] == ["review_id", "stars", column]
        assert table["status"].to_pylist() == ["succeeded"] * 3 + ["skipped"]
        assert table[column].null_count == 1
        metadata = house.metadata(name)[None]
        assert metadata["dagster/row_count"] == 4
        assert {status: metadata[f"claude_batch/{status}"] for status in STATUSES} == {
            **dict.fromkeys(STATUSES, 0),
            "succeeded": 3,
            "skipped": 1,
        }
        assert metadata["claude_batch/cost_usd"] > 0
        assert (metadata["claude_batch/requests"], metadata["claude_batch/batches"]) == (3, 1)
        assert metadata["claude_batch/run"] == "batch run r1"
        assert metadata["claude_batch/workflow"].startswith("http://temporal.example/namespaces/default/workflows/claude-batch%2F")
        assert metadata["dagster/uri"] == str(house.output / name / "part-0.parquet")
        assert {column.name for column in metadata["dagster/column_schema"].columns} >= {"review_id", columns[name], "status", "cost_usd"}
        assert "the tent" in metadata["preview"] or name in ("topics", "sentiments", "labels")
    checks = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert len(checks) == 5
    assert all(check.passed for check in checks)


def test_one_day_asks_about_that_day_only(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place, *DAYS)
    house, before = open_house(), asked(simulator)
    assert house.materialize(define(place, partitioned=True), partition_key=DAYS[1]).success
    assert asked(simulator) - before == 6
    metadata = house.metadata("summaries")
    assert list(metadata) == [DAYS[1]]
    assert metadata[DAYS[1]]["dagster/partition_row_count"] == 4
    assert [file.parent.name for file in house.output.rglob("*.parquet")] == [f"day={DAYS[1]}"] * 2


def test_a_range_is_one_batch_run_with_metadata_of_its_own_for_each_partition(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place, DAYS[0], DAYS[1])
    write_reviews(place, DAYS[2], rows=6)
    house, before = open_house(), len(simulator.batches())
    assert house.materialize(define(place, partitioned=True), tags=RANGE).success
    assert len(simulator.batches()) - before == 1
    for name in ("summaries", "labels"):
        metadata = house.metadata(name)
        assert {day: one["dagster/partition_row_count"] for day, one in metadata.items()} == {DAYS[0]: 4, DAYS[1]: 4, DAYS[2]: 6}
        assert {day: one["claude_batch/requests"] for day, one in metadata.items()} == {DAYS[0]: 3, DAYS[1]: 3, DAYS[2]: 5}
        assert len({one["dagster/uri"] for one in metadata.values()}) == 3


def test_a_subset_asks_only_the_selected_task(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    house, before = open_house(), asked(simulator)
    result = house.materialize(define(place), selection=[dg.AssetKey("labels")])
    assert result.success
    assert asked(simulator) - before == 3
    assert (house.output / "labels").exists()
    assert not (house.output / "summaries").exists()
    assert house.metadata("summaries") == {}


def test_a_second_run_asks_nothing_and_publishes_the_same(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    house = open_house()
    house.materialize(define(place))
    table, before = pq.read_table(house.output / "summaries"), asked(simulator)
    assert house.materialize(define(place)).success
    assert asked(simulator) == before
    assert pq.read_table(house.output / "summaries").equals(table)
    first, second = (
        record.asset_materialization.tags["dagster/data_version"]  # type: ignore[union-attr]
        for record in house.instance.fetch_materializations(dg.AssetKey("summaries"), limit=2).records
    )
    assert first == second
    metadata = house.metadata("summaries")[None]
    assert (metadata["claude_batch/requests"], metadata["claude_batch/already_answered"], metadata["claude_batch/cost_usd"]) == (0, 3, 0)
    assert "claude_batch/run" not in metadata


@pytest.mark.parametrize("bad_day", [DAYS[0], DAYS[1]])
def test_a_bad_partition_does_not_stop_the_others_and_the_failure_names_it(place: Path, open_house: OpenHouse, bad_day: str) -> None:
    write_reviews(place, *DAYS)
    (place / "reviews" / f"day={bad_day}" / "part-0.parquet").write_bytes(b"PAR1 not really PAR1")
    house = open_house()
    result = house.materialize(define(place, partitioned=True, retry_policy=dg.RetryPolicy(max_retries=3)), tags=RANGE)
    assert not result.success
    description = failure_of(result)
    assert description.startswith(f"1 of 3 partitions were not published: {bad_day}.")
    assert "not a Parquet file" in description
    good = set(DAYS) - {bad_day}
    for name in ("summaries", "labels"):
        metadata = house.metadata(name)
        assert set(metadata) == good
        assert all(one["dagster/partition_row_count"] == 4 for one in metadata.values())
        assert {file.parent.name for file in (house.output / name).rglob("*.parquet")} == {f"day={day}" for day in good}
    # What is repaired is asked alone.
    write_reviews(place, bad_day)
    assert house.materialize(define(place, partitioned=True), partition_key=bad_day).success
    assert set(house.metadata("labels")) == set(DAYS)


def test_a_partition_without_a_folder_fails_and_is_named(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, DAYS[0])
    description = failure_of(open_house().materialize(define(place, partitioned=True), partition_key=DAYS[2]))
    assert f"day={DAYS[2]}" in description


def test_rows_that_fail_leave_the_run_green_and_the_check_warns(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    simulator.switch_on("invalid", "all")
    result = open_house().materialize(define(place, TOPICS))
    assert result.success
    (check,) = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["invalid"].value == 3


def test_the_check_alone_looks_at_what_is_published_and_asks_nothing(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house, insights = open_house(), define(place, SUMMARIES)
    house.materialize(insights)
    before = len(simulator.batches())
    definitions = dg.Definitions(
        assets=[insights],
        resources=house.resources,
        jobs=[dg.define_asset_job("look", selection=dg.AssetSelection.checks_for_assets(insights))],
    )
    result = definitions.resolve_job_def("look").execute_in_process(instance=house.instance)
    assert result.success
    (check,) = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert (check.passed, check.metadata["succeeded"].value) == (True, 3)
    assert len(simulator.batches()) == before
    assert len(house.instance.fetch_materializations(dg.AssetKey("summaries"), limit=9).records) == 1


def test_a_plan_over_the_cap_fails_before_anything_is_sent_and_is_not_retried(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    before = asked(simulator)
    result = open_house(max_cost_usd=0.000001).materialize(define(place, retry_policy=dg.RetryPolicy(max_retries=3)))
    assert "over the cap" in failure_of(result)
    numbers = {name: value.value for name, value in failure_metadata(result).items()}
    assert (numbers["claude_batch/rows"], numbers["claude_batch/requests"]) == (8, 6)
    assert 0 < numbers["claude_batch/expected_usd"] < numbers["claude_batch/worst_usd"]
    assert asked(simulator) == before


def test_downstream_assets_load_by_annotation(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS)
    seen: dict[str, Any] = {}

    @dg.asset(partitions_def=DAILY)
    def per_day(summaries: pd.DataFrame) -> None:
        seen["frame"] = summaries

    @dg.asset
    def over_all_days(summaries: pa.Table, labels: ds.Dataset) -> None:
        seen["table"], seen["dataset"] = summaries, labels

    house, insights = open_house(), define(place, partitioned=True)
    assert house.materialize(insights, over_all_days, tags=RANGE).success
    assert house.materialize(insights, per_day, selection=[per_day], partition_key=DAYS[0]).success
    assert seen["frame"]["day"].tolist() == [DAYS[0]] * 4
    assert seen["table"].num_rows == 12
    assert sorted(set(seen["dataset"].to_table(columns=["day"])["day"].to_pylist())) == list(DAYS)


def test_a_wait_is_logged_in_a_few_lines_with_the_link_before_the_batch_ends(
    place: Path, open_house: OpenHouse, capfd: pytest.CaptureFixture[str]
) -> None:
    write_reviews(place)
    open_house().materialize(define(place))
    ours = info_lines(capfd.readouterr().err)
    assert [line.split(" ")[0] for line in ours[:4]] == ["Planning:", "To", "Planned", "Batch"]
    assert ours[1].startswith("To ask: 6 new rows; about $0.0")
    assert "http://temporal.example/namespaces/default/workflows/" in ours[3]
    assert ours[-1].startswith("Published 8 rows (6 succeeded, 2 skipped) for $")
    assert len(ours) <= 9


def test_twenty_rows_first_and_then_the_rest_without_paying_twice(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit says so in metadata, in the file and in the log; the full run asks for the other rows only."""
    write_reviews(place, rows=6)
    house, insights, before = open_house(), define(place, SUMMARIES), asked(simulator)
    assert house.materialize(insights, run_config=config(limit=2)).success
    assert asked(simulator) - before == 2
    metadata = house.metadata("summaries")[None]
    assert (metadata["claude_batch/limit"], metadata["dagster/row_count"]) == (2, 2)
    lines = info_lines(capfd.readouterr().err)
    assert lines[0].endswith("limit: only the first 2 rows.")
    assert lines[-1] == "limit: only the first 2 rows of the source were asked about and published."
    assert len(lines) <= 12

    assert house.materialize(insights).success
    assert asked(simulator) - before == 5
    metadata = house.metadata("summaries")[None]
    assert "claude_batch/limit" not in metadata
    assert (metadata["dagster/row_count"], metadata["claude_batch/already_answered"]) == (6, 2)


def test_a_limited_run_does_not_replace_a_full_one_unless_told_so(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    house, insights = open_house(limit=2), define(place, SUMMARIES)
    file = house.output / "summaries" / "part-0.parquet"
    assert house.materialize(insights, run_config=config(limit=1_000_000)).success, "the run config lifts the resource's limit"
    assert pq.read_metadata(file).num_rows == 4
    description = failure_of(house.materialize(insights))
    assert "holds all rows" in description
    assert "replace" in description
    assert pq.read_metadata(file).num_rows == 4
    assert house.materialize(insights, run_config=config(replace=True)).success
    assert pq.read_metadata(file).num_rows == 2


def test_partitions_beyond_the_limit_are_not_materialized_and_the_log_names_them(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    write_reviews(place, *DAYS)
    house, before = open_house(), asked(simulator)
    result = house.materialize(define(place, SUMMARIES, partitioned=True), tags=RANGE, run_config=config(limit=5))
    assert result.success
    assert asked(simulator) - before == 4
    metadata = house.metadata("summaries")
    assert {day: (one["dagster/partition_row_count"], one["claude_batch/limit"]) for day, one in metadata.items()} == {
        DAYS[0]: (4, 5),
        DAYS[1]: (1, 5),
    }
    assert info_lines(capfd.readouterr().err)[-1].endswith(f"1 of 3 partitions lie beyond it and are not materialized: {DAYS[2]}.")
    assert [event.event_specific_data.passed for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"] == [True]
    assert house.materialize(define(place, SUMMARIES, partitioned=True), tags=RANGE).success
    assert {day: one["dagster/partition_row_count"] for day, one in house.metadata("summaries").items()} == dict.fromkeys(DAYS, 4)
    assert asked(simulator) - before == 9


def test_named_rows_are_asked_again_and_their_new_answer_is_published(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    write_reviews(place)
    house, insights = open_house(), define(place, SUMMARIES)
    house.materialize(insights)
    first, before = pq.read_table(house.output / "summaries").to_pylist(), asked(simulator)
    capfd.readouterr()
    assert house.materialize(insights, run_config=config(ask_again=[1])).success
    assert asked(simulator) - before == 1
    second = pq.read_table(house.output / "summaries").to_pylist()
    assert [old["batch_id"] != new["batch_id"] for old, new in zip(first, second, strict=True)] == [False, True, False, False]
    assert any("1 asked again on purpose" in line for line in info_lines(capfd.readouterr().err))
    description = failure_of(house.materialize(insights, run_config=config(ask_again=["nobody"])))
    assert "nobody" in description
    assert "Nothing was sent" in description


def test_rows_that_failed_for_good_are_asked_again_only_when_told_so(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house, insights = open_house(), define(place, TOPICS)
    simulator.switch_on("invalid", "all")
    house.materialize(insights)
    simulator.clear()
    before = asked(simulator)
    assert house.materialize(insights).success
    assert asked(simulator) == before
    assert house.materialize(insights, run_config=config(retry_failed=True)).success
    assert asked(simulator) - before == 3
    assert house.metadata("topics")[None]["claude_batch/succeeded"] == 3


def test_above_fail_above_nothing_is_published_and_yesterdays_table_stays(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house()
    assert house.materialize(define(place, TOPICS, fail_above=0.5)).success
    yesterday = (house.output / "topics" / "part-0.parquet").read_bytes()
    write_reviews(place, rows=9)
    simulator.switch_on("invalid", "all")
    result = house.materialize(define(place, TOPICS, fail_above=0.5, retry_policy=dg.RetryPolicy(max_retries=3)))
    description = failure_of(result)
    assert "more than fail_above=50.0% allows. Nothing was published" in description
    assert failure_metadata(result)["claude_batch/run"].value == "r2"
    assert (house.output / "topics" / "part-0.parquet").read_bytes() == yesterday
    assert len(house.instance.fetch_materializations(dg.AssetKey("topics"), limit=9).records) == 1
    assert house.materialize(define(place, TOPICS, fail_above=0.7)).success


def test_simulated_answers_never_replace_real_ones_unless_told_so(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    house, insights, before = open_house(), define(place, SUMMARIES), asked(simulator)
    folder = house.output / "summaries"
    folder.mkdir(parents=True)
    marker = {"source": str(place / "reviews"), "endpoint": "anthropic", "partition_column": None, "format": 1}
    (folder / "_claude_batch.json").write_text(json.dumps(marker))
    pq.write_table(pa.table({"review_id": [1], "summary": ["Paid."]}), folder / "part-0.parquet")
    description = failure_of(house.materialize(insights))
    assert "holds answers of 'anthropic', and would get answers of 'simulator'. Nothing was sent" in description
    assert "replace=True" in description
    assert pq.read_table(folder)["summary"].to_pylist() == ["Paid."]
    assert asked(simulator) == before
    assert house.materialize(insights, run_config=config(replace=True)).success
    assert pq.read_table(folder).num_rows == 4


def test_a_simulated_run_is_refused_by_a_worker_that_talks_to_a_real_endpoint(
    place: Path, open_house: OpenHouse, temporal_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulating is the resource's word, sending the worker's: where they differ nothing is sent."""
    write_reviews(place)
    posts: list[str] = []

    class Vendor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            posts.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Vendor) as vendor:
        threading.Thread(target=vendor.serve_forever, daemon=True).start()
        queue = f"real-{time.monotonic_ns()}"
        environ = {
            "TEMPORAL_ADDRESS": temporal_server,
            "CLAUDE_BATCH_TASK_QUEUE": queue,
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{vendor.server_port}",
            "ANTHROPIC_API_KEY": "any",
        }
        worker = Process.start([sys.executable, "-m", "temporal_worker"], environ)
        try:
            worker.wait_for_line("worker ready on task queue")
            monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", queue)
            description = failure_of(open_house(simulate=True).materialize(define(place, SUMMARIES)))
        finally:
            worker.stop()
            vendor.shutdown()
    assert "holds answers of 'simulator', this worker talks to '127.0.0.1_" in description
    assert "Nothing was sent" in description
    assert posts == []


def test_a_column_that_the_source_does_not_have_is_refused_with_those_that_it_has(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    description = failure_of(open_house().materialize(define(place, SUMMARIES, columns=["review_id", "author"])))
    assert "no column 'author'; it has review_id, text, stars" in description
    assert "Nothing was sent" in description
