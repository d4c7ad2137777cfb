"""Rendering a source file's rows for a task, and the keys that this gives them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from claude_batch_dagster.core.errors import SourceError, TaskError
from claude_batch_dagster.core.request import HASH_BYTES, KEY_BYTES, Renderer
from claude_batch_dagster.core.shard import fits_alone
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import ASKED, LARGE, SKIPPED, Keys, Reasons, RowKeys, iter_row_keys, row_keys_path
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.source import PIECE_ROWS, Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.texts import fill_slots
from claude_batch_dagster.storage.unreadable import UNREADABLE, find_unreadable
from claude_batch_dagster.verbs.select import FileRows, first_rows, row_key


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedRows:
    """Some rows of a file, in order: their keys, and why some have none."""

    keys: Keys
    reasons: Reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPiece:
    """A few thousand rows of a file, in order, as requests.

    Attributes:
        lines: A row each.
        rows: Their keys, none where nothing is asked.
    """

    lines: Lines
    rows: KeyedRows


def render_rows(source: Source, part: FileRows, task: ClaudeTask, *, rows: int = PIECE_ROWS) -> Iterator[RenderedPiece]:
    """Yield a file's rows as requests, at most so many at a time."""
    renderer = Renderer(task, source.schema(part.file).names)
    columns = list(dict.fromkeys(renderer.columns))
    at = [columns.index(column) for column in renderer.columns]
    start = 0
    for piece in first_rows(source.pieces(part.file, columns, rows), part.rows):
        try:
            if isinstance(task.prompt, str):
                lines = fill_slots([piece.column(i) for i in at], renderer.between, renderer.tail, renderer.frame)
                keys = _hash_lines(renderer, lines)
            else:
                values = [column.to_pylist() for column in piece.columns]
                rendered = renderer.render_columns([values[i] for i in at])
                lines = Lines.of(renderer.frame, rendered.rests)
                keys = np.frombuffer(rendered.keys, np.uint64).reshape(-1, 2)
        except UNREADABLE as error:
            found = find_unreadable(dict(zip(columns, piece.columns, strict=True)))
            if found is None:
                raise
            row = start + found.row
            raise SourceError(found.explain(source.name(part.file), row, row_key(source, part, row)), column=found.column) from error
        except TaskError as error:
            at_row = error.context.get("row")
            raise TaskError(
                f"{source.name(part.file)}, row {start + at_row + 1:,}: {error}" if isinstance(at_row, int) else str(error)
            ) from error
        start += piece.num_rows
        reasons = np.where(lines.rests_bytes == 0, np.int8(SKIPPED), np.int8(ASKED))
        if not fits_alone(int(lines.lines_bytes.max(initial=0))):
            large = np.array([not fits_alone(size) for size in lines.lines_bytes.tolist()])
            reasons[large] = LARGE
            keys = np.where(large[:, None], np.uint64(0), keys)
        yield RenderedPiece(lines=lines, rows=KeyedRows(keys=keys, reasons=reasons))


def _hash_lines(renderer: Renderer, lines: Lines) -> Keys:
    rests = map(memoryview(lines.content).__getitem__, map(slice, lines.starts.tolist(), lines.stops.tolist()))
    hashes = np.frombuffer(b"".join(renderer.hash(rests)), np.uint8).reshape(-1, HASH_BYTES)
    keys = np.ascontiguousarray(hashes[:, :KEY_BYTES]).view(np.uint64)
    return np.where(lines.rests_bytes[:, None] == 0, np.uint64(0), keys)


def iter_kept_keys(store: Store, source: Source, part: FileRows, task: ClaudeTask) -> Iterator[KeyedRows] | None:
    """Return the keys that were kept when the file was first rendered for this task, None where it never was."""
    kept = iter_row_keys(store, source.digest(part.file), task.task_key)
    return None if kept is None else _first_kept(kept, part.rows)


def iter_keys(store: Store, source: Source, part: FileRows, task: ClaudeTask, *, keep: bool = True) -> Iterator[KeyedRows]:
    """Yield the keys of a file's rows, rendered where the file is new.

    Args:
        keep: Whether to keep what had to be rendered, so that the file is never rendered for this task again.
    """
    kept = iter_kept_keys(store, source, part, task)
    if kept is not None:
        yield from kept
        return
    with KeyKeeper(store, source, part, task, keep=keep) as keeper:
        for piece in render_rows(source, part, task):
            keeper.add(piece.rows)
            yield piece.rows


def read_or_render_keys(store: Store, source: Source, part: FileRows, task: ClaudeTask, *, keep: bool = True) -> KeyedRows:
    """Return the keys of all of a file's rows, rendered where the file is new: 17 bytes a row."""
    pieces = list(iter_keys(store, source, part, task, keep=keep))
    return KeyedRows(
        keys=np.concatenate([np.empty((0, 2), np.uint64), *(piece.keys for piece in pieces)]),
        reasons=np.concatenate([np.empty(0, np.int8), *(piece.reasons for piece in pieces)]),
    )


def _first_kept(kept: Iterator[tuple[Keys, Reasons]], rows: int) -> Iterator[KeyedRows]:
    for keys, reasons in kept:
        yield KeyedRows(keys=keys[:rows], reasons=reasons[:rows])
        rows -= len(keys)
        if rows <= 0:
            return


class KeyKeeper:
    """Keeps the keys of a file's rows once all of them were rendered; of a part of a file it keeps nothing."""

    def __init__(self, store: Store, source: Source, part: FileRows, task: ClaudeTask, *, keep: bool = True) -> None:
        self._store = store
        self._path = row_keys_path(source.digest(part.file), task.task_key)
        self._scratch = ExitStack()
        self._written = RowKeys(self._scratch.enter_context(store.scratch()) / "row_keys.parquet") if keep and part.whole else None

    def __enter__(self) -> Self:
        return self

    def add(self, rows: KeyedRows) -> None:
        """Note the keys of the next rows."""
        if self._written is not None:
            self._written.append(rows.keys, rows.reasons)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._scratch:
            if self._written is not None:
                self._written.close()
                if kind is None:
                    self._store.put_file(self._path, self._written.file)
