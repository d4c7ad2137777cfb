"""A partition's rows as publishing reads them: the keys some way ahead, the carried columns behind them, neither ever whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.render import KeyedRows, iter_keys
from claude_batch_dagster.verbs.select import FileRows, first_rows

PIECE_ROWS = 16_384


@dataclass(slots=True, kw_only=True)
class _Count:
    """How many rows of a file came so far."""

    read: int = 0
    keyed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The rows of some files, in order, in two streams of as many rows.

    Raises:
        OutputError: Terminal. A stream ends with another number of rows of a file than its footer says: rows would stand beside others' keys.
        SourceError: Terminal. A file cannot be read, or changed.
    """

    store: Store
    source: Source
    parts: Sequence[FileRows]
    task: ClaudeTask
    _counts: dict[str, _Count] = field(default_factory=dict, init=False)

    def iter_keyed(self, rows: int) -> Iterator[KeyedRows]:
        """Yield the rows' keys, so many at a time; fewer at the end only."""
        held: list[KeyedRows] = []
        count = 0
        for keyed in self._iter_keys():
            held.append(keyed)
            count += len(keyed.keys)
            while count >= rows:
                whole = _concat(held)
                # The pieces are let go first: whoever takes the rows keeps them for long.
                held, count = [KeyedRows(keys=whole.keys[rows:], reasons=whole.reasons[rows:])], count - rows
                yield KeyedRows(keys=whole.keys[:rows], reasons=whole.reasons[:rows])
        if count:
            held = [_concat(held)]
            yield held[0]

    def iter_columns(self, fields: Sequence[pa.Field], rows: int) -> Iterator[list[pa.ChunkedArray]]:
        """Yield columns of the source in these fields' types, so many rows at a time; fewer at the end only."""
        held: list[pa.RecordBatch] = []
        count = 0
        for batch in self._iter_batches([one.name for one in fields]):
            rest = batch
            while count + rest.num_rows >= rows:
                yield _to_columns([*held, rest.slice(0, rows - count)], fields)
                held, count, rest = [], 0, rest.slice(rows - count)
            held.append(rest)
            count += rest.num_rows
        if count:
            yield _to_columns(held, fields)

    def _iter_keys(self) -> Iterator[KeyedRows]:
        for part in self.parts:
            count = self._count(part)
            for keyed in iter_keys(self.store, self.source, part, self.task):
                count.keyed += len(keyed.keys)
                yield keyed
            self._check(part, count.keyed)

    def _iter_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for part in self.parts:
            count = self._count(part)
            for batch in first_rows(self.source.pieces(part.file, columns, PIECE_ROWS), part.rows):
                count.read += batch.num_rows
                yield batch
            self._check(part, count.read)

    def _count(self, part: FileRows) -> _Count:
        return self._counts.setdefault(part.file.path, _Count())

    def _check(self, part: FileRows, rows: int) -> None:
        if rows != part.rows:
            count = self._count(part)
            raise OutputError(
                f"{self.source.name(part.file)}: {count.read:,} rows read, {count.keyed:,} keyed, {part.rows:,} in the footer. Nothing was written. "
                "Write the file again."
            )


def _concat(pieces: Sequence[KeyedRows]) -> KeyedRows:
    if len(pieces) == 1:
        return pieces[0]
    return KeyedRows(keys=np.concatenate([piece.keys for piece in pieces]), reasons=np.concatenate([piece.reasons for piece in pieces]))


def _to_columns(batches: Sequence[pa.RecordBatch], fields: Sequence[pa.Field]) -> list[pa.ChunkedArray]:
    columns = []
    for at, one in enumerate(fields):
        # Files of one partition may differ in how they hold the same values.
        chunks = [batch.column(at) if batch.column(at).type == one.type else batch.column(at).cast(one.type) for batch in batches]
        columns.append(pa.chunked_array(chunks, one.type))
    return columns
