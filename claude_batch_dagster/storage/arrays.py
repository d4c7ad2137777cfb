"""Arrow arrays made of what is in memory, and read: `pa.array`, `pa.scalar` and `to_numpy` import pandas, a quarter of a second and 60 MB."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_BETWEEN = "\0"


def to_arrow(values: npt.NDArray[Any], kind: pa.DataType, valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return numbers, or rows of bytes, as they stand in memory.

    Args:
        values: A row an element.
        kind: Of the same width.
        valid: Which elements are not null; None for all.
    """
    bits = None if valid is None or valid.all() else _pack(valid)
    return pa.Array.from_buffers(kind, len(values), [bits, pa.py_buffer(np.ascontiguousarray(values))])


def to_numpy(column: pa.Array | pa.ChunkedArray, absent: float = 0) -> npt.NDArray[Any]:
    """Return numbers or truths as they stand in memory, nulls as another one."""
    if isinstance(column, pa.ChunkedArray):
        parts = [to_numpy(chunk, absent) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([_empty(column.type), *parts])
    bits, content = column.buffers()
    if not len(column):
        return _empty(column.type)
    if pa.types.is_boolean(column.type):
        values = _unpack(content, column.offset, len(column))
    else:
        dtype = _empty(column.type).dtype
        values = np.frombuffer(content, dtype, len(column), column.offset * dtype.itemsize)
    return np.where(_unpack(bits, column.offset, len(column)), values, values.dtype.type(absent)) if column.null_count else values


def distinct(numbers: npt.NDArray[np.integer[Any]]) -> list[int]:
    """Return which small numbers there are, ascending, as `np.unique` does, which imports numpy.ma."""
    found: list[int] = np.flatnonzero(np.bincount(numbers)).tolist()
    return found


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


def content_to_arrow(content: bytes, sizes: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Return texts in UTF-8 that follow each other as strings, of 2 GB at most; those that are not valid are null, and not in the content."""
    ends = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(np.where(valid, sizes, 0), out=ends[1:])
    return pa.Array.from_buffers(
        pa.string(), len(sizes), [None if valid.all() else _pack(valid), pa.py_buffer(ends), pa.py_buffer(content)]
    )


def large_to_string(texts: pa.Array) -> pa.Array:
    """Return large binaries that are UTF-8 as strings, of 2 GB at most; they begin where their memory does."""
    bits, ends, content = texts.buffers()
    ends = pa.py_buffer(np.frombuffer(ends, np.int64, len(texts) + 1).astype(np.int32))
    return pa.Array.from_buffers(pa.string(), len(texts), [bits, ends, content])


def words_to_arrow(words: Sequence[str | None]) -> pa.Array:
    """Return short texts as strings; quick where all are the same."""
    if len(set(words)) == 1 and words[0] is not None:
        return repeat_word(words[0], len(words))
    return texts_to_arrow([None if word is None else word.encode() for word in words])


def truths_to_arrow(truths: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return truths; those that are not valid are null."""
    return pa.Array.from_buffers(pa.bool_(), len(truths), [None if valid is None else _pack(valid), _pack(truths)])


def values_to_arrow(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return Python values as strings, int64, float64 or truths."""
    if kind == pa.string():
        return _strings_to_arrow(values)
    if kind == pa.int64():
        return numbers_to_arrow(values)
    valid = _find_nulls(values)
    if kind == pa.bool_():
        return truths_to_arrow(np.array(values, np.bool_), valid)
    return to_arrow(np.array(values if valid is None else [value or 0.0 for value in values], np.float64), pa.float64(), valid)


def repeat_word(word: str, count: int) -> pa.Array:
    """Return a word so many times."""
    text = word.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(text))
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(ends), pa.py_buffer(text * count)])


def _strings_to_arrow(texts: Sequence[str | None]) -> pa.Array:
    """Return texts as strings, of 2 GB at most; encoded all at once, with a character between them that texts hardly have."""
    valid = _find_nulls(texts)
    content = _BETWEEN.join(texts if valid is None else [text or "" for text in texts]).encode()  # type: ignore[arg-type]
    between = np.flatnonzero(np.frombuffer(content, np.uint8) == ord(_BETWEEN))
    if len(between) != len(texts) - 1:
        return texts_to_arrow([None if text is None else text.encode() for text in texts])
    ends = np.zeros(len(texts) + 1, np.int32)
    ends[1:-1], ends[-1] = between, len(content)
    ends[2:] -= np.arange(1, len(texts), dtype=np.int32)
    bits = None if valid is None else _pack(valid)
    content = content.replace(_BETWEEN.encode(), b"")
    return pa.Array.from_buffers(pa.string(), len(texts), [bits, pa.py_buffer(ends), pa.py_buffer(content)])


def _find_nulls(values: Sequence[object]) -> npt.NDArray[np.bool_] | None:
    return np.array([value is not None for value in values], np.bool_) if None in values else None


def _empty(kind: pa.DataType) -> npt.NDArray[Any]:
    return np.empty(0, kind.to_pandas_dtype())


def _unpack(bits: pa.Buffer, offset: int, count: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=offset + count, bitorder="little")[offset:].view(np.bool_)


def _pack(valid: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(valid, bitorder="little"))
