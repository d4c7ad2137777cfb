"""Reads rows of response files by place: each row group once, however the rows are ordered."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.arrays import to_arrow
from claude_batch_dagster.storage.responses import ANSWER_SCHEMA
from claude_batch_dagster.storage.store import Store, join_uri

CACHED_ROW_GROUPS = 32
OPEN_FILES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where responses are, an element each.

    Attributes:
        file: A number of the file, the same for the same file.
        row: In that file.
    """

    file: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]


class ResponseReader:
    """Reads rows of response files; some files stay open, and some row groups in memory.

    Args:
        store: The root.
        paths: Of the files, by number.
    """

    def __init__(self, store: Store, paths: list[str]) -> None:
        self._store = store
        self._paths = paths
        self._files: OrderedDict[int, tuple[pq.ParquetFile, npt.NDArray[np.int64]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._last: tuple[tuple[object, ...], pa.Table] | None = None

    def read(self, located: Located, columns: list[str] | None = None) -> pa.Table:
        """Read rows in the order given.

        Raises:
            RootError: Terminal. A file is gone.
        """
        in_order = not (located.file[1:] != located.file[:-1]).any() and bool((located.row[1:] >= located.row[:-1]).all())
        order = np.arange(len(located.row)) if in_order else np.lexsort((located.row, located.file))
        files, rows = located.file[order], located.row[order]
        parts: list[pa.Table] = []
        for start, stop in _runs(files):
            file = int(files[start])
            bounds = self._open(file)[1]
            groups = np.searchsorted(bounds, rows[start:stop], side="right") - 1
            for first, last in _runs(groups):
                group = int(groups[first])
                part = self._group(file, group, columns)
                parts.append(_take(part, rows[start + first : start + last] - bounds[group]))
        table = pa.concat_tables(parts)
        if in_order:
            return table
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return table.take(to_arrow(back, pa.int64()))

    def _group(self, file: int, group: int, columns: list[str] | None) -> pa.Table:
        if columns is not None:
            wanted = (file, group, *columns)
            if self._last is None or self._last[0] != wanted:
                self._last = None
                self._last = wanted, self._read_group(file, group, columns)
            return self._last[1]
        place = (file, group)
        table = self._groups.pop(place, None)
        if table is None:
            table = self._read_group(file, group, ANSWER_SCHEMA.names)
        self._groups[place] = table
        if len(self._groups) > CACHED_ROW_GROUPS:
            self._groups.popitem(last=False)
        return table

    def _read_group(self, file: int, group: int, columns: list[str]) -> pa.Table:
        return self._open(file)[0].read_row_group(group, columns=columns, use_threads=False)

    def _open(self, file: int) -> tuple[pq.ParquetFile, npt.NDArray[np.int64]]:
        opened = self._files.pop(file, None)
        if opened is None:
            try:
                # What is buffered ahead of a local file is memory for nothing.
                parquet = pq.ParquetFile(self._store.open(self._paths[file]), pre_buffer=self._store.folder is None)
            except FileNotFoundError as error:
                raise RootError(
                    f"{join_uri(self._store.uri, self._paths[file])} was removed while it was being read. Nothing was sent. Run again."
                ) from error
            lengths = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
            opened = parquet, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)[:-1])) if lengths else np.zeros(1, np.int64)
        self._files[file] = opened
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1][0].close()
        return opened


def _take(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return rows, ascending: without copying them where they are most of what follows each other."""
    if 2 * len(rows) >= table.num_rows and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), len(rows))
    return table.take(to_arrow(rows, pa.int64()))


def _runs(values: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of equal values that follow each other."""
    starts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return ((start, stop) for start, stop in pairwise(starts) if stop > start)
