"""`dg.materialize` over a real Temporal server, a real worker and the simulator: what is asked, published and said."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.status import STATUSES
from tests.dagster_house import (
    DAILY,
    DAYS,
    MODERATION,
    PLAIN,
    RANGE,
    SCHEMA,
    SUMMARIES,
    TOPICS,
    OpenHouse,
    asked,
    define,
    info_lines,
    write_reviews,
)
from tests.stack import RunningSimulator


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
    assert ours[1].startswith("To ask: 6 requests (6 new), about $0.0")
    assert "http://temporal.example/namespaces/default/workflows/" in ours[3]
    assert ours[-3].startswith("Published 8 rows (6 succeeded, 2 skipped) for $")
    assert [line.partition(":")[0] for line in ours[-2:]] == ["labels", "summaries"]
    assert len(ours) <= 11


def test_the_try_of_a_new_task_counts_once_in_the_numbers(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS)
    house = open_house()
    assert house.materialize(define(place, SUMMARIES, partitioned=True), tags=RANGE).success
    (record,) = [json.loads(path.read_bytes()) for path in (place / "root").rglob("plans/*/tried-*.json")]
    rows = pq.read_table(house.output / "summaries").to_pylist()
    metadata = house.metadata("summaries").values()
    total = sum(one["claude_batch/cost_usd"] for one in metadata)
    assert total == pytest.approx(sum(row["cost_usd"] or 0 for row in rows) + record["usage"]["cost_nano_usd"] / 1e9)
    tokens = sum(one["claude_batch/output_tokens"] for one in metadata)
    assert tokens == sum(row["output_tokens"] or 0 for row in rows) + record["usage"]["output_tokens"]
