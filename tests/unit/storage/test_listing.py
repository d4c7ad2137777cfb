"""Partitions of a template, of a column in the files, of files that a run wrote."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import SourceError, UsageError
from claude_batch_dagster.storage import column_partitions
from claude_batch_dagster.storage.dataset import ListedDataset, ParquetDataset, TableSnapshot
from claude_batch_dagster.storage.source import Source


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def rows(source: Source, partition: str | None, columns: list[str], size: int = 2_048) -> list[tuple[Any, ...]]:
    return [
        tuple(row.values())
        for file in source.files_of(partition)
        for piece in source.pieces(file, columns, size)
        for row in piece.to_pylist()
    ]


def of_column(path: Path, only: tuple[str, ...] | None = None) -> Source:
    return Source(ListedDataset(path=str(path), key="id", partition_column="day", only=only))


def test_a_template_gives_each_file_its_partition_as_a_column(tmp_path: Path) -> None:
    write(tmp_path / "r/2026/11/01/b.parquet", {"id": [2]})
    write(tmp_path / "r/2026/11/01/a.parquet", {"id": [1]})
    write(tmp_path / "r/2026/11/02/a.parquet", {"id": [3]})
    source = Source(ParquetDataset(path=f"{tmp_path}/r/{{partition:%Y/%m/%d}}/*.parquet", key="id", partition_column="day"))
    assert source.partition_keys() == ["2026-11-01", "2026-11-02"]
    assert rows(source, "2026-11-01", ["id", "day"]) == [(1, "2026-11-01"), (2, "2026-11-01")]
    assert source.schema().names == ["id", "day"]
    with pytest.raises(SourceError) as error:
        source.files_of("2026-11-03")
    assert str(error.value) == (
        f"Partition '2026-11-03' has no file {tmp_path}/r/2026/11/03/*.parquet. Nothing of it was sent. Write it first."
    )


def test_wanted_partitions_without_a_file_are_told_apart_from_a_wrong_path(tmp_path: Path) -> None:
    write(tmp_path / "r/2026/11/01/a.parquet", {"id": [1]})
    shared = {"key": "id", "partition_column": "day"}
    source = Source(ListedDataset(path=f"{tmp_path}/r/{{partition:%Y/%m/%d}}", only=("2026-11-03",), **shared))
    with pytest.raises(SourceError, match="has no file"):
        source.files_of("2026-11-03")
    with pytest.raises(SourceError, match="No Parquet file matches the source"):
        Source(ParquetDataset(path=f"{tmp_path}/s/{{partition:%Y/%m/%d}}", **shared))


def test_a_template_without_a_partition_column_is_refused_when_it_is_defined() -> None:
    with pytest.raises(UsageError, match=r'partition_column="day"'):
        ParquetDataset(path="r/{partition}/x.parquet", key="id")
    with pytest.raises(UsageError, match="neither a path nor an asset"):
        ParquetDataset(key="id")


def test_a_glob_without_partitions_is_one_output(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b"):
        write(tmp_path / f"{name}.parquet", {"id": [name]})
    source = Source(ParquetDataset(path=f"{tmp_path}/a*.parquet", key="id"))
    assert rows(source, None, ["id"]) == [("a1",), ("a2",)]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ([date(2026, 11, 2), date(2026, 11, 1), date(2026, 11, 2)], ("2026-11-01", "2026-11-02")),
        (["b", "a", "b"], ("a", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b")),
        (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b")),
        ([10, 9, 10], ("9", "10")),
        ([True, False, True], ("false", "true")),
        (["b", None, "b"], (column_partitions.NULL_PARTITION, "b")),
    ],
    ids=["dates", "text", "dictionary", "large", "numbers", "booleans", "nulls"],
)
def test_a_column_in_the_files_is_partitions_by_its_text(tmp_path: Path, values: Any, keys: tuple[str, str]) -> None:
    path = write(tmp_path / "r.parquet", {"id": [1, 2, 3], "day": values, "text": ["x", "y", "z"]}, row_group_size=1)
    for only in (None, keys, (keys[0],), (keys[0], "nothing")):
        source = of_column(path, only)
        found = sorted(set(keys) if only is None else set(keys) & set(only))
        assert source.partition_keys() == found
        assert rows(source, keys[0], ["text", "id"]) == [("y", 2)]
        assert [source.row_count(file) for file in source.files_of(keys[0])] == [1]
        assert [piece.num_rows for piece in source.pieces(source.files_of(keys[0])[0], [])] == [1]
    assert rows(of_column(path), keys[1], ["id"], size=1) == [(1,), (3,)]


def test_rows_come_from_every_file_that_has_the_value(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": [1, 2], "day": ["m", "n"]})
    write(tmp_path / "b.parquet", {"id": [3, 4], "day": ["n", "o"]})
    source = of_column(tmp_path)
    assert source.partition_keys() == ["m", "n", "o"]
    assert rows(source, "n", ["id"]) == [(2,), (3,)]


def test_row_groups_whose_statistics_hold_no_wanted_value_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [date(2026, 11, 1 + number // 10) for number in range(100)]
    path = write(tmp_path / "r.parquet", {"id": list(range(100)), "day": days}, row_group_size=10)
    read: list[int] = []
    plain = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *a, **k: read.extend(k.get("row_groups") or range(self.num_row_groups)) or plain(self, *a, **k),
    )
    source = of_column(path, ("2026-11-04",))
    assert rows(source, "2026-11-04", ["id"]) == [(number,) for number in range(30, 40)]
    assert set(read) == {3}
    read.clear()
    of_column(write(tmp_path / "n.parquet", {"id": [1, 2], "day": [5, 6]}, row_group_size=1), ("6", "05", "x"))
    assert read == [0, 1], "'05' has the value 5, so its row group is looked at, and holds no such text"
    assert of_column(tmp_path / "n.parquet", ("05",)).files == []


def test_a_file_is_looked_through_once_for_all_its_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "r.parquet", {"id": [1, 2], "day": ["a", "b"]})
    looks: list[str] = []
    plain = column_partitions.find_partitions
    monkeypatch.setattr("claude_batch_dagster.storage.source.find_partitions", lambda *a: looks.append("look") or plain(*a))
    for _ in range(3):
        of_column(path)
    assert looks == ["look"]
    write(path, {"id": [1, 2, 3], "day": ["a", "b", "c"]})
    assert of_column(path).partition_keys() == ["a", "b", "c"]
    assert looks == ["look"] * 2


def test_each_partition_of_a_file_has_a_digest_of_its_own_that_changes_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"id": [1, 2], "day": ["a", "b"]})
    source = of_column(path)
    before = {key: source.digest(source.files_of(key)[0]) for key in ("a", "b")}
    assert before["a"] != before["b"]
    again = of_column(path)
    assert again.digest(again.files_of("a")[0]) == before["a"]
    assert not source.changed(["a"])
    write(path, {"id": [1, 3], "day": ["a", "b"]})
    after = of_column(path)
    assert after.digest(after.files_of("b")[0]) not in before.values()
    assert source.changed(["b"])
    whole = Source(ParquetDataset(path=str(path), key="id"))
    assert whole.digest(whole.files[0]) not in {after.digest(after.files_of(key)[0]) for key in ("a", "b")}


def test_a_column_that_names_no_partition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'day' of .*r.parquet is of type double"):
        of_column(write(tmp_path / "r.parquet", {"id": [1], "day": [1.5]}))
    write(tmp_path / "s/a.parquet", {"id": [1], "day": ["a"]})
    write(tmp_path / "s/b.parquet", {"id": [1]})
    with pytest.raises(SourceError, match=r"b.parquet has no column 'day', which other files"):
        of_column(tmp_path / "s")
    with pytest.raises(SourceError, match=r"row in .*: the column 'day' has no such value"):
        of_column(write(tmp_path / "t.parquet", {"id": [1], "day": ["a"]})).files_of("b")


def test_a_file_in_a_partitions_folder_belongs_to_that_partition(tmp_path: Path) -> None:
    path = write(tmp_path / "lake/day=2026-11-01/x/a.parquet", {"id": [1]})
    source = Source(ParquetDataset(path=str(path), key="id", partition_column="day"))
    assert rows(source, "2026-11-01", ["id", "day"]) == [(1, "2026-11-01")]
    assert source.name(source.files[0]) == str(path)


def test_files_that_a_run_wrote_are_these_and_no_others(tmp_path: Path) -> None:
    for day in ("a", "b"):
        for name in ("x", "y"):
            write(tmp_path / f"day={day}/{name}.parquet", {"id": [f"{day}{name}"]})
    source = Source(ListedDataset(path=str(tmp_path), key="id", partition_column="day", only=("a", "b"), files=("day=a/y.parquet",)))
    assert rows(source, "a", ["id"]) == [("ay",)]
    assert source.uri_of("a") == f"{tmp_path}/day=a/y.parquet"
    with pytest.raises(SourceError, match="has no rows in"):
        source.files_of("b")


def test_a_function_whose_parameters_cannot_be_given_is_refused_when_it_is_defined() -> None:
    with pytest.raises(UsageError, match="needs the parameter 'day'"):
        TableSnapshot(load=lambda day: None, key="id")
    with pytest.raises(UsageError, match="takes no partition_key"):
        TableSnapshot(load=lambda: None, key="id", partition_column="day")
    assert TableSnapshot(load=lambda partition_key, more=1: None, key="id").arguments == {"partition_key"}
    assert TableSnapshot(load=lambda **all: None, key="id").arguments == {"partition_key", "context"}
