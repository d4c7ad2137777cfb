import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage import source as sources
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.source import Source, find_partition_column


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def read(path: Path, key: str | Sequence[str] = "id", partition_column: str | None = None) -> Source:
    return Source(ParquetDataset(path=str(path), key=key, partition_column=partition_column))


def texts(source: Source, columns: Sequence[str], rows: int = 2_048) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for file in source.files for piece in source.pieces(file, columns, rows) for row in piece.to_pylist()]


def test_one_file_is_one_output(tmp_path: Path) -> None:
    source = read(write(tmp_path / "reviews.parquet", {"id": [1, 2], "text": ["a", "b"]}))
    assert source.partition_keys() == [None]
    assert [file.path for file in source.files_of(None)] == ["reviews.parquet"]
    assert texts(source, ["text", "id"]) == [("a", 1), ("b", 2)]
    assert source.row_count(source.files[0]) == 2


@pytest.mark.parametrize("name", ["_data.parquet", ".hidden.parquet", "reviews", "a b {c}.pq"])
def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    assert texts(read(write(tmp_path / name, {"id": [1]})), ["id"]) == [(1,)]


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "a/x.pq", "_tmp/y.parquet", ".old.parquet", "_SUCCESS.parquet"):
        write(tmp_path / name, {"id": [name]})
    (tmp_path / "notes.txt").write_text("x")
    assert texts(read(tmp_path), ["id"]) == [("a.parquet",), ("a/x.pq",), ("b.parquet",)]


def test_rows_keep_their_order_over_row_groups_and_pieces(tmp_path: Path) -> None:
    source = read(write(tmp_path / "r.parquet", {"id": list(range(100))}, row_group_size=7))
    assert texts(source, ["id"], rows=9) == [(i,) for i in range(100)]


def test_long_rows_are_read_fewer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"id": list(range(40)), "a.b": [f"{i:01000}" if i < 20 else "" for i in range(40)]}
    source = read(write(tmp_path / "r.parquet", columns, row_group_size=10, use_dictionary=False))
    monkeypatch.setattr(sources, "PIECE_BYTES", 5_000)
    assert [piece.num_rows for piece in source.pieces(source.files[0], ["id"])] == [40]
    lengths = [piece.num_rows for piece in source.pieces(source.files[0], ["id", "a.b"])]
    assert (max(lengths), sum(lengths)) == (4, 40)
    assert texts(source, ["a.b"]) == [(text,) for text in columns["a.b"]]
    monkeypatch.setattr(sources, "PIECE_BYTES", 5)
    assert len(texts(source, ["a.b"])) == 40


def test_hive_folders_are_partitions_and_their_values_columns(tmp_path: Path) -> None:
    for day in ("2026-11-02", "2026-11-01", "a b/ü%", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / f"day={day.replace('%', '%25').replace('/', '%2F')}" / "part-0.parquet", {"id": [day]})
    source = read(tmp_path, partition_column="day")
    assert source.hive_columns == ("day",)
    assert source.partition_keys() == ["2026-11-01", "2026-11-02", "__HIVE_DEFAULT_PARTITION__", "a b/ü%"]
    [file] = source.files_of("a b/ü%")
    assert next(source.pieces(file, ["id", "day"])).to_pylist() == [{"id": "a b/ü%", "day": "a b/ü%"}]
    assert source.schema().field("day").type == pa.string()


def test_a_column_that_stands_in_the_path_and_in_the_file_is_the_paths(tmp_path: Path) -> None:
    source = read(write(tmp_path / "day=2026-11-01" / "a.parquet", {"day": [date(1999, 1, 1)], "id": [1]}).parent.parent)
    assert source.schema().field("day").type == pa.string()
    assert source.schema().names == ["day", "id"]
    assert texts(source, ["id", "day"]) == [(1, "2026-11-01")]


def test_two_hive_columns_partition_by_the_one_that_is_named(tmp_path: Path) -> None:
    for day, hour in (("1", "a"), ("1", "b"), ("2", "a")):
        write(tmp_path / f"day={day}" / f"hour={hour}" / "p.parquet", {"id": [1]})
    source = read(tmp_path, partition_column="day")
    assert source.hive_columns == ("day", "hour")
    assert [len(source.files_of(key)) for key in source.partition_keys()] == [2, 1]


@pytest.mark.parametrize(
    ("layout", "named", "found"),
    [(["a.parquet"], None, None), (["d=1/a.parquet"], None, "d"), (["d=1/h=1/a.parquet"], None, None), (["d=1/h=1/a.parquet"], "h", "h")],
)
def test_the_only_hive_column_is_found(tmp_path: Path, layout: list[str], named: str | None, found: str | None) -> None:
    for path in layout:
        write(tmp_path / path, {"id": [1]})
    assert find_partition_column(ParquetDataset(path=str(tmp_path), key="id", partition_column=named)).partition_column == found


def test_only_columns_of_the_path_can_be_read_and_none_too(tmp_path: Path) -> None:
    source = read(write(tmp_path / "day=1" / "a.parquet", {"id": [1, 2, 3]}, row_group_size=2).parent.parent)
    assert texts(source, ["day"], rows=2) == [("1",), ("1",), ("1",)]
    assert sum(piece.num_rows for piece in source.pieces(source.files[0], [], 2)) == 3


@pytest.mark.parametrize("name", ["review text", "a{b}c", "a.b", "é", "list.element", '"q"', "x=y"])
def test_columns_of_any_name_can_be_read(tmp_path: Path, name: str) -> None:
    source = read(write(tmp_path / "r.parquet", {"id": [1], name: ["x"], "a": [{"b": 1}]}))
    assert next(source.pieces(source.files[0], [name, "a"])).to_pylist() == [{name: "x", "a": {"b": 1}}]


def test_a_digest_is_the_content_and_the_paths_columns(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2]})
    paths = [tmp_path / "x" / "day=1" / "a.parquet", tmp_path / "y" / "day=1" / "b.parquet", tmp_path / "z" / "day=2" / "a.parquet"]
    digests = [(source := read(write(path, table).parent.parent)).digest(source.files[0]) for path in paths]
    assert digests[0] == digests[1] != digests[2]
    os.utime(paths[0], (1, 1))
    source = read(tmp_path / "x")
    assert source.digest(source.files[0]) == digests[0]
    write(paths[0], {"id": [1, 3]})
    source = read(tmp_path / "x")
    assert source.digest(source.files[0]) not in digests


# Bad input.


def refused(call: Any) -> str:
    with pytest.raises(SourceError) as error:
        call()
    return str(error.value)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        refused(lambda: read(tmp_path / "no.parquet"))
        == f"The source {tmp_path}/no.parquet does not exist. Nothing was sent. Check the path."
    )


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id")
    assert "has no Parquet file (*.parquet). Nothing was sent" in refused(lambda: read(tmp_path))


@pytest.mark.parametrize("damage", ["not_parquet", "empty", "footer", "cut"])
def test_what_is_not_parquet_or_has_a_damaged_footer_is_refused(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "r.parquet", {"id": list(range(1_000))})
    content = path.read_bytes()
    path.write_bytes(
        {"not_parquet": b"id,text\n" * 20, "empty": b"", "footer": content[:-60] + b"\xff" * 52 + content[-8:], "cut": content[:200]}[
            damage
        ]
    )
    source = read(path)
    message = refused(lambda: source.row_count(source.files[0]))
    assert f"{path} is not a Parquet file, or its footer is damaged" in message
    assert message.endswith("Nothing was sent. Write it again.")


def test_a_damaged_page_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"id": [f"text {i}" for i in range(5_000)]}, compression="zstd")
    content = bytearray(path.read_bytes())
    content[60:5_000] = b"\x5a" * 4_940
    path.write_bytes(content)
    source = read(path)
    assert f"{path} cannot be read" in refused(lambda: texts(source, ["id"]))


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    source = read(write(tmp_path / "r.parquet", {"id": [1], "text": ["a"]}))
    assert "has no column 'body'; it has id, text. Nothing was sent" in refused(lambda: texts(source, ["id", "body"]))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    source = read(write(tmp_path / "r.parquet", pa.table([pa.array([1]), pa.array([2])], names=["id", "id"])))
    assert "has 2 columns named 'id'. Nothing was sent. Rename one." in refused(lambda: texts(source, ["id"]))


def test_files_in_different_layouts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "day=1" / "a.parquet", {"id": [1]})
    write(tmp_path / "b.parquet", {"id": [1]})
    assert "lie in different layouts: day=... and no folder. Nothing was sent" in refused(lambda: read(tmp_path))


def test_a_partition_column_that_is_no_folder_and_no_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": [1], "date": ["x"]})
    message = refused(lambda: read(tmp_path, partition_column="day"))
    assert "The partition column 'day' is no folder level" in message
    assert "its files the columns id, date" in message


def test_a_partition_without_a_folder_is_refused(tmp_path: Path) -> None:
    source = read(write(tmp_path / "day=1" / "a.parquet", {"id": [1]}).parent.parent, partition_column="day")
    assert "Partition '2' has no folder day=2/" in refused(lambda: source.files_of("2"))


def test_a_file_that_changes_under_the_reader_is_refused_and_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"id": [1]})
    source = read(path)
    assert not source.changed()
    write(path, {"id": [1, 2]})
    assert "changed while it was read. Nothing was sent from it" in refused(lambda: texts(source, ["id"]))
    assert source.changed()
    path.unlink()
    assert "is gone" in refused(lambda: source.row_count(source.files[0]))


def test_a_file_that_comes_or_goes_is_a_change(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": [1]})
    source = read(tmp_path)
    write(tmp_path / "b.parquet", {"id": [1]})
    assert source.changed()


def test_a_change_beside_the_asked_partitions_is_none_of_theirs(tmp_path: Path) -> None:
    """Rewritten, added or removed: it counts where its partition was asked about, and where all were."""
    for day in "12":
        write(tmp_path / f"day={day}" / "a.parquet", {"id": [1]})
    source = read(tmp_path, partition_column="day")
    write(tmp_path / "day=2" / "a.parquet", {"id": [1, 2]})
    write(tmp_path / "day=3" / "a.parquet", {"id": [1]})
    assert not source.changed(["1"])
    assert source.changed(["1", "2"])
    assert source.changed(["3"])
    assert source.changed()
    (tmp_path / "day=1" / "a.parquet").unlink()
    assert source.changed(["1"])


KEYS: dict[str, pa.Array] = {
    "int": pa.array([1, 2, 3]),
    "uint8": pa.array([1, 2, 3], pa.uint8()),
    "string": pa.array(["a", "b", ""]),
    "large_string": pa.array(["a", "b", "c"], pa.large_string()),
    "dictionary": pa.array(["a", "b", "c"]).dictionary_encode(),
    "uuid": pa.array([UUID(int=i).bytes for i in range(3)], pa.uuid()),
    "binary": pa.array([b"a", b"b", b"\xff"]),
    "decimal": pa.array([Decimal("1.0"), Decimal("1.1"), Decimal("2.0")]),
    "date": pa.array([date(2026, 1, day) for day in (1, 2, 3)]),
    "timestamp": pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]),
    "bool": pa.array([True, False]),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_plain_type_are_checked(tmp_path: Path, kind: str) -> None:
    good = read(write(tmp_path / "good.parquet", pa.table({"id": KEYS[kind]})))
    good.check_keys(good.files)
    twice = pa.concat_arrays([KEYS[kind], KEYS[kind].slice(0, 1)])
    bad = read(write(tmp_path / "bad.parquet", pa.table({"id": twice})))
    assert f"1 key (id) occurs more than once: {_shown(twice[0])} (rows 1 and {len(twice)})" in refused(lambda: bad.check_keys(bad.files))


def _shown(value: pa.Scalar) -> str:
    return str(value.as_py())


def test_the_first_five_repeated_keys_are_shown_with_their_rows(tmp_path: Path) -> None:
    ids = [9, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 1]
    source = read(write(tmp_path / "r.parquet", {"id": ids}))
    message = refused(lambda: source.check_keys(source.files))
    assert (
        "7 keys (id) occur more than once: 1 (rows 2 and 16); 2 (rows 3 and 14); 3 (rows 4 and 13); 4 (rows 5 and 12); 5 (rows 6 and 11), and 2 more"
        in message
    )
    assert "Nothing of it was sent." in message


def test_a_null_key_is_refused_with_its_first_row(tmp_path: Path) -> None:
    source = read(write(tmp_path / "r.parquet", {"id": ["a", None, "b", None]}))
    assert "the key 'id' is null in 2 rows, first in row 2" in refused(lambda: source.check_keys(source.files))


def test_keys_of_several_columns_are_unique_together(tmp_path: Path) -> None:
    path = write(tmp_path / "r.parquet", {"shop": ["a", "a", "b", "a"], "no": [1, 2, 1, 2]})
    source = read(path, key=("shop", "no"))
    assert "1 key (shop, no) occurs more than once: a, 2 (rows 2 and 4)" in refused(lambda: source.check_keys(source.files))
    assert "has no column 'gone'; it has shop, no" in refused(lambda: read(path, key=("shop", "gone")).check_keys(source.files))


def test_keys_are_unique_within_a_partition_and_over_its_files(tmp_path: Path) -> None:
    write(tmp_path / "day=1" / "a.parquet", {"id": [1, 2]})
    write(tmp_path / "day=1" / "b.parquet", {"id": [3]})
    write(tmp_path / "day=2" / "a.parquet", {"id": [1, 2]})
    source = read(tmp_path, partition_column="day")
    source.check_keys(source.files_of("1"))
    source.check_keys(source.files_of("2"))
    assert "(2 files, rows counted over all): 2 keys (id)" in refused(lambda: source.check_keys([source.files[0], source.files[2]]))


@pytest.mark.parametrize("nested", [pa.array([{"a": 1}]), pa.array([[1]])])
def test_a_nested_key_is_refused(tmp_path: Path, nested: pa.Array) -> None:
    source = read(write(tmp_path / "r.parquet", pa.table({"id": nested})))
    assert "which identifies no row" in refused(lambda: source.check_keys(source.files))


def test_files_whose_columns_differ_in_type_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": [1], "n": [1], "s": ["x"]})
    write(tmp_path / "b.parquet", pa.table({"id": pa.array(["2"]), "s": pa.array(["x"], pa.large_string()).dictionary_encode()}))
    source = read(tmp_path)
    assert "'id' is string in" in refused(lambda: source.check_keys(source.files))
    assert "'n' is missing in" in refused(lambda: source.check_types(source.files, ["n"]))
    source.check_types(source.files, ["s"])


def test_keys_of_one_kind_in_different_types_are_one_key(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": ["x", "y"]})
    write(tmp_path / "b.parquet", pa.table({"id": pa.array(["z", "x"], pa.large_string()).dictionary_encode()}))
    source = read(tmp_path)
    assert "1 key (id) occurs more than once: x (rows 1 and 4)" in refused(lambda: source.check_keys(source.files))


def test_a_file_without_rows_has_no_bad_keys(tmp_path: Path) -> None:
    source = read(write(tmp_path / "r.parquet", pa.table({"id": pa.array([], pa.int64())})))
    source.check_keys(source.files)
    assert source.row_count(source.files[0]) == 0


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_a_key_that_is_nan_is_refused_like_a_null(tmp_path: Path, kind: pa.DataType) -> None:
    """It equals nothing, itself included, so its row could not be found again."""
    source = read(write(tmp_path / "r.parquet", pa.table({"id": pa.array([1.0, float("nan"), 2.0], pa.float64()).cast(kind)})))
    assert "the key 'id' is null or NaN in 1 row, first in row 2" in refused(lambda: source.check_keys(source.files))
    good = read(write(tmp_path / "good.parquet", pa.table({"id": pa.array([1.0, 2.0]).cast(kind)})))
    good.check_keys(good.files)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (pa.array([3, 2**62], pa.timestamp("us")), "a timestamp[us] out of range in id, row 2: "),
        (pa.array([3, 4, 2**30], pa.date32()), "a date32[day] out of range in id, row 3: "),
        (pa.array([3], pa.timestamp("us", "Mars/Base")), "a timestamp[us, tz=Mars/Base] in id, row 1: no such time zone"),
        (pa.array([b"a", b"\xff"]).view(pa.string()), "text that is not UTF-8 in id, row 2: "),
    ],
)
def test_a_key_that_cannot_be_read_is_refused_with_its_file_and_row(tmp_path: Path, keys: pa.Array, said: str) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": keys.slice(0, 0)}))
    path = write(tmp_path / "b.parquet", pa.table({"id": keys}))
    source = read(tmp_path)
    assert f"{path} has {said}" in refused(lambda: source.check_keys(source.files))


def test_the_row_of_a_key_that_cannot_be_read_is_counted_in_its_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array([3, 4], pa.timestamp("us"))}))
    path = write(tmp_path / "b.parquet", pa.table({"id": pa.array([5, 2**62], pa.timestamp("us"))}))
    source = read(tmp_path)
    assert f"{path} has a timestamp[us] out of range in id, row 2: " in refused(lambda: source.check_keys(source.files))


@pytest.mark.parametrize(("kind", "view"), [(pa.string(), pa.string_view()), (pa.binary(), pa.binary_view())])
def test_keys_as_views_are_checked_like_others(tmp_path: Path, kind: pa.DataType, view: pa.DataType) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array(["x", "y"]).cast(kind).cast(view)}))
    write(tmp_path / "b.parquet", pa.table({"id": pa.array(["z"]).cast(kind)}))
    source = read(tmp_path)
    source.check_keys(source.files)
    write(tmp_path / "b.parquet", pa.table({"id": pa.array(["x"]).cast(kind)}))
    assert "1 key (id) occurs more than once" in refused(lambda: read(tmp_path).check_keys(read(tmp_path).files))
