"""Tables that are kept below the root."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage.snapshots import GROUP_ROWS, write_snapshot
from claude_batch_dagster.storage.store import Store

ROWS = {"id": [1, 2], "text": ["a", None]}
TABLE = pa.table(ROWS)


def keep(folder: Path, table: Any, **place: Any) -> pa.Table:
    snapshot = write_snapshot(Store(str(folder)), table, "load_reviews", **place)
    kept = pq.ParquetFile(folder / "snapshots" / snapshot.path).read()
    assert snapshot.rows == kept.num_rows
    return kept


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        TABLE.to_batches()[0],
        TABLE.to_reader(),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS).iloc[[0, 1]].set_index(pd.Index([7, 8])),
        pd.DataFrame(ROWS).set_index("id"),
        pl.DataFrame(ROWS),
        pl.LazyFrame(ROWS),
        iter(TABLE.to_batches()),
        [TABLE, TABLE.slice(0, 0)],
        pa.table({"id": [1, 2], "text": pa.array(["a", None]).dictionary_encode()}),
        pa.table({"id": [1, 2], "text": pa.array(["a", None], pa.string_view())}),
        duckdb.connect().sql("select * from (values (1::bigint, 'a'), (2, null)) t(id, text)"),
    ],
    ids=[
        "table", "batch", "reader", "pandas", "pandas-filtered", "pandas-index", "polars", "polars-lazy", "batches", "tables", "dictionary",
        "view", "duckdb",
    ],
)  # fmt: skip
def test_every_kind_of_table_is_kept_with_the_same_columns(tmp_path: Path, table: Any) -> None:
    kept = keep(tmp_path, table)
    assert sorted(kept.schema.names) == ["id", "text"]
    assert kept.select(["id", "text"]).to_pydict() == ROWS
    assert (kept.schema.field("id").type, kept.schema.field("text").type) == (pa.int64(), pa.string())


def test_the_same_rows_are_kept_once_and_others_beside_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = write_snapshot(store, TABLE, "f")
    written = (tmp_path / "snapshots" / first.path).stat().st_mtime_ns
    assert write_snapshot(store, pl.DataFrame(ROWS), "f") == first
    other = write_snapshot(store, pa.table({"id": [1], "text": ["b"]}), "f")
    assert len(list((tmp_path / "snapshots").iterdir())) == 2
    assert other.path != first.path
    assert (tmp_path / "snapshots" / first.path).stat().st_mtime_ns == written


def test_a_partition_has_a_hive_folder(tmp_path: Path) -> None:
    snapshot = write_snapshot(Store(str(tmp_path)), TABLE, "f", partition_column="day", partition="a/b")
    assert snapshot.path.startswith("day=a%2Fb/")
    assert (tmp_path / "snapshots" / snapshot.path).exists()


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    for table in (TABLE.slice(0, 0), pd.DataFrame(ROWS).iloc[:0], pl.LazyFrame(ROWS).head(0), [TABLE.slice(0, 0)]):
        assert keep(tmp_path, table).num_rows == 0


def test_batches_are_written_as_they_come(tmp_path: Path) -> None:
    held: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(40):
            held.append(pa.total_allocated_bytes())
            yield pa.record_batch({"id": np.arange(50_000) + number * 50_000, "text": pa.array(["x" * 20] * 50_000)})

    snapshot = write_snapshot(Store(str(tmp_path)), batches(), "f")
    assert (snapshot.rows, len(held)) == (2_000_000, 40)
    assert max(held) - held[0] < 20 << 20, "all of them are 64 MB"
    groups = pq.ParquetFile(tmp_path / "snapshots" / snapshot.path).metadata
    assert groups.num_row_groups > 15
    assert max(groups.row_group(at).num_rows for at in range(groups.num_row_groups)) < 2 * GROUP_ROWS


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": [1]}, "load_reviews returned a dict; a pandas or polars frame"),
        ("reviews", "returned a str"),
        (None, "returned a NoneType"),
        ([{"id": 1}], "yielded a dict"),
        (iter(()), "not even an empty one"),
        (pa.table({}), "without columns"),
        (
            [pa.table({"id": [1]}), pa.table({"id": ["1"]})],
            r"Record batch 2 of load_reviews has the columns id: string, the first one id: int64",
        ),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        write_snapshot(Store(str(tmp_path)), table, "load_reviews")
    assert not (tmp_path / "snapshots").exists()


def test_a_frame_that_arrow_does_not_take_names_its_function(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"^load returned a frame that is no table of plain values: .*column text.*\. Nothing was sent\."):
        write_snapshot(Store(str(tmp_path)), pd.DataFrame({"id": [1, 2], "text": ["a", 7]}), "load")
