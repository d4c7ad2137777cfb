"""What the materializations of real runs say about labels and cost, and the chart over all of them."""

import base64
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.reporting.charts import MAX_CHART_BYTES
from tests.dagster_house import DAYS, LABELS, MODERATION, RANGE, SUMMARIES, TOPICS, House, OpenHouse, define, info_lines, write_reviews
from tests.stack import RunningSimulator


def chart(metadata: dict[str, Any]) -> list[str]:
    """The texts in the picture."""
    markdown = metadata["chart"]
    assert len(markdown) <= MAX_CHART_BYTES
    svg = base64.b64decode(markdown.rpartition(",")[2].removesuffix(")")).decode()
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_labels_are_counted_for_each_partition_and_the_chart_stands_in_the_last(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS, rows=6)
    house, insights = open_house(), define(place, MODERATION, partitioned=True)
    assert house.materialize(insights, tags=RANGE).success
    said = house.metadata("labels")
    for day in DAYS:
        held = pq.read_table(house.output / "labels" / f"day={day}" / "part-0.parquet", partitioning=None)["label"].to_pylist()
        assert said[day]["claude_batch/labels"]["label"] == {label: held.count(label) for label in LABELS}
        assert sum(said[day]["claude_batch/labels"]["severity"].values()) == 5
    assert [day for day in said if "chart" in said[day]] == [DAYS[-1]]
    (newest,) = house.instance.fetch_materializations(dg.AssetKey("labels"), limit=1).records
    assert newest.partition_key == DAYS[-1], "what the asset's overview shows"
    assert chart(said[DAYS[-1]])[0] == "label: shares of the answered rows"
    assert set(DAYS) <= set(chart(said[DAYS[-1]]))
    # A day by itself shows the days that were there before it.
    assert house.materialize(insights, partition_key=DAYS[0]).success
    assert set(DAYS) <= set(chart(house.metadata("labels")[DAYS[0]]))


def test_the_chart_of_a_table_has_a_bar_for_each_materialization(place: Path, open_house: OpenHouse) -> None:
    house, insights = open_house(), define(place, SUMMARIES)
    for rows in (4, 8):
        write_reviews(place, rows=rows)
        assert house.materialize(insights).success
    shown = chart(house.metadata("summaries")[None])
    assert shown[0] == "Status: shares of the rows"
    assert {"succeeded", "skipped"} <= set(shown)
    assert len([text for text in shown if re.fullmatch(r"\d\d-\d\d \d\d:\d\d", text)]) == 2


def test_the_event_log_is_read_once_for_each_asset(place: Path, open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reviews(place, *DAYS)
    house, insights = open_house(), define(place, MODERATION, SUMMARIES, partitioned=True)
    # A run on a new root looks once more: for answers that another root has.
    assert house.materialize(insights, partition_key=DAYS[0]).success
    calls: list[dg.AssetKey] = []
    fetch = dg.DagsterInstance.fetch_materializations

    def counted(self: dg.DagsterInstance, key: dg.AssetKey, *arguments: Any, **named: Any) -> Any:
        calls.append(key)
        return fetch(self, key, *arguments, **named)

    monkeypatch.setattr(dg.DagsterInstance, "fetch_materializations", counted)
    assert house.materialize(insights, tags=RANGE).success
    assert sorted(key.to_user_string() for key in calls) == ["labels", "summaries"]


def test_simulated_and_other_answers_do_not_share_a_chart(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS)
    house, insights = open_house(), define(place, MODERATION, partitioned=True)
    foreign = {"claude_batch/endpoint": "anthropic", "claude_batch/labels": {"label": {"praise": 9}}, "claude_batch/cost_usd": 9.0}
    house.instance.report_runless_asset_event(dg.AssetMaterialization("labels", partition=DAYS[0], metadata=foreign))
    assert house.materialize(insights, partition_key=DAYS[1]).success
    shown = chart(house.metadata("labels")[DAYS[1]])
    assert DAYS[1] in shown
    assert DAYS[0] not in shown


def test_the_log_tells_what_was_read_and_what_was_written(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    write_reviews(place, *DAYS)
    house: House = open_house()
    simulator.switch_on("invalid", "all")
    assert house.materialize(define(place, MODERATION, TOPICS, partitioned=True), tags=RANGE).success
    lines = info_lines(capfd.readouterr().err)
    assert lines[0].startswith(f"Planning: reading 3 partitions ({DAYS[0]} to {DAYS[-1]}) of {place / 'reviews'} for labels, topics")
    story = {line.partition(":")[0]: line for line in lines if ". Written: " in line}
    assert story["topics"] == (
        f"topics: 9 invalid, 3 skipped. Written: 3 files below {house.output / 'topics'}. The column `error` says why rows have no answer."
    )
    assert set(story) == {"labels", "topics"}
    assert len(lines) <= 12
