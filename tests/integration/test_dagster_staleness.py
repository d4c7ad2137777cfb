"""Dagster's own word on what is out of date: code versions are task keys, data versions are what was asked about and by whom."""

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver  # noqa: TID251 - what the UI shows; nothing public says it
from dagster._core.loader import LoadingContextForTest  # noqa: TID251

from claude_batch_dagster import Summarize
from tests.dagster_house import DAILY, DAYS, RANGE, House, OpenHouse, define, write_reviews
from tests.stack import MODEL

SHORT = Summarize(name="summaries", column="text", model=MODEL, max_words=20)
LONG = Summarize(name="summaries", column="text", model=MODEL, max_words=60)


def upstream(version: str, partitions_def: "dg.PartitionsDefinition[str] | None" = None) -> dg.AssetsDefinition:
    @dg.asset(name="reviews", partitions_def=partitions_def)
    def reviews() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion(version))

    return reviews


def downstream(partitions_def: "dg.PartitionsDefinition[str] | None" = None) -> dg.AssetsDefinition:
    @dg.asset(name="report", deps=["summaries"], partitions_def=partitions_def)
    def report() -> None:
        pass

    return report


def stale(house: House, *assets: dg.AssetsDefinition, key: str, partition: str | None = None) -> list[str]:
    """Why an asset is out of date; nothing where it is not."""
    graph = dg.Definitions(assets=assets, resources=house.resources).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(house.instance, graph, LoadingContextForTest(house.instance))
    return [f"{cause.category.value.lower()}: {cause.reason}" for cause in resolver.get_stale_causes(dg.AssetKey(key), partition)]


def test_an_asset_is_stale_after_new_data_upstream_or_another_task_and_not_after_a_run_that_changed_nothing(
    place: Path, open_house: OpenHouse
) -> None:
    write_reviews(place)
    house, insights, report = open_house(), define(place, SHORT), downstream()
    assets = (upstream("1"), insights, report)
    assert house.materialize(*assets).success
    assert stale(house, *assets, key="summaries") == stale(house, *assets, key="report") == []

    assert house.materialize(*assets, selection=["reviews", "summaries"]).success
    assert stale(house, *assets, key="summaries") == stale(house, *assets, key="report") == []

    write_reviews(place, rows=6)
    changed = (upstream("2"), insights, report)
    assert house.materialize(*changed, selection=["reviews"]).success
    assert stale(house, *changed, key="summaries") == ["data: has a new dependency data version"]
    assert house.materialize(*changed, selection=["summaries"]).success
    assert stale(house, *changed, key="summaries") == []
    assert stale(house, *changed, key="report") == ["data: has a new dependency data version"]

    longer = (upstream("2"), define(place, LONG), report)
    assert stale(house, *longer, key="summaries") == ["code: has a new code version"]
    assert house.materialize(*longer, selection=["summaries"]).success
    assert stale(house, *longer, key="summaries") == []


def test_one_partition_is_stale_after_new_data_in_one(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, *DAYS)
    house = open_house()
    assets = (upstream("1", DAILY), define(place, SHORT, partitioned=True))
    for day in DAYS:
        assert house.materialize(*assets, selection=["reviews"], partition_key=day).success
    assert house.materialize(*assets, selection=["summaries"], tags=RANGE).success
    assert [stale(house, *assets, key="summaries", partition=day) for day in DAYS] == [[], [], []]

    changed = (upstream("2", DAILY), assets[1])
    assert house.materialize(*changed, selection=["reviews"], partition_key=DAYS[1]).success
    assert [bool(stale(house, *changed, key="summaries", partition=day)) for day in DAYS] == [False, True, False]
    assert house.materialize(*changed, selection=["summaries"], partition_key=DAYS[1]).success
    assert [stale(house, *changed, key="summaries", partition=day) for day in DAYS] == [[], [], []]


def test_a_partition_that_was_published_beside_failed_ones_knows_its_code_and_its_upstream(place: Path, open_house: OpenHouse) -> None:
    """Each partition of such a run is a materialization of its own, with the provenance that Dagster gives those of a whole run."""
    write_reviews(place, *DAYS[:2])
    house = open_house()
    assets = (upstream("1", DAILY), define(place, SHORT, partitioned=True))
    for day in DAYS:
        assert house.materialize(*assets, selection=["reviews"], partition_key=day).success
    assert not house.materialize(*assets, selection=["summaries"], tags=RANGE).success
    assert stale(house, *assets, key="summaries", partition=DAYS[0]) == []
    longer = (assets[0], define(place, LONG, partitioned=True))
    assert stale(house, *longer, key="summaries", partition=DAYS[0]) == ["code: has a new code version"]
    changed = (upstream("2", DAILY), assets[1])
    assert house.materialize(*changed, selection=["reviews"], partition_key=DAYS[0]).success
    assert stale(house, *changed, key="summaries", partition=DAYS[0]) == ["data: has a new dependency data version"]


@pytest.mark.parametrize("name", ["summaries", "renamed"])
def test_renaming_a_task_is_no_new_code(place: Path, name: str) -> None:
    (spec,) = define(place, Summarize(name=name, column="text", model=MODEL, max_words=20)).specs
    assert spec.code_version == SHORT.task_key
