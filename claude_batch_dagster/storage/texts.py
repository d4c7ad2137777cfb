"""Fills a template's slots for many rows at once: columns are joined and escaped where they lie, without a Python text for each value."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from claude_batch_dagster.core.request import LINE_BREAK, LineFrame
from claude_batch_dagster.core.template import is_blank, render_value
from claude_batch_dagster.storage.arrays import texts_to_arrow, to_numpy
from claude_batch_dagster.storage.lines import Lines, Offsets

_END = b"\xff"
"""Before the first row, and after each: a byte that is in no UTF-8."""
_FIRST_PRINTABLE = 0x20
_USUAL = b'\\"\n'
"""Bytes that JSON escapes. The backslash comes first: the others' escapes begin with one."""
_LESS_USUAL = b"\t\r"
_RARE = bytes(byte for byte in range(_FIRST_PRINTABLE) if byte not in _USUAL + _LESS_USUAL)
_ESCAPED = {byte: orjson.dumps(chr(byte))[1:-1] for byte in _USUAL + _LESS_USUAL + _RARE}
_BEGINS_SPACE = np.array([byte <= 0x20 or byte in b"\xc2\xe1\xe2\xe3" for byte in range(256)], np.bool_)
"""Whether white space may begin with this byte."""
_TEXT = pa.large_binary()


def fill_slots(columns: Sequence[pa.Array], between: Sequence[bytes], tail: bytes, frame: LineFrame) -> Lines:
    """Return each row's request; a row whose slots are all null or blank asks nothing.

    Args:
        columns: The values of each slot.
        between: What stands between the slots, as UTF-8.
        tail: What follows the last slot, as it stands in JSON.
        frame: What the requests share: it ends where the first slot begins.

    Raises:
        TaskError: Terminal. A value has no text.
        UnicodeDecodeError: A text is not UTF-8.
    """
    texts = [_texts_of(column) for column in columns]
    parts: list[pa.Array | pa.Scalar] = [texts[0]]
    for literal, column in zip(between, texts[1:], strict=True):
        parts += (_scalar(literal), column)
    joined = pc.binary_join_element_wise(*parts, _scalar(_END), _scalar(b""), null_handling="replace")
    starts, content = _buffers(joined)
    escaped = _escape(bytearray().join((_END, content[starts[0] : starts[-1]].data)))
    ends, prefix = _find_ends(escaped), frame.prefix
    gap = tail + LINE_BREAK + prefix
    # Each end before moved what follows it.
    ends += np.arange(len(ends)) * (len(gap) - len(_END))
    begins, stops = ends[:-1] + len(gap), ends[1:] + len(tail)
    blank = _find_blanks(texts)
    stops[blank] = begins[blank]
    return Lines(frame, escaped.replace(_END, gap), begins, stops)


def _texts_of(column: pa.Array) -> pa.Array:
    """Return values as their texts' UTF-8."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return texts_to_arrow([render_value(value).encode() for value in column.to_pylist()]).cast(_TEXT)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        # Python says what is wrong with it.
        column.to_pylist()
        raise
    return column.cast(_TEXT)


def _scalar(text: bytes) -> pa.Scalar:
    return texts_to_arrow([text]).cast(_TEXT)[0]


def _escape(content: bytearray) -> bytearray:
    content = _replace(content, _USUAL)
    for some in (_LESS_USUAL, _RARE):
        # One look for all of them; there is mostly none.
        if np.frombuffer(content, np.uint8).min(initial=_FIRST_PRINTABLE) < _FIRST_PRINTABLE:
            content = _replace(content, some)
    return content


def _replace(content: bytearray, escaped: bytes) -> bytearray:
    for byte in escaped:
        if byte in content:
            content = content.replace(bytes((byte,)), _ESCAPED[byte])
    return content


def _find_ends(content: bytearray) -> Offsets:
    ends: list[int] = []
    note, find = ends.append, content.find
    end = -1
    while (end := find(_END, end + 1)) >= 0:
        note(end)
    return np.array(ends, np.int64)


def _find_blanks(columns: Sequence[pa.Array]) -> list[int]:
    """Return the rows in which all texts are blank."""
    doubtful = np.flatnonzero(np.logical_and.reduce([_may_be_blank(column) for column in columns])).tolist()
    return [row for row in doubtful if is_blank([(column[row].as_py() or b"").decode() for column in columns])]


def _may_be_blank(column: pa.Array) -> npt.NDArray[np.bool_]:
    starts, content = _buffers(column)
    doubtful: npt.NDArray[np.bool_] = starts[1:] == starts[:-1]
    there = np.flatnonzero(~doubtful)
    doubtful[there] = _BEGINS_SPACE[content[starts[there]]]
    return doubtful | to_numpy(column.is_null()) if column.null_count else doubtful


def _buffers(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return where a text column's rows begin, and where the last one ends, in its bytes."""
    if not len(column):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    _, ends, content = column.buffers()
    starts = np.frombuffer(ends, np.int64, len(column) + 1, column.offset * np.dtype(np.int64).itemsize)
    return starts, np.frombuffer(content or b"", np.uint8)
