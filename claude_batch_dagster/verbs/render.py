"""Rendering a source file's rows for a task, and the keys that this gives them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.core.request import Renderer, Request, line_bytes
from claude_batch_dagster.core.shard import fits_alone
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import (
    LARGE,
    REASONS,
    SKIPPED,
    Keys,
    RowKeys,
    keys_from_arrow,
    pack_keys,
    read_row_keys,
    row_keys_path,
)
from claude_batch_dagster.storage.source import PIECE_ROWS, Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.select import FileRows, first_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPiece:
    """A few thousand rows of a file, in order.

    Attributes:
        requests: None for a row that asks nothing.
        keys: A row each, none where nothing is asked.
        reasons: SKIPPED or LARGE for a row that is not asked about, else None.
    """

    requests: list[Request | None]
    keys: Keys
    reasons: list[int | None]


def render_rows(source: Source, part: FileRows, task: ClaudeTask) -> Iterator[RenderedPiece]:
    """Yield a file's rows as requests, a piece at a time."""
    renderer = Renderer(task, source.schema(part.file).names)
    columns = list(dict.fromkeys(renderer.columns))
    at = [columns.index(column) for column in renderer.columns]
    for piece in first_rows(source.pieces(part.file, columns, PIECE_ROWS), part.rows):
        try:
            values = [piece.column(i).to_pylist() for i in range(len(columns))]
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{source.name(part.file)} has text that is not UTF-8 in {', '.join(columns)}: {error.reason}. Nothing was sent from it. Write it again."
            ) from error
        requests = list(renderer.render(zip(*(values[i] for i in at), strict=True)))
        reasons = [SKIPPED if r is None else None if fits_alone(line_bytes(task.name, r)) else LARGE for r in requests]
        keys = pack_keys([r.key if r is not None and reason is None else None for r, reason in zip(requests, reasons, strict=True)])
        yield RenderedPiece(requests=requests, keys=keys, reasons=reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedRows:
    """The keys of a file's rows, and why some have none: a word of REASONS, None where a row is asked about."""

    keys: Keys
    reasons: list[str | None]


def read_kept_keys(store: Store, source: Source, part: FileRows, task: ClaudeTask) -> KeyedRows | None:
    """Return the keys that were kept when the file was first rendered for this task, None where it never was."""
    table = read_row_keys(store, source.digest(part.file), task.task_key)
    if table is None:
        return None
    table = table.slice(0, part.rows)
    return KeyedRows(keys=keys_from_arrow(table["request_key"]), reasons=table["reason"].to_pylist())


def read_or_render_keys(store: Store, source: Source, part: FileRows, task: ClaudeTask, *, keep: bool = True) -> KeyedRows:
    """Return the keys of a file's rows, rendered where the file is new.

    Args:
        keep: Whether to keep what had to be rendered, so that the file is never rendered for this task again.
    """
    kept = read_kept_keys(store, source, part, task)
    if kept is not None:
        return kept
    keys: list[Keys] = [pack_keys([])]
    reasons: list[int | None] = []
    with KeyKeeper(store, source, part, task, keep=keep) as keeper:
        for piece in render_rows(source, part, task):
            keys.append(piece.keys)
            reasons += piece.reasons
            keeper.add(piece)
    return KeyedRows(keys=np.concatenate(keys), reasons=[None if reason is None else REASONS[reason] for reason in reasons])


class KeyKeeper:
    """Keeps the keys of a file's rows once all of them were rendered; of a part of a file it keeps nothing."""

    def __init__(self, store: Store, source: Source, part: FileRows, task: ClaudeTask, *, keep: bool = True) -> None:
        self._store = store
        self._path = row_keys_path(source.digest(part.file), task.task_key)
        self._scratch = ExitStack()
        self._written = RowKeys(self._scratch.enter_context(store.scratch()) / "row_keys.parquet") if keep and part.whole else None

    def __enter__(self) -> Self:
        return self

    def add(self, piece: RenderedPiece) -> None:
        """Note the keys of the next rows."""
        if self._written is not None:
            self._written.append(piece.keys, piece.reasons)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._scratch:
            if self._written is not None:
                self._written.close()
                if kind is None:
                    self._store.put_file(self._path, self._written.file)
