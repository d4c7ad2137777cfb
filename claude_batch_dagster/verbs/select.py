"""Which rows a job is about: the partitions' files, and with a limit only the first rows of them all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from claude_batch_dagster.storage.source import Source, SourceFile


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRows:
    """The first rows of a file.

    Attributes:
        whole: Whether these are all of them.
    """

    file: SourceFile
    rows: int
    whole: bool


def select_rows(source: Source, files: dict[str | None, list[SourceFile]], limit: int | None) -> dict[str | None, list[FileRows]]:
    """Return the rows of each partition; partitions beyond the limit are left out.

    Args:
        source: Where the files are.
        files: Of each partition, in order.
        limit: Rows in all, None for all of them.
    """
    left = limit
    selected: dict[str | None, list[FileRows]] = {}
    for partition, listed in files.items():
        for file in listed:
            if left == 0:
                return selected
            count = source.row_count(file)
            rows = count if left is None else min(count, left)
            left = None if left is None else left - rows
            selected.setdefault(partition, []).append(FileRows(file=file, rows=rows, whole=rows == count))
    return selected


def leaves_rows_out(source: Source, files: dict[str | None, list[SourceFile]], limit: int | None) -> bool:
    """Tell whether a limit leaves any row out."""
    return limit is not None and sum(source.row_count(file) for listed in files.values() for file in listed) > limit


def first_rows(pieces: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield so many rows of a file's pieces, and read no piece that is not needed."""
    for piece in pieces:
        if piece.num_rows > rows:
            yield piece.slice(0, rows)
            return
        yield piece
        rows -= piece.num_rows


def row_key_texts(source: Source, part: FileRows, key_columns: Sequence[str]) -> Iterator[str]:
    """Yield each row's key as a person types it: several columns are joined by commas."""
    for piece in first_rows(source.pieces(part.file, key_columns), part.rows):
        yield from (",".join(str(value) for value in row) for row in zip(*(column.to_pylist() for column in piece.columns), strict=True))


def row_key(source: Source, part: FileRows, row: int) -> str:
    """Return the key of one row of a file, as a person types it.

    Args:
        row: From 0.
    """
    return next(islice(row_key_texts(source, part, source.dataset.key_columns), row, None))
