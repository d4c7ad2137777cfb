"""Writes one partition's output file, a bucket of rows at a time."""

from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answer_columns import AnswerColumns
from claude_batch_dagster.storage.arrays import repeat_word, to_arrow, to_numpy, truths_to_arrow, words_to_arrow
from claude_batch_dagster.storage.gather import BUCKET_ROWS, Gathered, Places
from claude_batch_dagster.storage.keys import LARGE, SKIPPED, Keys, KeySet, Mask, Reasons, has_key, write_digits
from claude_batch_dagster.storage.output import METADATA_KEY
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.unreadable import UNREADABLE

PREVIEW_ROWS = 5
DECODED_ROWS = 4_096
TOO_LARGE = "too_large: the request alone exceeds what one Message Batch takes (256,000,000 bytes). Shorten the text or the prompt."
NO_ROOM = "out_of_range: the answer holds a number that its column has no room for."
PENDING = "pending: no answer yet; the next run asks again."
_COPIED = ("stop_reason", "model", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_CODES = {word: code for code, word in enumerate(STATUSES)}

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOutput:
    """What one partition's file holds.

    Attributes:
        uri: Of the file.
        rows: Rows by status; they add up to the source's.
        answers: Distinct requests in it.
        input_tokens: Of the answers that this invocation paid for, like all tokens here and the cost; the others were paid before.
        cost_nano_usd: None where such an answer's model has no price.
        batches: How many of this invocation's batches answered.
        preview: The first rows, as Python values.
    """

    uri: str
    rows: dict[str, int]
    answers: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano_usd: int | None
    batches: int
    schema: pa.Schema
    preview: tuple[dict[str, object], ...]


class OutputWriter:
    """Writes one partition's file, bucket by bucket, and puts it whole at the end.

    Args:
        task: Whose fields the rows get.
        schema: Of the output.
        key_columns: Of its rows.
        own_batch_ids: Batches that this invocation paid for.
        file: The local file to write; it is gone once this is closed.
        facts: What stands in the file's key-value metadata, together with `rows` by status.
    """

    def __init__(
        self,
        *,
        task: ClaudeTask,
        schema: pa.Schema,
        key_columns: Sequence[str],
        own_batch_ids: Set[str],
        file: Path,
        facts: Mapping[str, object],
    ) -> None:
        self._task_key = task.task_key
        self._answer_columns = None if task.output is None else AnswerColumns(task.fields)
        self._words = words_to_arrow(STATUSES)
        self._schema = schema
        self._facts = facts
        self._own_batch_ids = words_to_arrow(sorted(own_batch_ids))
        self._file = file
        self._writer = pq.ParquetWriter(file, schema, **_writing(schema, key_columns))
        self._compressor = ThreadPoolExecutor(1, "write")
        self._compressing: Future[None] = self._compressor.submit(lambda: None)
        self._shown = _Places()
        self._unanswered = KeySet()
        self._batch_ids: set[str] = set()
        self._rows = dict.fromkeys(STATUSES, 0)
        self._sums = dict.fromkeys(_TOKENS, 0)
        self._cost_nano_usd: int | None = 0
        self._preview: list[dict[str, object]] = []

    def append(self, carried: Sequence[pa.ChunkedArray], keys: Keys, reasons: Reasons, gathered: Gathered) -> None:
        """Append source rows.

        Args:
            carried: The source's columns that the output carries.
            keys: A row each.
            reasons: Why a row without a key was not asked about.
            gathered: The answers to these keys.
        """
        responses = gathered.responses
        codes = _status_codes(responses["outcome"], reasons, self._words)
        first = self._shown.add(gathered.places)
        self._unanswered.add(keys[gathered.places < 0])
        own, out_of_range = self._task_columns(responses["answer"], codes)
        codes[out_of_range] = _CODES["invalid"]
        columns = [
            *carried,
            *own,
            self._words.take(to_arrow(codes, pa.int8())),
            _errors(responses["error"], codes, reasons, out_of_range),
            *(responses[name] for name in _COPIED),
            _cost_usd(responses["cost_nano_usd"], first),
            _key_texts(keys),
            repeat_word(self._task_key, len(keys)),
            responses["batch_id"],
            responses["answered_at"],
        ]
        table = pa.table(columns, schema=self._schema)
        self._write(table)
        self._count(table, responses, codes, first)

    def close(self) -> None:
        """Let go of the file and its thread, whether it was finished or not."""
        self._compressor.shutdown()
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError):
            self._file.unlink()

    def _write(self, table: pa.Table) -> None:
        """Compress and write a bucket beside the making of the next one: neither needs the interpreter."""
        self._compressing.result()
        self._compressing = self._compressor.submit(self._writer.write_table, table, row_group_size=BUCKET_ROWS)

    def finish(self, output: Store, path: str) -> WrittenOutput:
        """Put the file; return what it holds."""
        self._compressing.result()
        self._writer.add_key_value_metadata({METADATA_KEY: msgspec.json.encode({**self._facts, "rows": self._rows}).decode()})
        self._writer.close()
        output.put_file(path, self._file)
        return WrittenOutput(
            uri=f"{output.uri}/{path}",
            rows=self._rows,
            answers=len(self._shown) + len(self._unanswered),
            cost_nano_usd=self._cost_nano_usd,
            batches=len(self._batch_ids),
            schema=self._schema,
            preview=tuple(self._preview),
            **self._sums,
        )

    def _task_columns(self, answers: pa.ChunkedArray, codes: Codes) -> tuple[list[pa.Array | pa.ChunkedArray], list[int]]:
        """Return the task's columns, and the rows whose answer has no room in them."""
        succeeded = codes == _CODES["succeeded"]
        usable = answers
        if (to_numpy(answers.is_valid()) & ~succeeded).any():
            usable = pc.if_else(truths_to_arrow(succeeded), answers, _text(None))
        if self._answer_columns is None:
            return [usable], []
        texts = usable.cast(pa.binary())
        # As Python objects the answers of a whole bucket would be the most that is in memory.
        pieces = [self._answer_columns.read(texts.slice(start, DECODED_ROWS).to_pylist()) for start in range(0, len(texts), DECODED_ROWS)]
        columns: list[pa.Array | pa.ChunkedArray] = [
            pa.chunked_array(chunks) for chunks in zip(*(piece.columns for piece in pieces), strict=True)
        ]
        return columns, [at * DECODED_ROWS + row for at, piece in enumerate(pieces) for row in piece.out_of_range]

    def _count(self, table: pa.Table, responses: pa.Table, codes: Codes, first: Mask) -> None:
        for word, count in zip(STATUSES, np.bincount(codes, minlength=len(STATUSES)).tolist(), strict=True):
            self._rows[word] += count
        if len(self._preview) < PREVIEW_ROWS:
            self._preview += _to_rows(table.slice(0, PREVIEW_ROWS - len(self._preview)))
        if not len(self._own_batch_ids):
            return
        paid = pc.is_in(responses["batch_id"], value_set=self._own_batch_ids)
        mine = responses.select([*_TOKENS, "cost_nano_usd", "batch_id"]).filter(pc.and_(paid, truths_to_arrow(first)))
        for name in _TOKENS:
            self._sums[name] += pc.sum(mine[name]).as_py() or 0
        cost = mine["cost_nano_usd"]
        self._cost_nano_usd = None if self._cost_nano_usd is None or cost.null_count else self._cost_nano_usd + (pc.sum(cost).as_py() or 0)
        self._batch_ids.update(pc.unique(mine["batch_id"]).to_pylist())


def _writing(schema: pa.Schema, key_columns: Sequence[str]) -> dict[str, Any]:
    """Return how the columns are written: what differs in every row is not looked up in a dictionary first."""
    columns = _column_paths(schema)
    unique = {"request_key", *(key_columns if len(key_columns) == 1 else ())}
    return {
        "compression": "zstd",
        # The digits of a hash have nothing in common but their alphabet.
        "compression_level": {column: 1 if column == "request_key" else 3 for column in columns},
        "use_dictionary": [column for column in columns if column not in unique],
    }


def _column_paths(schema: pa.Schema) -> list[str]:
    """Return the columns as Parquet names them, those within lists and structs too."""
    empty = pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema).close()
    written = pq.ParquetFile(empty.getvalue()).schema
    return [written.column(at).path for at in range(len(written))]


class _Places:
    """A set of places in an index: a byte a place, far less than their keys."""

    def __init__(self) -> None:
        self._held = np.zeros(0, np.bool_)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, places: Places) -> Mask:
        """Add places; tell of each whether it is new here, a repeated one at its first row only. -1 is never new."""
        new = np.zeros(len(places), np.bool_)
        rows = np.flatnonzero(places >= 0)
        if len(rows) and (needed := int(places[rows].max()) + 1) > len(self._held):
            self._held = np.concatenate([self._held, np.zeros(max(needed, 2 * len(self._held)) - len(self._held), np.bool_)])
        rows = rows[~self._held[places[rows]]]
        rows = rows[np.argsort(places[rows], kind="stable")]
        rows = rows[np.diff(places[rows], prepend=-1) != 0]
        new[rows] = True
        self._held[places[rows]] = True
        self._count += len(rows)
        return new


def _status_codes(outcomes: pa.ChunkedArray, reasons: Reasons, words: pa.Array) -> Codes:
    codes = pc.index_in(outcomes, value_set=words)
    unknown = pc.and_(pc.is_null(codes), pc.is_valid(outcomes))
    if pc.any(unknown).as_py():
        outcome = ", ".join(sorted(pc.unique(outcomes.filter(unknown)).to_pylist()))
        raise OutputError(f"The response store holds outcomes that this version does not know: {outcome}. Nothing was written. Upgrade it.")
    found: Codes = to_numpy(codes, _CODES["pending"]).astype(np.int8)
    found[reasons == SKIPPED] = _CODES["skipped"]
    found[reasons == LARGE] = _CODES["errored"]
    return found


def _errors(errors: pa.ChunkedArray, codes: Codes, reasons: Reasons, out_of_range: Sequence[int]) -> pa.ChunkedArray:
    no_room = np.zeros(len(codes), np.bool_)
    no_room[out_of_range] = True
    overruled = (
        (codes == _CODES["pending"], PENDING),
        (reasons == SKIPPED, None),
        (reasons == LARGE, TOO_LARGE),
        (no_room, NO_ROOM),
    )
    for rows, text in overruled:
        if rows.any():
            errors = pc.if_else(truths_to_arrow(rows), _text(text), errors)
    return errors


def _cost_usd(nano_usd: pa.ChunkedArray, first: Mask) -> pa.Array:
    """Return the cost of an answer on its first row, 0 on the others that share it, null where it is not known."""
    return to_arrow(np.where(first, to_numpy(nano_usd) / 1e9, 0.0), pa.float64(), to_numpy(nano_usd.is_valid()))


def _to_rows(table: pa.Table) -> list[dict[str, object]]:
    """Return an output's rows as Python values; pyarrow would import pandas for a time with a zone."""
    *others, answered_at = table.columns
    times = [None if time is None else time.replace(tzinfo=UTC) for time in answered_at.cast(pa.timestamp("us")).to_pylist()]
    values = zip(*([_to_python(value) for value in column] for column in others), times, strict=True)
    return [dict(zip(table.column_names, row, strict=True)) for row in values]


def _to_python(value: pa.Scalar) -> object:
    """Return a value for the preview, None where Python has none: what was paid is published all the same."""
    try:
        return value.as_py()
    except UNREADABLE:
        return None


def _text(text: str | None) -> pa.Scalar:
    return words_to_arrow([text])[0]


def _key_texts(keys: Keys) -> pa.Array:
    """Return keys as 32 hex digits each, null where there is none."""
    digits = np.empty((len(keys), 32), np.uint8)
    write_digits(keys, digits)
    known = np.packbits(has_key(keys), bitorder="little")
    starts = np.arange(len(keys) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(starts), pa.py_buffer(digits), pa.py_buffer(known))
