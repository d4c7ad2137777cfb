"""`build_claude_batch_checks` over real runs: what each check counts, when it is red, and what it never does."""

import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster import (
    ClaudeBatchResource,
    ParquetDataset,
    Summarize,
    build_claude_batch_checks,
    claude_batch_assets,
    claude_batch_resources,
)
from claude_batch_dagster.storage.dataset import TableSnapshot
from tests.dagster_house import (
    DAILY,
    DAYS,
    LABELS,
    MODERATION,
    RANGE,
    SUMMARIES,
    TOPICS,
    House,
    OpenHouse,
    asked,
    define,
    write_reviews,
)
from tests.stack import MODEL, RunningSimulator

SHORTER = Summarize(name="shorter", column="summary", model=MODEL, max_words=5)
RED = dg.AssetCheckSeverity.ERROR


def checks_of(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], Any]:
    """Evaluations by asset and check; ours, not the asset's own."""
    found = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    return {(one.asset_key.to_user_string(), one.check_name): one for one in found if one.check_name != "rows_answered"}


def number(evaluation: Any, name: str) -> Any:
    return evaluation.metadata[name].value


def rows_shown(evaluation: Any) -> list[tuple[Any, ...]]:
    """What the command in a description finds, and the query of the metadata as well."""
    command = re.search(r"\n\nRows(?: of \S+)? to look at:\n\n```sh\nclaude-batch sql (.+)\n```$", evaluation.description, re.DOTALL)
    assert command, evaluation.description
    with duckdb.connect() as connection:
        found = connection.sql(shlex.split(command[1])[0]).fetchall()
        assert found == connection.sql(number(evaluation, "sql")).fetchall()
    return found


def write_rows(place: Path, day: str | None, texts: Sequence[str | None]) -> None:
    file = place / "reviews" / (f"day={day}" if day else "") / "part-0.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"review_id": range(len(texts)), "text": pa.array(texts, pa.string())}), file)


def good(rows: int, day: str = "") -> list[str]:
    return [f"{day} review {row}: a great tent, it kept us dry, I love it." for row in range(rows)]


def bad(rows: int, day: str = "") -> list[str]:
    return [f"{day} review {row}: a terrible tent, broken on arrival, I hate it." for row in range(rows)]


def alone(house: House, *definitions: Any, **options: Any) -> dg.ExecuteInProcessResult:
    """Run only the checks."""
    checks = [one for one in definitions if isinstance(one, dg.AssetChecksDefinition)]
    keys = [key for one in checks for key in one.check_keys]
    return house.materialize(*definitions, selection=dg.AssetSelection.checks(*keys), **options)


def test_a_good_day_is_green_and_says_its_numbers(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, MODERATION, TOPICS)
    checks = build_claude_batch_checks(
        insights,
        min_coverage=1,
        max_failure_rate=0,
        max_refusal_rate=0,
        max_truncation_rate=0,
        allowed_labels={"label": LABELS, "topic": ["price", "quality", "other"]},
        max_label_drift=0.2,
        max_cost_usd=1,
        max_cost_usd_per_row=0.01,
    )
    result = open_house().materialize(insights, *checks)
    assert result.success
    found = checks_of(result)
    assert len(found) == 16
    assert {key: one.description for key, one in found.items() if not one.passed} == {}
    coverage = found["labels", "coverage"]
    assert coverage.description == "4 of 4 rows of the source have an answer or a reason (100.0%); min_coverage=1."
    assert (number(coverage, "value"), number(coverage, "limit")) == (1.0, 1)
    assert found["labels", "failure_rate"].description == "0 of 3 rows have no answer (0.0%); max_failure_rate=0."
    assert found["labels", "label_drift"].description.startswith("Nothing earlier to compare label with")
    assert 0 < number(found["topics", "cost_per_row"], "value") < number(found["topics", "cost"], "value")


@pytest.mark.parametrize(
    ("fault", "check", "limit", "status"),
    [
        ("invalid", "failure_rate", "max_failure_rate", "invalid"),
        ("refusal", "refusal_rate", "max_refusal_rate", "refused"),
        ("truncated", "truncation_rate", "max_truncation_rate", "truncated"),
    ],
)
def test_rows_that_fail_are_a_red_check_and_a_green_asset(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, fault: str, check: str, limit: str, status: str
) -> None:
    write_reviews(place, rows=9)
    simulator.switch_on(fault, "all")
    insights = define(place, TOPICS)
    house = open_house()
    result = house.materialize(insights, *build_claude_batch_checks(insights, **{limit: 0.05}))
    assert result.success
    (one,) = checks_of(result).values()
    assert (one.check_name, one.passed, one.severity) == (check, False, RED)
    assert one.description.startswith(f"8 of 8 rows {'have no answer' if fault == 'invalid' else f'were {status}'} (100.0%")
    assert f"beyond {limit}=0.05." in one.description
    assert (number(one, "value"), number(one, "limit")) == (1.0, 0.05)
    assert [row[:2] for row in rows_shown(one)] == [(key, status) for key in range(8)]
    assert len(house.instance.fetch_materializations(dg.AssetKey("topics"), limit=9).records) == 1
    # At the limit it is green.
    (one,) = checks_of(alone(house, insights, *build_claude_batch_checks(insights, **{limit: 1.0}))).values()
    assert one.passed


def test_coverage_sees_rows_that_the_output_lacks_by_their_keys(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_rows(place, None, ["one", "two", "three", "four"])
    insights = define(place, SUMMARIES)
    checks = build_claude_batch_checks(insights, min_coverage=0.9)
    house = open_house()
    assert checks_of(house.materialize(insights, *checks))["summaries", "coverage"].passed
    before = asked(simulator)
    # As many rows as before, but two of them are others: a count sees nothing.
    pq.write_table(pa.table({"review_id": [0, 1, 8, 9], "text": list("abcd")}), place / "reviews" / "part-0.parquet")
    result = alone(house, insights, *checks)
    (one,) = checks_of(result).values()
    assert (one.passed, number(one, "value")) == (False, 0.5)
    assert one.description.startswith(
        "2 of 4 rows of the source have an answer or a reason (50.0%), below min_coverage=0.9.\n\nWithout: 8, 9.\n\n"
    )
    assert sorted(rows_shown(one)) == [(8,), (9,)]
    assert asked(simulator) == before, "a check asks nothing"


def test_coverage_of_a_limited_run_is_red(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, SUMMARIES)
    result = open_house(limit=1).materialize(insights, *build_claude_batch_checks(insights, min_coverage=1))
    (one,) = checks_of(result).values()
    assert (one.passed, number(one, "value")) == (False, 0.25)


def rows_of(day: str) -> pa.Table:
    return pa.table({"review_id": [f"{day}-{row}" for row in range(3)], "text": [f"{day} is a great day {row}" for row in range(3)]})


def drop_first_row(file: Path) -> None:
    said = {key: value for key, value in pq.read_metadata(file).metadata.items() if key != b"ARROW:schema"}
    table = pq.read_table(file, partitioning=None).slice(1)
    with pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(said)


def templated(place: Path) -> ParquetDataset:
    for day in DAYS:
        file = place / "drops" / day.replace("-", "/") / "rows.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(rows_of(day), file)
    return ParquetDataset(path=f"{place}/drops/{{partition:%Y/%m/%d}}/*.parquet", key="review_id", partition_column="day")


def in_one_file(place: Path) -> ParquetDataset:
    days = pa.concat_tables([rows_of(day).append_column("day", pa.array([day] * 3)) for day in DAYS])
    pq.write_table(days, place / "all.parquet")
    return ParquetDataset(path=str(place / "all.parquet"), key="review_id", partition_column="day")


def snapshotted(place: Path) -> TableSnapshot:
    def load(partition_key: str) -> pa.Table:
        return rows_of(partition_key)

    return TableSnapshot(load=load, key="review_id", partition_column="day")


@pytest.mark.parametrize("make", [templated, in_one_file, snapshotted])
def test_coverage_reads_every_kind_of_source(place: Path, open_house: OpenHouse, make: Callable[[Path], Any]) -> None:
    @claude_batch_assets(source=make(place), tasks=[SUMMARIES], partitions_def=DAILY, key_prefix="lake")
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
        yield from claude_batch.run(context)

    checks = build_claude_batch_checks(insights, min_coverage=1)
    house = open_house()
    (one,) = checks_of(house.materialize(insights, *checks, tags=RANGE)).values()
    assert one.passed, one.description
    file = house.output / "lake" / "summaries" / f"day={DAYS[1]}" / "part-0.parquet"
    drop_first_row(file)
    (one,) = checks_of(alone(house, insights, *checks)).values()
    assert not one.passed
    assert f"{DAYS[1]}: 2 of 3 rows of the source have an answer or a reason (66.7%) (without: {DAYS[1]}-0)" in one.description


def test_a_deferred_run_skips_its_checks(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, SUMMARIES, wait_for=timedelta(0))
    result = open_house().materialize(insights, *build_claude_batch_checks(insights, min_coverage=1))
    assert result.success
    assert checks_of(result) == {}


def test_coverage_without_the_key_in_the_output_compares_counts_and_says_so(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, SUMMARIES, columns=["stars"])
    checks = build_claude_batch_checks(insights, min_coverage=1)
    house = open_house()
    (one,) = checks_of(house.materialize(insights, *checks)).values()
    assert one.passed
    assert "does not carry the key" in one.description
    write_reviews(place, rows=8)
    (one,) = checks_of(alone(house, insights, *checks)).values()
    assert (one.passed, number(one, "value")) == (False, 0.5)


def test_a_range_is_judged_by_partition_and_the_worst_is_named(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place, *DAYS)
    insights = define(place, TOPICS, partitioned=True)
    house = open_house()
    checks = build_claude_batch_checks(insights, max_failure_rate=0.1, min_coverage=1)
    for day in (DAYS[0], DAYS[2]):
        (coverage, rate) = checks_of(house.materialize(insights, *checks, partition_key=day)).values()
        assert coverage.passed
        assert rate.passed
        assert number(rate, "partitions") == day
    simulator.switch_on("invalid", "all")
    found = checks_of(house.materialize(insights, *checks, tags=RANGE))
    rate = found["topics", "failure_rate"]
    assert not rate.passed
    assert rate.description.startswith(f"1 of 3 partitions is beyond max_failure_rate=0.1.\n\n- {DAYS[1]}: 3 of 3 rows have no answer")
    assert number(rate, "partitions") == ", ".join(DAYS)
    assert number(rate, "by_partition") == {DAYS[1]: 1.0}
    assert f"day={DAYS[1]}" in number(rate, "sql")
    assert len(rows_shown(rate)) == 3
    assert found["topics", "coverage"].description.startswith("All 3 partitions are within min_coverage=1.")
    # Only the partition of the run counts; alone, all that is published.
    assert all(one.passed for one in checks_of(house.materialize(insights, *checks, partition_key=DAYS[0])).values())
    assert not checks_of(alone(house, insights, *checks))["topics", "failure_rate"].passed


def test_labels_that_are_not_allowed_are_counted_and_shown(place: Path, open_house: OpenHouse) -> None:
    write_rows(place, None, [*good(6), *bad(6)])
    insights = define(place, MODERATION)
    house = open_house()
    assert house.materialize(insights).success
    held = pq.read_table(house.output / "labels" / "part-0.parquet")["label"].to_pylist()
    allowed = sorted({held[0]})
    (one,) = checks_of(alone(house, insights, *build_claude_batch_checks(insights, allowed_labels=allowed))).values()
    strange = [label for label in held if label not in allowed]
    assert strange, "the simulator gives more than one label"
    assert (one.passed, number(one, "value")) == (False, len(strange))
    assert one.description.startswith(f"{len(strange)} of 12 answered rows have another label, beyond allowed_labels.\n\nLabel: ")
    assert sorted(row[1] for row in rows_shown(one)) == sorted(strange)


def test_drift_compares_a_day_with_the_days_before_it_and_never_with_later_ones(place: Path, open_house: OpenHouse) -> None:
    for day in DAYS[:2]:
        write_rows(place, day, [*good(30, day), *bad(10, day)])
    write_rows(place, DAYS[2], bad(40, DAYS[2]))
    insights = define(place, MODERATION, partitioned=True)
    house = open_house()
    checks = build_claude_batch_checks(insights, max_label_drift={"label": 0.3})
    (one,) = checks_of(house.materialize(insights, *checks, tags=RANGE)).values()
    held = {day: label_counts(house, day) for day in DAYS}
    before, now = held[DAYS[0]] + held[DAYS[1]], held[DAYS[2]]
    expected = sum(abs(now[label] / 40 - before[label] / 80) for label in LABELS) / 2
    assert expected > 0.3
    assert (one.passed, number(one, "value")) == (False, pytest.approx(expected))
    assert one.description.startswith(
        f"1 of 3 partitions is beyond max_label_drift=0.3.\n\n- {DAYS[2]}: the distance of label from 80 earlier rows is {expected:.3f}"
    )
    assert f"complaint {before['complaint'] / 80:.1%} to {now['complaint'] / 40:.1%}" in one.description
    assert {label for _, label in rows_shown(one)} == {"complaint"}
    # The first day has nothing before it, though a later one is there by now.
    (one,) = checks_of(house.materialize(insights, *checks, partition_key=DAYS[0])).values()
    assert one.passed
    assert one.description.startswith("Nothing earlier to compare label with")


def test_drift_without_partitions_compares_with_the_materializations_before(place: Path, open_house: OpenHouse) -> None:
    insights = define(place, MODERATION)
    checks = build_claude_batch_checks(insights, max_label_drift=0.3)
    house = open_house()
    for texts, passed in ((good(40), True), (good(40), True), (bad(40), False)):
        write_rows(place, None, texts)
        (one,) = checks_of(house.materialize(insights, *checks)).values()
        assert one.passed == passed, one.description
    assert "from 80 earlier rows" in one.description


def label_counts(house: House, day: str) -> Counter[str]:
    file = house.output / "labels" / f"day={day}" / "part-0.parquet"
    return Counter(pq.read_table(file, partitioning=None)["label"].to_pylist())


def test_cost_is_that_of_the_newest_materialization(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, SUMMARIES)
    house = open_house()
    checks = build_claude_batch_checks(insights, max_cost_usd=0.0000001, max_cost_usd_per_row=0.0000001)
    found = checks_of(house.materialize(insights, *checks))
    assert [one.passed for one in found.values()] == [False, False]
    paid = house.metadata("summaries")[None]["claude_batch/cost_usd"]
    assert number(found["summaries", "cost"], "value") == paid
    assert number(found["summaries", "cost_per_row"], "value") == pytest.approx(paid / 3)
    # Again: all is answered, so it cost nothing.
    found = checks_of(house.materialize(insights, *checks))
    assert {one.description for one in found.values()} == {
        "It cost $0.00; max_cost_usd=1e-07.",
        "Nothing was asked; max_cost_usd_per_row=1e-07.",
    }
    assert all(one.passed for one in found.values())


def test_a_blocking_check_stops_what_is_downstream_of_its_own_asset_only(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    insights = define(place, TOPICS, SUMMARIES)

    @dg.asset(deps=["topics"])
    def after_topics() -> None: ...

    @dg.asset(deps=["summaries"])
    def after_summaries() -> None: ...

    simulator.switch_on("invalid", "all")
    everything = (insights, after_topics, after_summaries)
    house = open_house()
    gates = build_claude_batch_checks(insights.get_asset_spec(dg.AssetKey("topics")), max_failure_rate=0, blocking=True)
    gates += build_claude_batch_checks(insights.get_asset_spec(dg.AssetKey("summaries")), max_failure_rate=1, blocking=True)
    result = house.materialize(*everything, *gates)
    there = {event.asset_key.to_user_string() for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"}
    assert there == {"topics", "summaries", "after_summaries"}
    warned = build_claude_batch_checks(insights, max_failure_rate=0, blocking=["failure_rate"], severity={"failure_rate": "WARN"})
    result = house.materialize(*everything, *warned)
    assert result.success
    assert {one.severity for one in checks_of(result).values()} == {dg.AssetCheckSeverity.WARN}


def test_a_check_before_anything_is_published_is_red_and_says_what_to_do(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    insights = define(place, SUMMARIES)
    (one,) = checks_of(alone(open_house(), insights, *build_claude_batch_checks(insights, max_failure_rate=1))).values()
    assert (one.passed, one.description) == (False, "Nothing is published yet. Materialize the asset first.")


def test_checks_load_and_run_without_a_warning(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        insights = define(place, MODERATION, partitioned=True)
        checks = build_claude_batch_checks(insights, min_coverage=1, max_label_drift=0.5, max_cost_usd=1, blocking=True)
        defs = dg.Definitions(assets=[insights], asset_checks=checks, resources=claude_batch_resources())
        dg.Definitions.validate_loadable(defs)
        assert open_house().materialize(insights, *checks, tags=RANGE).success


def test_simulated_materializations_are_never_compared_with_real_ones(
    place: Path, open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(place, None, good(40))
    insights = define(place, MODERATION)
    house = open_house()
    for _ in range(2):
        assert house.materialize(insights).success
    checks = build_claude_batch_checks(insights, max_label_drift=0.5)
    (one,) = checks_of(alone(house, insights, *checks)).values()
    assert one.description.startswith("The distance of label from 40 earlier rows is 0.000")
    monkeypatch.delenv("ANTHROPIC_BASE_URL")
    (one,) = checks_of(alone(house, insights, *checks)).values()
    assert one.description.startswith("Nothing earlier to compare label with")


@pytest.mark.parametrize("day", [None, DAYS[0]], ids=["whole", "day"])
def test_coverage_of_a_chain_whose_keys_were_prefixed_compares_with_the_rows_that_were_asked_about(
    place: Path, open_house: OpenHouse, day: str | None
) -> None:
    """Below the keys as they were written lies an older output, of one row."""
    write_rows(place, day, good(1))
    house = open_house()
    first = define(place, SUMMARIES, partitioned=day is not None)
    assert house.materialize(first, partition_key=day).success
    write_rows(place, day, good(3))

    @claude_batch_assets(
        source=ParquetDataset(asset="summaries", key="review_id"), tasks=[SHORTER], partitions_def=None if day is None else DAILY
    )
    def second(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
        yield from claude_batch.run(context)

    module = ModuleType("module")
    module.assets = [first, second]  # type: ignore[attr-defined]
    module.checks = build_claude_batch_checks(second, min_coverage=1, blocking=True)  # type: ignore[attr-defined]
    assets = dg.load_assets_from_modules([module], key_prefix="pre")
    checks = dg.load_asset_checks_from_modules([module], asset_key_prefix="pre")
    result = house.materialize(*assets, *checks, partition_key=day)
    assert result.success
    (coverage,) = checks_of(result).values()
    assert coverage.description == "3 of 3 rows of the source have an answer or a reason (100.0%); min_coverage=1."
