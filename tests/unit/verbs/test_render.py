import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from claude_batch_dagster.core.errors import SourceError, TaskError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.keys import ASKED, SKIPPED, pack_keys, row_keys_path
from claude_batch_dagster.storage.source import PIECE_ROWS, Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.render import RenderedPiece, read_or_render_keys, render_rows
from claude_batch_dagster.verbs.select import FileRows
from tests.lines import key_digits

HAIKU = "claude-haiku-5-5"
SUMMARIES = Summarize(name="summaries", column="text", model=HAIKU)


class Lake(Protocol):
    folder: Path
    store: Store

    def write(self, columns: Mapping[str, Any] | pa.Table, path: str = ..., **options: Any) -> Path: ...
    def texts(self, *texts: str | None, path: str = ...) -> Path: ...


def opened(path: Path) -> Source:
    return Source(ParquetDataset(path=str(path), key="id"))


def whole(source: Source) -> FileRows:
    return FileRows(file=source.files[0], rows=source.row_count(source.files[0]), whole=True)


def params_of(piece: RenderedPiece) -> list[bytes | None]:
    return [piece.lines.params(row) if size else None for row, size in enumerate(piece.lines.rests_bytes)]


def contents(source: Source, task: ClaudeTask) -> list[str | None]:
    found: list[str | None] = []
    for piece in render_rows(source, whole(source), task):
        found += [json.loads(params)["messages"][0]["content"] if params else None for params in params_of(piece)]
    return found


def test_rows_are_rendered_in_order_over_pieces(lake: Lake) -> None:
    count = 2 * PIECE_ROWS + 3
    source = opened(lake.texts(*(f"text {i}" if i % 5 else None for i in range(count))))
    pieces = list(render_rows(source, whole(source), SUMMARIES))
    assert [len(piece.lines) for piece in pieces] == [PIECE_ROWS, PIECE_ROWS, 3]
    assert [reason for piece in pieces for reason in piece.rows.reasons] == [ASKED if i % 5 else SKIPPED for i in range(count)]
    expected = list(Renderer(SUMMARIES, ["text"]).render((f"text {i}" if i % 5 else None,) for i in range(count)))
    assert [params for piece in pieces for params in params_of(piece)] == [request and request.params for request in expected]
    assert [length for piece in pieces for length in piece.lines.params_bytes[piece.rows.reasons == ASKED]] == [
        len(one.params) for one in expected if one
    ]
    keys = np.concatenate([piece.rows.keys for piece in pieces])
    assert keys.tolist() == pack_keys([request and request.key for request in expected]).tolist()


def test_values_of_every_column_type_are_shown(lake: Lake) -> None:
    columns: dict[str, Any] = {
        "id": [1],
        "text": pa.array(["é\x00"], pa.large_string()),
        "dictionary": pa.array(["d"]).dictionary_encode(),
        "flag": [True],
        "int8": pa.array([-3], pa.int8()),
        "uint64": pa.array([2**64 - 1], pa.uint64()),
        "float": pa.array([0.5], pa.float32()),
        "double": [0.1],
        "decimal": [Decimal("12.30")],
        "date": [date(2026, 11, 1)],
        "utc": pa.array([datetime(2026, 11, 1, 9, tzinfo=UTC)], pa.timestamp("ms", "UTC")),
        "zoned": pa.array([datetime(2026, 11, 1, 9, tzinfo=UTC)], pa.timestamp("us", "+02:00")),
        "nanos": pa.array([1], pa.timestamp("ns")),
        "list": [[1, None]],
        "struct": [{"b": "x", "a": Decimal("1.0")}],
        "null": pa.nulls(1),
    }
    task = ClaudeTask(name="t", model=HAIKU, prompt="|".join(f"{{{name}}}" for name in columns), max_tokens=1)
    [shown] = contents(opened(lake.write(columns)), task)
    assert (shown or "").split("|") == [
        "1",
        "é\x00",
        "d",
        "true",
        "-3",
        "18446744073709551615",
        "0.5",
        "0.1",
        "12.30",
        "2026-11-01",
        "2026-11-01T09:00:00Z",
        "2026-11-01T11:00:00+02:00",
        "1970-01-01T00:00:00.000000001",
        "[1,null]",
        '{"a":"1.0","b":"x"}',
        "",
    ]


@pytest.mark.parametrize("column", [pa.array([b"\xff"]), pa.array([bytes(16)], pa.uuid()), pa.array([1], pa.duration("s"))])
def test_a_column_that_has_no_text_is_refused(lake: Lake, column: pa.Array) -> None:
    source = opened(lake.write(pa.table({"id": [1], "text": column})))
    with pytest.raises(TaskError, match="cannot show a value of type"):
        contents(source, SUMMARIES)


@pytest.mark.parametrize("name", ["review text", "a{b}c", "naïve.col", "day=1", '"quoted"'])
def test_columns_of_any_name_can_be_slots(lake: Lake, name: str) -> None:
    source = opened(lake.write({"id": [7], name: ["x"]}))
    task = ClaudeTask(name="t", model=HAIKU, prompt=f"{{id}}: {{{name}}}, {{{name}}}", max_tokens=1)
    assert contents(source, task) == ["7: x, x"]


def test_a_column_of_the_path_can_be_a_slot(lake: Lake) -> None:
    source = opened(lake.texts("a", path="day=2026-11-01/p.parquet").parent.parent)
    task = ClaudeTask(name="t", model=HAIKU, prompt="{day}: {text}", max_tokens=1)
    assert contents(source, task) == ["2026-11-01: a"]


def test_text_that_is_not_utf_8_is_refused_with_its_file(lake: Lake) -> None:
    offsets = np.array([0, 2], np.int32).tobytes()
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(b"\xff\xfe")])
    path = lake.write(pa.table({"id": [1], "text": broken}))
    with pytest.raises(SourceError, match=rf"{path} has text that is not UTF-8 in text.*Nothing was sent from it"):
        contents(opened(path), SUMMARIES)


def test_keys_of_a_file_are_rendered_once_and_read_afterwards(lake: Lake) -> None:
    source = opened(lake.texts("a", None, "b", "a"))
    keyed = read_or_render_keys(lake.store, source, whole(source), SUMMARIES)
    first, skipped, second, again = key_digits(keyed.keys)
    assert first == again != second
    assert skipped == b"0" * 32
    assert keyed.reasons.tolist() == [ASKED, SKIPPED, ASKED, ASKED]
    [path] = lake.store.list("keys")
    assert path == row_keys_path(source.digest(source.files[0]), SUMMARIES.task_key)
    before = lake.store.version(path)
    assert read_or_render_keys(lake.store, source, whole(source), SUMMARIES).keys.tolist() == keyed.keys.tolist()
    assert lake.store.version(path) == before


def test_what_pandas_calls_nan_is_null_in_its_files_and_a_nan_in_a_file_is_a_value(lake: Lake) -> None:
    task = ClaudeTask(name="scores", model=HAIKU, prompt="Score: {score}", max_tokens=50)
    path = lake.write({"id": [0]})
    pd.DataFrame({"id": [1, 2], "score": [0.5, float("nan")]}).to_parquet(path)
    assert contents(opened(path), task) == ["Score: 0.5", None]
    lake.write({"id": [1, 2, 3], "score": [float("nan"), float("-inf"), None]})
    assert contents(opened(path), task) == ["Score: nan", "Score: -inf", None]


@pytest.mark.parametrize("asks", ["{text}", lambda row: str(row["text"])])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([3, 2**62], pa.timestamp("us")), r"a timestamp\[us\] out of range in text, row 2 \(key k1\): "),
        (pa.array([3, 2**30], pa.date32()), r"a date32\[day\] out of range in text, row 2 \(key k1\): "),
        (
            pa.array([3, 4], pa.timestamp("us", "Mars/Base")),
            r"a timestamp\[us, tz=Mars/Base\] in text, row 1 \(key k0\): no such time zone",
        ),
        (pa.array([b"a", b"\xff"]).view(pa.string()), r"text that is not UTF-8 in text, row 2 \(key k1\): "),
        (
            pa.StructArray.from_arrays([pa.array([b"a", b"\xff"]).view(pa.string())], ["a"]),
            r"text that is not UTF-8 in text, row 2 \(key k1\)",
        ),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_with_its_file_and_row(lake: Lake, values: pa.Array, said: str, asks: Any) -> None:
    path = lake.write(pa.table({"id": ["k0", "k1"], "text": values}))
    task = ClaudeTask(name="t", model=HAIKU, prompt=asks, max_tokens=1, version=1)
    with pytest.raises(SourceError, match=rf"{path} has {said}.*Nothing was sent from it"):
        contents(opened(path), task)
