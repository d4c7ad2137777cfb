"""Every kind of source through `dg.materialize`, over a real Temporal server, a real worker and the simulator."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster import ClaudeBatchResource, ParquetDataset, Summarize, TableSnapshot, claude_batch_assets
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.show import show_row
from tests.dagster_house import DAILY, DAYS, RANGE, SUMMARIES, OpenHouse, asked, failure_of, write_reviews
from tests.stack import MODEL, RunningSimulator


def define(source: Any, *tasks: Any, partitioned: bool = False, **arguments: Any) -> dg.AssetsDefinition:
    @claude_batch_assets(source=source, tasks=tasks or (SUMMARIES,), partitions_def=DAILY if partitioned else None, **arguments)
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
        yield from claude_batch.run(context)

    return insights


def text(place: Path, word: object) -> str:
    return f"{place.name}: the tent number {word} is great, it kept us dry."


def test_dates_in_the_path_are_the_partitions(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    for day in DAYS[:2]:
        file = place / "lake" / day.replace("-", "/") / "part.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"review_id": [1, 2], "text": [text(place, f"{day} {row}") for row in range(2)]}), file)
    source = ParquetDataset(path=f"{place}/lake/{{partition:%Y/%m/%d}}/*.parquet", asset="reviews", key="review_id", partition_column="day")
    house, before = open_house(), asked(simulator)
    assert house.materialize(define(source, partitioned=True), partition_key=DAYS[1]).success
    assert asked(simulator) - before == 2
    result = house.materialize(define(source, partitioned=True), tags=RANGE)
    assert f"Partition '{DAYS[2]}' has no file {place}/lake/2026/11/03/*.parquet" in failure_of(result)
    assert asked(simulator) - before == 4
    assert [file.parent.name for file in sorted(house.output.rglob("*.parquet"))] == [f"day={day}" for day in DAYS[:2]]


def test_a_column_of_one_file_is_the_partitions(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    days = pd.to_datetime([DAYS[0], DAYS[1], DAYS[0], DAYS[2]]).date
    pq.write_table(
        pa.table({"review_id": [1, 1, 2, 1], "day": days, "text": [text(place, row) for row in range(4)]}), place / "all.parquet"
    )
    insights = define(ParquetDataset(path=f"{place}/all.parquet", key="review_id", partition_column="day"), partitioned=True)
    house, before = open_house(), asked(simulator)
    assert house.materialize(insights, partition_key=DAYS[0]).success
    assert asked(simulator) - before == 2
    assert house.materialize(insights, tags=RANGE).success
    assert asked(simulator) - before == 4
    counts = {day: one["dagster/partition_row_count"] for day, one in house.metadata("summaries").items()}
    assert counts == {DAYS[0]: 2, DAYS[1]: 1, DAYS[2]: 1}


def test_a_chain_asks_about_the_answers_and_again_only_where_they_changed(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place, *DAYS)
    reviews = ParquetDataset(path=str(place / "reviews"), asset="reviews", key="review_id", partition_column="day")
    first = define(reviews, partitioned=True, name="first")
    shorter = Summarize(name="shorter", column="summary", model=MODEL, max_words=5)
    second = define(ParquetDataset(asset="summaries", key="review_id"), shorter, partitioned=True, name="second")
    assert [dep.asset_key.to_user_string() for spec in second.specs for dep in spec.deps] == ["summaries"]
    house, before = open_house(), asked(simulator)
    assert house.materialize(first, second, tags=RANGE).success
    assert asked(simulator) - before == 18
    table = pq.read_table(house.output / "shorter" / f"day={DAYS[0]}" / "part-0.parquet", partitioning=None)
    assert table["status"].to_pylist() == ["succeeded"] * 3 + ["skipped"]
    assert house.materialize(first, second, tags=RANGE).success
    assert asked(simulator) - before == 18
    write_reviews(place, DAYS[1], rows=5)
    assert house.materialize(first, second, tags=RANGE).success
    assert asked(simulator) - before == 20


def test_a_chain_without_its_first_link_says_what_to_materialize(place: Path, open_house: OpenHouse) -> None:
    result = open_house().materialize(
        define(ParquetDataset(asset="summaries", key="review_id"), Summarize(name="s", column="x", model=MODEL))
    )
    assert "the output of summaries is not there" in failure_of(result)
    assert "Materialize that asset first" in failure_of(result)


def test_a_table_is_asked_as_it_was_when_it_was_planned(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    calls: list[str] = []

    def load(context: dg.AssetExecutionContext, partition_key: str) -> pd.DataFrame:
        calls.append(partition_key)
        assert context.has_partition_key_range or context.partition_key == partition_key
        # Another text at each call, as a table that goes on living.
        return pd.DataFrame({"review_id": [1, 2], "text": [text(place, partition_key), text(place, f"{partition_key} call {len(calls)}")]})

    source = TableSnapshot(load=load, asset="warehouse", key="review_id", partition_column="day")
    insights = define(source, partitioned=True, columns=["review_id", "text"])
    house, before = open_house(), asked(simulator)
    assert house.materialize(insights, tags=RANGE).success
    assert (calls, asked(simulator) - before) == (list(DAYS), 6)
    root = place / "root" / "simulated"
    kept = sorted((root / "snapshots").rglob("*.parquet"))
    assert [file.parent.name for file in kept] == [f"day={day}" for day in DAYS]
    output = house.output / "summaries" / f"day={DAYS[1]}" / "part-0.parquet"
    rows = pq.read_table(output, partitioning=None)
    assert rows["status"].to_pylist() == ["succeeded"] * 2
    assert rows["text"].to_pylist() == pq.read_table(kept[1], partitioning=None)["text"].to_pylist()
    story = show_row(str(house.output / "summaries"), "2", str(root), partition=DAYS[1])
    assert story.source == str(kept[1])
    assert house.materialize(insights, partition_key=DAYS[1]).success
    assert asked(simulator) - before == 7, "the other row was answered before"
    assert len(list((root / "snapshots" / f"day={DAYS[1]}").iterdir())) == 2


def test_a_table_that_did_not_change_is_kept_and_asked_once(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    table = pa.table({"review_id": [1, 2], "text": [text(place, row) for row in range(2)]})
    insights = define(TableSnapshot(load=lambda: table, key="review_id"))
    house, before = open_house(), asked(simulator)
    for _ in range(2):
        assert house.materialize(insights).success
    assert asked(simulator) - before == 2
    assert len(Store(str(place / "root" / "simulated")).list("snapshots")) == 1


def test_an_unpartitioned_source_that_grows_is_taken_up_by_an_automation_condition(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    source = ParquetDataset(path=str(place / "reviews"), asset="reviews", key="review_id")
    insights = define(source, automation_condition=dg.AutomationCondition.eager())

    @dg.asset
    def reviews() -> None:
        """Whoever writes the files."""

    house, before = open_house(), asked(simulator)
    definitions = dg.Definitions(assets=[reviews, insights], resources=house.resources)
    house.materialize(reviews)
    tick = dg.evaluate_automation_conditions(definitions, house.instance, asset_selection=dg.AssetSelection.all())
    assert house.materialize(insights).success
    assert asked(simulator) - before == 3
    tick = dg.evaluate_automation_conditions(definitions, house.instance, asset_selection=dg.AssetSelection.all(), cursor=tick.cursor)
    assert tick.total_requested == 0
    pq.write_table(
        pa.table({"review_id": [100, 101], "text": [text(place, row) for row in ("x", "y")], "stars": [5, 5]}),
        place / "reviews" / "part-1.parquet",
    )
    house.materialize(reviews)
    tick = dg.evaluate_automation_conditions(definitions, house.instance, asset_selection=dg.AssetSelection.all(), cursor=tick.cursor)
    assert tick.get_num_requested(dg.AssetKey("summaries")) == 1
    assert house.materialize(insights).success
    assert asked(simulator) - before == 5
    assert house.metadata("summaries")[None]["dagster/row_count"] == 6
