"""Source keys against output keys."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.storage.coverage import Coverage, compare_keys
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store


def compare(tmp_path: Path, source: dict[str, Any], output: dict[str, Any], key: list[str]) -> Coverage:
    for name, columns in (("source", source), ("output", output)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "part-0.parquet")
    found = Source(ParquetDataset(path=str(tmp_path / "source"), key=key))
    return compare_keys(found, None, Store(str(tmp_path / "output")), "part-0.parquet", key)


def test_missing_and_pending_rows_are_not_covered_and_are_named(tmp_path: Path):
    found = compare(
        tmp_path,
        {"id": [1, 2, 3, 4]},
        {"id": [1, 2, 4, 9], "status": ["succeeded", "errored", "pending", "succeeded"]},
        ["id"],
    )
    assert (found.source_rows, found.covered_rows, found.output_rows, found.pending_rows) == (4, 2, 4, 1)
    assert (found.missing, found.by_key) == (("3", "4"), True)


@pytest.mark.parametrize(
    "keys",
    [
        ["a", "b", "c"],
        pa.array([1, 2, 3], pa.int32()),
        pa.array(["a", "b", "c"]).dictionary_encode(),
        pa.array(["a", "b", "c"], pa.large_string()),
        [datetime.date(2026, 11, day) for day in (1, 2, 3)],
    ],
    ids=["text", "int32", "dictionary", "large", "date"],
)
def test_keys_of_every_type_are_found_again(tmp_path: Path, keys: Any):
    found = compare(tmp_path, {"id": keys}, {"id": keys[1:], "status": ["succeeded", "skipped"]}, ["id"])
    assert (found.source_rows, found.covered_rows, len(found.missing)) == (3, 2, 1)


def test_several_key_columns_are_compared_together(tmp_path: Path):
    found = compare(
        tmp_path, {"shop": ["a", "a", "b"], "id": [1, 2, 1]}, {"shop": ["a", "b"], "id": [2, 1], "status": ["refused"] * 2}, ["shop", "id"]
    )
    assert (found.covered_rows, found.missing) == (2, ("a, 1",))


def test_without_the_key_only_the_counts_are_compared(tmp_path: Path):
    found = compare(tmp_path, {"id": [1, 2, 3]}, {"status": ["succeeded", "pending"]}, ["id"])
    assert (found.covered_rows, found.by_key, found.missing) == (1, False, ())


def test_an_empty_output_covers_nothing_and_an_empty_source_is_covered(tmp_path: Path):
    found = compare(tmp_path, {"id": [1]}, {"id": pa.array([], pa.int64()), "status": pa.array([], pa.string())}, ["id"])
    assert (found.source_rows, found.covered_rows) == (1, 0)
