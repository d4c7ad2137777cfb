"""What a run config chooses: fewer rows first, some rows again."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.dagster_house import DAYS, RANGE, SUMMARIES, TOPICS, OpenHouse, asked, config, define, failure_of, info_lines, write_reviews
from tests.stack import RunningSimulator


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
    assert "limit: only the first 2 rows of the source were asked about and published." in lines
    assert lines[-1].startswith("summaries: 2 succeeded. Written: ")
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
    assert info_lines(capfd.readouterr().err)[-2].endswith(f"1 of 3 partitions lie beyond it and are not materialized: {DAYS[2]}.")
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
