"""What a run reads: upstream outputs, kept tables, partitions by the definition's format."""

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import SourceError, UsageError
from claude_batch_dagster.resources.sources import find_source, name_tables
from claude_batch_dagster.storage.dataset import ParquetDataset, TableSnapshot
from claude_batch_dagster.storage.output import Marker, write_marker
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store

KEY = dg.AssetKey(["claude", "summaries"])


def find(place: Path, source: Any, partitions: Any = None, **more: Any) -> Any:
    return find_source(source, root=f"{place}/root", outputs=f"{place}/out", partitions=partitions, **more)


def publish(place: Path, partition_column: str | None = None, folder: str = "claude/summaries") -> None:
    write_marker(Store(f"{place}/out/{folder}"), Marker(source="x", endpoint="simulator", partition_column=partition_column))


def test_the_key_of_a_partition_has_the_form_of_its_definition(tmp_path: Path) -> None:
    source = ParquetDataset(path=f"{tmp_path}/{{partition:%Y/%m/%d}}.parquet", key="id", partition_column="day")
    daily = dg.DailyPartitionsDefinition("01.11.2026", fmt="%d.%m.%Y")
    file = tmp_path / "2026/11/05.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1]}), file)
    found = find(tmp_path, source, ["05.11.2026"], partitions_def=daily)
    assert Source(found).partition_keys() == ["05.11.2026"]
    static = dg.StaticPartitionsDefinition(["2026-11-05"])
    assert Source(find(tmp_path, source, ["2026-11-05"], partitions_def=static)).partition_keys() == ["2026-11-05"]


@pytest.mark.parametrize(
    "asset", [KEY, "claude/summaries", dg.AssetSpec(KEY), dg.asset(key=KEY)(lambda: None)], ids=["key", "text", "spec", "definition"]
)
def test_a_source_without_a_path_is_the_output_of_its_asset(tmp_path: Path, asset: Any) -> None:
    if asset == "claude/summaries":
        asset = dg.AssetKey.from_user_string(asset)
    publish(tmp_path)
    source = ParquetDataset(asset=asset, key="id")
    assert source.uri == "the output of claude/summaries"
    found = find(tmp_path, source)
    assert (found.path, found.partition_column) == (f"{tmp_path}/out/claude/summaries", None)


def test_it_is_partitioned_as_the_asset_is(tmp_path: Path) -> None:
    publish(tmp_path, "day")
    assert find(tmp_path, ParquetDataset(asset=KEY, key="id"), ["2026-11-01"]).partition_column == "day"
    assert find(tmp_path, ParquetDataset(asset=KEY, key="id"), None).partition_column is None, "all partitions as one"
    with pytest.raises(SourceError, match=r"is partitioned by day, and the assets that read it are partitioned by hour"):
        find(tmp_path, ParquetDataset(asset=KEY, key="id", partition_column="hour"), ["1"])
    publish(tmp_path, None, "plain")
    with pytest.raises(SourceError, match="is one file, and the assets that read it are partitioned"):
        find(tmp_path, ParquetDataset(asset="plain", key="id"), ["2026-11-01"])


def test_an_asset_that_has_no_output_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the output of claude/summaries is not there.*Materialize that asset first"):
        find(tmp_path, ParquetDataset(asset=KEY, key="id"))


def test_a_prefix_that_the_code_location_gave_to_all_keys_is_followed(tmp_path: Path) -> None:
    publish(tmp_path, folder="prod/claude/summaries")
    prefixed = dg.AssetKey(["prod", "claude", "summaries"])
    found = find(tmp_path, ParquetDataset(asset=KEY, key="id"), upstream=[dg.AssetKey("other"), prefixed])
    assert found.path == f"{tmp_path}/out/prod/claude/summaries"
    with pytest.raises(UsageError, match="does not depend on"):
        find(tmp_path, ParquetDataset(asset=KEY, key="id"), upstream=[dg.AssetKey("other")])


def test_a_function_is_called_once_a_partition_with_what_it_takes(tmp_path: Path) -> None:
    calls: list[Any] = []

    def load(context: Any, partition_key: str) -> pa.Table | None:
        calls.append((context, partition_key))
        return None if partition_key == "c" else pa.table({"id": [1], "text": [partition_key]})

    snapshot = TableSnapshot(load=load, key="id", partition_column="day")
    found = find(tmp_path, snapshot, ["a", "b", "c"], context="the context")
    assert calls == [("the context", "a"), ("the context", "b"), ("the context", "c")]
    source = Source(found)
    assert source.partition_keys() == ["a", "b"]
    assert [piece.to_pylist() for piece in source.pieces(source.files_of("b")[0], ["day", "text"])] == [[{"day": "b", "text": "b"}]]
    with pytest.raises(SourceError, match="'c' has no rows"):
        source.files_of("c")
    again = find(tmp_path, snapshot, ["a", "b", "c"], kept=name_tables(found))
    assert (len(calls), again) == (3, found)


def test_a_table_without_partitions_is_one_file_below_the_root(tmp_path: Path) -> None:
    snapshot = TableSnapshot(load=lambda: pa.table({"id": [1]}), key="id", asset="reviews")
    found = find(tmp_path, snapshot)
    [file] = (tmp_path / "root/snapshots").iterdir()
    assert (found.uri, found.asset, found.key) == (str(file), "reviews", "id")
    assert Source(found).row_count(Source(found).files[0]) == 1
    assert find(tmp_path, TableSnapshot(load=lambda: 1 / 0, key="id", asset="reviews"), kept=name_tables(found)) == found
    with pytest.raises(SourceError, match=r"<lambda> returned a NoneType"):
        find(tmp_path, TableSnapshot(load=lambda: None, key="id"))


def test_the_asset_may_be_named_by_the_parts_of_its_key(tmp_path: Path) -> None:
    publish(tmp_path)
    source = ParquetDataset(asset=["claude", "summaries"], key="id")
    assert source.uri == "the output of claude/summaries"
    assert find(tmp_path, source).path == f"{tmp_path}/out/claude/summaries"


def test_a_path_may_be_a_pathlib_one(tmp_path: Path) -> None:
    source = ParquetDataset(path=tmp_path / "reviews", key="id")
    assert source == ParquetDataset(path=f"{tmp_path}/reviews", key="id")
    assert source.uri == f"{tmp_path}/reviews"
    with pytest.raises(UsageError, match=r"has \{partition\}"):
        ParquetDataset(path=tmp_path / "{partition}.parquet", key="id")


def test_keys_that_occur_twice_in_a_table_name_what_returned_it(tmp_path: Path) -> None:
    def load() -> pa.Table:
        return pa.table({"id": [1, 1]})

    source = Source(find(tmp_path, TableSnapshot(load=load, key="id")))
    with pytest.raises(SourceError, match=r"^what .*load returns \(kept as .*/snapshots/.*\.parquet\): 1 key \(id\) occurs more than once"):
        source.check_keys(source.files)
