"""New files become dynamic partitions, each with a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster import (
    ClaudeBatchResource,
    ParquetDataset,
    Summarize,
    TableSnapshot,
    build_parquet_files_sensor,
    claude_batch_assets,
    claude_batch_resources,
)
from claude_batch_dagster.core.errors import UsageError

DROPS = dg.DynamicPartitionsDefinition(name="drops")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


class Ticker:
    """Ticks as the daemon does: partitions are added, then runs requested, then the cursor is kept."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, pattern: str = "drops/{partition}.parquet", **options: Any) -> None:
        source = ParquetDataset(path=f"{folder}/{pattern}", key="id", partition_column="file")

        @claude_batch_assets(source=source, tasks=[Summarize(name="s", column="text", model="claude-haiku-5-5")], partitions_def=DROPS)
        def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
            yield from claude_batch.run(context)

        self.folder, self.instance, self.cursor = folder, instance, None
        self.sensor = build_parquet_files_sensor(source, DROPS, target=insights, **options)
        self.repository = dg.Definitions(
            assets=[insights], sensors=[self.sensor], resources=claude_batch_resources(root=str(folder / "root"))
        ).get_repository_def()
        self.requested: list[str] = []
        self.run_keys: set[str] = set()

    def write(self, *names: str, rows: int = 1) -> None:
        for name in names:
            file = self.folder / "drops" / f"{name}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"id": list(range(rows)), "text": ["x"] * rows}), file)

    def tick(self, *, dies: bool = False) -> list[str]:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, repository_def=self.repository)
        result = self.sensor(context)
        if isinstance(result, dg.SkipReason):
            return []
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        if dies:
            return []
        fresh = [request for request in result.run_requests or [] if request.run_key not in self.run_keys]
        self.run_keys |= {str(request.run_key) for request in fresh}
        self.cursor = result.cursor
        return [str(request.partition_key) for request in fresh]


def test_a_file_is_taken_once_it_is_the_same_for_a_tick(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance)
    ticker.write("a", "b")
    assert ticker.tick() == []
    assert instance.get_dynamic_partitions("drops") == []
    ticker.write("b", rows=2)
    assert ticker.tick() == ["a"]
    assert ticker.tick() == ["b"]
    assert ticker.tick() == []
    assert instance.get_dynamic_partitions("drops") == ["a", "b"]


def test_a_file_that_is_known_is_not_requested_again_whatever_becomes_of_it(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance, settle_ticks=0)
    ticker.write("a")
    assert ticker.tick() == ["a"]
    ticker.write("a", rows=3)
    assert [ticker.tick(), ticker.tick()] == [[], []]
    ticker.cursor = None
    assert ticker.tick() == [], "a cursor that is reset costs no second run"


def test_a_tick_takes_so_many_and_the_next_ones_the_rest(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance, settle_ticks=1, max_partitions_per_tick=2)
    ticker.write(*(f"f{number:02}" for number in range(25)))
    ticks = [ticker.tick() for _ in range(16)]
    assert max(map(len, ticks)) == 2
    assert [key for tick in ticks for key in tick] == [f"f{number:02}" for number in range(25)]
    assert ticks[0] == []


def test_a_tick_that_dies_after_the_partition_was_added_requests_its_run_the_next_time(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    ticker = Ticker(tmp_path, instance)
    ticker.write("a")
    ticker.tick()
    ticker.tick(dies=True)
    assert instance.get_dynamic_partitions("drops") == ["a"]
    assert ticker.tick() == ["a"]
    assert ticker.tick() == []


def test_a_folder_is_a_partition_where_the_path_says_so(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance, "drops/{partition}/**/*.parquet")
    ticker.write("x/1", "x/deep/2", "y/1")
    ticker.tick()
    ticker.write("y/2")
    assert ticker.tick() == ["x"]
    assert ticker.tick() == ["y"]


def test_hive_folders_are_partitions_too(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance, "drops", settle_ticks=0)
    ticker.write("file=x/1", "file=x/2", "file=y/1")
    assert ticker.tick() == ["x", "y"]


def test_an_empty_folder_is_waited_for_and_strange_names_are_passed_over(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    ticker = Ticker(tmp_path, instance, settle_ticks=0)
    assert ticker.tick() == []
    ticker.write("a...b", "good")
    assert ticker.tick() == ["good"]


def test_the_requested_run_reads_that_file_alone(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    from claude_batch_dagster.resources.sources import find_source
    from claude_batch_dagster.storage.source import Source

    ticker = Ticker(tmp_path, instance, settle_ticks=0)
    ticker.write("a", "b")
    ticker.tick()
    source = ParquetDataset(path=f"{tmp_path}/drops/{{partition}}.parquet", key="id", partition_column="file")
    found = Source(find_source(source, root="r", outputs="o", partitions=["b"], partitions_def=DROPS))
    assert [file.path for file in found.files] == ["b.parquet"]


@pytest.mark.parametrize(
    "source",
    [
        ParquetDataset(path="drops/*.parquet", key="id"),
        ParquetDataset(asset="other", key="id"),
        TableSnapshot(load=lambda: None, key="id"),
    ],
)
def test_a_source_that_names_no_partitions_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=r'path="drops/\{partition\}.parquet"'):
        build_parquet_files_sensor(source, DROPS, target="*")
