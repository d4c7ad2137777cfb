"""Slots that are filled by column give the bytes that they give value by value."""

import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.request import LineFrame, Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.texts import fill_slots

COLUMNS = ("a", "b", "n")
FRAME = LineFrame("t", b"{")
PROMPTS = ("{a}", "é\x01{a}", '{a}"\n{b}\\', "{a}{b}{a}{n}", "{n} {{}}")
TEXTS = (
    st.none()
    | st.text()
    | st.text(alphabet=[*map(chr, range(128)), "\x85", "\xa0", "\u3000", "é", "👩"], max_size=90)
    | st.text(" \u2028\n")
)


def slice_of(values: Sequence[str | None], kind: pa.DataType, beneath: str) -> pa.Array:
    """Return values as the middle of a column in which something else lies where a null is."""
    known = np.array([True, *(value is not None for value in values), True], np.bool_)
    filled = pa.array(["before", *(beneath if value is None else value for value in values), "after"], kind)
    bits = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(kind, len(known), [bits, *filled.buffers()[1:]]).slice(1, len(values))


@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS, st.none() | st.floats() | st.integers(-9, 9)), max_size=12),
    prompt=st.sampled_from(PROMPTS),
    kinds=st.tuples(*[st.sampled_from([pa.string(), pa.large_string()])] * 2),
    beneath=st.sampled_from(["", '"x"']),
)
def test_slots_filled_by_column_give_what_values_give(
    rows: list[tuple[str | None, str | None, float | None]], prompt: str, kinds: tuple[pa.DataType, pa.DataType], beneath: str
) -> None:
    renderer = Renderer(ClaudeTask(name="t", model="claude-haiku-5-5", prompt=prompt, max_tokens=5), COLUMNS)
    first, second, third = ([row[at] for row in rows] for at in range(3))
    columns = {"a": slice_of(first, kinds[0], beneath), "b": slice_of(second, kinds[1], beneath), "n": pa.array(third, pa.float64())}
    filled = fill_slots([columns[name] for name in renderer.columns], renderer.between, renderer.tail, renderer.frame)
    expected = Lines.of(renderer.frame, renderer.render_columns([columns[name].to_pylist() for name in renderer.columns]).rests)
    assert (filled.rests_bytes.tolist(), filled.frame) == (expected.rests_bytes.tolist(), expected.frame)
    assert [filled.params(row) for row in range(len(rows))] == [expected.params(row) for row in range(len(rows))]


def test_every_white_space_is_looked_at_before_a_row_is_asked_about() -> None:
    spaces = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000 and chr(code).isspace()]
    assert not fill_slots([pa.array(spaces)], (), b"", FRAME).rests_bytes.any()
    assert fill_slots([pa.array([f"{space}x" for space in spaces])], (), b"", FRAME).rests_bytes.all()


@pytest.mark.parametrize("cut", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xc3"])
def test_text_that_is_not_utf_8_is_never_filled_in(cut: bytes) -> None:
    offsets = np.array([0, len(cut)], np.int32)
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(cut)])
    with pytest.raises(UnicodeDecodeError):
        fill_slots([column], (), b"", FRAME)


def test_a_character_that_two_rows_share_is_not_utf_8_in_either() -> None:
    offsets = np.array([0, 1, 2], np.int32)
    column = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer("é".encode())])
    with pytest.raises(UnicodeDecodeError):
        fill_slots([column], (), b"", FRAME)
