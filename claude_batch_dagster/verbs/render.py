"""Rendering a source file's rows for a task, and the keys that this gives them."""

from collections.abc import Iterator
from dataclasses import dataclass

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.core.request import Renderer, Request, line_bytes
from claude_batch_dagster.core.shard import fits_alone
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import (
    LARGE,
    SKIPPED,
    Keys,
    RowKeys,
    keys_from_arrow,
    pack_keys,
    read_row_keys,
    row_keys_path,
)
from claude_batch_dagster.storage.source import PIECE_ROWS, Source, SourceFile
from claude_batch_dagster.storage.store import Store


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


def render_file(source: Source, file: SourceFile, task: ClaudeTask) -> Iterator[RenderedPiece]:
    """Yield a file's rows as requests, a piece at a time."""
    renderer = Renderer(task, source.schema(file).names)
    columns = list(dict.fromkeys(renderer.columns))
    at = [columns.index(column) for column in renderer.columns]
    for piece in source.pieces(file, columns, PIECE_ROWS):
        try:
            values = [piece.column(i).to_pylist() for i in range(len(columns))]
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{source.name(file)} has text that is not UTF-8 in {', '.join(columns)}: {error.reason}. Nothing was sent from it. Write it again."
            ) from error
        requests = list(renderer.render(zip(*(values[i] for i in at), strict=True)))
        reasons = [SKIPPED if r is None else None if fits_alone(line_bytes(task.name, r)) else LARGE for r in requests]
        keys = pack_keys([r.key if r is not None and reason is None else None for r, reason in zip(requests, reasons, strict=True)])
        yield RenderedPiece(requests=requests, keys=keys, reasons=reasons)


def read_or_render_keys(store: Store, source: Source, file: SourceFile, task: ClaudeTask) -> tuple[Keys, list[str | None]]:
    """Return the keys of a file's rows and why some have none; rendered, and kept, where the file is new."""
    digest = source.digest(file)
    table = read_row_keys(store, digest, task.task_key)
    if table is None:
        with store.scratch() as scratch:
            written = RowKeys(scratch / "row_keys.parquet")
            for piece in render_file(source, file, task):
                written.append(piece.keys, piece.reasons)
            written.close()
            store.put_file(row_keys_path(digest, task.task_key), written.file)
        table = read_row_keys(store, digest, task.task_key)
        assert table is not None, "what was just written can be read"
    return keys_from_arrow(table["request_key"]), table["reason"].to_pylist()
