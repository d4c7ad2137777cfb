from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from claude_batch_dagster.storage.arrays import to_numpy, truths_to_arrow, values_to_arrow


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "", "é"], pa.string()),
        (["a", "\0", None, "\0\0"], pa.string()),
        (["", "", ""], pa.string()),
        ([None, None], pa.string()),
        ([], pa.string()),
        ([1, None, -(2**63), 2**63 - 1], pa.int64()),
        ([0.5, None, -1.0, 3], pa.float64()),
        ([True, None, False], pa.bool_()),
        ([None], pa.bool_()),
        ([], pa.float64()),
    ],
)
def test_values_become_what_pyarrow_makes_of_them(values: list[Any], kind: pa.DataType) -> None:
    assert values_to_arrow(values, kind).equals(pa.array(values, kind))
    assert values_to_arrow(values[:1], kind).equals(pa.array(values[:1], kind))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.float64(), pa.bool_()])
def test_columns_are_read_with_their_nulls_offsets_and_chunks(kind: pa.DataType) -> None:
    column = pa.array([1, 0, None, 1, None, 1, 0, 0, 1, 1, None], pa.int8()).cast(kind)
    for start in range(len(column) + 1):
        for chunked in (column.slice(start), pa.chunked_array([column.slice(start), column], kind), pa.chunked_array([], kind)):
            expected = [1 if value is None else value for value in chunked.to_pylist()]
            found = to_numpy(chunked, 1)
            assert (found.tolist(), found.dtype) == (expected, np.dtype(kind.to_pandas_dtype()))


def test_truths_keep_their_nulls() -> None:
    found = truths_to_arrow(np.array([True, False, True]), np.array([True, True, False]))
    assert found.to_pylist() == [True, False, None]
