"""Arrow arrays made of what is in memory: `pa.array` and `pa.scalar` import pandas, a quarter of a second and 60 MB, to look at it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def to_arrow(values: npt.NDArray[Any], kind: pa.DataType, valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return numbers, or rows of bytes, as they stand in memory.

    Args:
        values: A row an element.
        kind: Of the same width.
        valid: Which elements are not null; None for all.
    """
    bits = None if valid is None or valid.all() else _pack(valid)
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(np.ascontiguousarray(values))])


def numbers_to_arrow(numbers: Sequence[int | None]) -> pa.Array:
    """Return whole numbers as int64."""
    valid = _find_nulls(numbers)
    return to_arrow(np.array(numbers if valid is None else [number or 0 for number in numbers], np.int64), pa.int64(), valid)


def texts_to_arrow(texts: Sequence[bytes | None]) -> pa.Array:
    """Return texts in UTF-8 as strings, of 2 GB at most."""
    valid = _find_nulls(texts)
    given = [text or b"" for text in texts]
    ends = np.zeros(len(given) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, given), np.int32, len(given)), out=ends[1:])
    bits = None if valid is None else _pack(valid)
    return pa.Array.from_buffers(pa.string(), len(given), [bits, pa.py_buffer(ends), pa.py_buffer(b"".join(given))])


def words_to_arrow(words: Sequence[str | None]) -> pa.Array:
    """Return short texts as strings; quick where all are the same."""
    if len(set(words)) == 1 and words[0] is not None:
        return repeat_word(words[0], len(words))
    return texts_to_arrow([None if word is None else word.encode() for word in words])


def repeat_word(word: str, count: int) -> pa.Array:
    """Return a word so many times."""
    text = word.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(text))
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text * count)])


def _find_nulls(values: Sequence[object]) -> npt.NDArray[np.bool_] | None:
    return np.array([value is not None for value in values], np.bool_) if None in values else None


def _pack(valid: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))
