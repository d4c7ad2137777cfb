"""Gathers the answers of many rows in the rows' order, from a store that has them in another: memory stays that of a bucket.

Each row group is read once, for the first bucket of rows that wants some of it. What later buckets want of it (repeated texts, answers as they
came, a source sorted anew) waits for them in memory, and where that is much in a scratch file a bucket.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.arrays import to_arrow, to_numpy
from claude_batch_dagster.storage.keys import Keys, has_key
from claude_batch_dagster.storage.reader import Located
from claude_batch_dagster.storage.responses import ROW_GROUP_ROWS, SCHEMA

BUCKET_ROWS = 32_768
BUCKET_BYTES = 32 << 20
"""Of answers: a bucket has fewer rows where they are long."""
BYTES_PER_TOKEN = 4
BUCKET_BITS = 5
WINDOW_BUCKETS = 1 << BUCKET_BITS
"""So many buckets at once, some 40 bytes of memory a row."""
FIND_ROWS = 262_144
WAITING_BYTES = 16 << 20
"""Of answers that wait in memory for their bucket."""
GROUP_BITS = 18
ROW_BITS = (ROW_GROUP_ROWS - 1).bit_length()
"""What a row group's number in its file and a row's in its group take: with a bucket's, 28 bits of 63 are left for the file's."""
COLUMNS = [name for name in SCHEMA.names if name not in ("request_key", "max_tokens", "round", "retryable")]
_AT = "at"
_SPILLED = pa.schema([pa.field(_AT, pa.int32()), *(SCHEMA.field(name) for name in COLUMNS)])

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The answers of some rows.

    Attributes:
        places: Of each row's answer in the index, -1 for none.
        responses: A row a row, nulls where there is no answer; the columns of COLUMNS.
    """

    places: Places
    responses: pa.Table


def bucket_rows(answers: Answers) -> int:
    """Return how many answers are in memory at a time."""
    mean_bytes = BYTES_PER_TOKEN * (answers.mean_output_tokens or 0)
    return max(1, int(min(BUCKET_ROWS, BUCKET_BYTES / max(mean_bytes, 1))))


def gather(answers: Answers, keys: Keys, scratch: Path) -> Iterator[Gathered]:
    """Yield the answers to keys, in the keys' order, `bucket_rows` at a time.

    Args:
        answers: Where they are.
        keys: WINDOW_BUCKETS buckets of them at most; (0, 0) has no answer.
        scratch: A folder for files that are made and removed here.

    Raises:
        RootError: Terminal. A response file is gone, or is not what the index says.
    """
    size = bucket_rows(answers)
    found, plan = _plan(answers, keys, size)
    with closing(_Waiting(scratch)) as waiting:
        for bucket, start in enumerate(range(0, len(keys), size)):
            tables = waiting.pop(bucket)
            for stretches in plan.due(bucket):
                tables.append(_read(answers, keys, plan, stretches[:1]))
                if len(stretches) > 1:
                    waiting.add(_read(answers, keys, plan, stretches[1:]), *plan.lengths(stretches[1:]))
            places = found[start : start + size]
            yield Gathered(places=places, responses=_order(tables, len(places)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Where the answers to the window's keys are; file and row count where there is a place."""

    places: Places
    file: npt.NDArray[np.int32]
    row: npt.NDArray[np.uint32]


def _find(answers: Answers, keys: Keys) -> _Found:
    places = np.full(len(keys), -1, np.int64)
    file, row = np.zeros(len(keys), np.int32), np.zeros(len(keys), np.uint32)
    # Sorted keys come to one part of the index after the other, and no more of it is in memory.
    order = np.argsort(keys[:, 0])
    pa.default_memory_pool().release_unused()
    for start in range(0, len(keys), FIND_ROWS):
        some = order[start : start + FIND_ROWS]
        some = some[has_key(keys[some])]
        places[some] = answers.find(keys[some])
        some = some[places[some] >= 0]
        at = answers.locate(places[some])
        file[some], row[some] = at.file, at.row
        answers.release()
    return _Found(places=places, file=file, row=row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """Rows of the window, and where their answers are."""

    rows: npt.NDArray[np.int32]
    located: Located


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which rows are read from where, as stretches of rows of one bucket whose answers are in one row group.

    Attributes:
        bucket_rows: Rows of the window in a bucket.
        rows: Of the window, those with an answer; ordered by row group, then by bucket, then as they stand in the group.
        row_in_file: Of their answers.
        starts: Where in `rows` each stretch begins, and the length of `rows`.
        groups: Of each stretch: file and row group in one number.
        buckets: Of each stretch.
    """

    bucket_rows: int
    rows: npt.NDArray[np.int32]
    row_in_file: npt.NDArray[np.uint32]
    starts: Places
    groups: Places
    buckets: Places

    @classmethod
    def of(cls, found: _Found, bucket_rows: int) -> "_Plan":
        # Where answers are long, row groups have fewer rows; and no more of them than a bucket's are read at once.
        group_rows = min(ROW_GROUP_ROWS, bucket_rows)
        rows = np.flatnonzero(found.places >= 0).astype(np.int32)
        row_in_file = found.row[rows]
        # In place: of a million rows each array more is 8 MB.
        stretches = found.file[rows].astype(np.int64)
        stretches <<= GROUP_BITS
        stretches |= row_in_file // group_rows
        stretches <<= BUCKET_BITS
        stretches |= rows // bucket_rows
        stretches <<= ROW_BITS
        stretches |= row_in_file % group_rows
        order = np.argsort(stretches)
        stretches = stretches[order]
        stretches >>= ROW_BITS
        starts = np.flatnonzero(np.diff(stretches, prepend=-1))
        first = stretches[starts]
        return cls(
            bucket_rows=bucket_rows,
            rows=rows[order],
            row_in_file=row_in_file[order],
            starts=np.append(starts, len(rows)),
            groups=first >> BUCKET_BITS,
            buckets=first & (2**BUCKET_BITS - 1),
        )

    def due(self, bucket: int) -> list[Places]:
        """Return the stretches of each row group that no bucket before this one wants some of; this one's comes first."""
        firsts = np.flatnonzero(np.diff(self.groups, prepend=-1))
        ends = np.append(firsts[1:], len(self.groups))
        ours = self.buckets[firsts] == bucket
        return [np.arange(first, end) for first, end in zip(firsts[ours].tolist(), ends[ours].tolist(), strict=True)]

    def lengths(self, stretches: Places) -> tuple[list[int], list[int]]:
        """Return of stretches that follow each other their buckets, and how many rows they have."""
        return self.buckets[stretches].tolist(), (self.starts[stretches + 1] - self.starts[stretches]).tolist()

    def choose(self, stretches: Places) -> _Chosen:
        """Return the rows of some stretches of a row group, which follow each other."""
        chosen = slice(self.starts[stretches[0]], self.starts[stretches[-1] + 1])
        rows = self.rows[chosen]
        files = np.full(len(rows), self.groups[stretches[0]] >> GROUP_BITS)
        return _Chosen(rows=rows, located=Located(file=files, row=self.row_in_file[chosen].astype(np.int64)))


def _plan(answers: Answers, keys: Keys, bucket_rows: int) -> tuple[Places, _Plan]:
    """Return the places of the keys' answers, and how they are read: of where they are no more is kept."""
    found = _find(answers, keys)
    return found.places, _Plan.of(found, bucket_rows)


def _read(answers: Answers, keys: Keys, plan: _Plan, stretches: Places) -> pa.Table:
    """Return the answers to some stretches of a row group, as _SPILLED."""
    chosen = plan.choose(stretches)
    read = answers.read(chosen.located, keys[chosen.rows], COLUMNS).select(COLUMNS)
    return pa.table([to_arrow(chosen.rows % plan.bucket_rows, pa.int32()), *read.columns], schema=_SPILLED)


class _Waiting:
    """Answers that wait for their bucket.

    Args:
        scratch: A folder for those that memory does not hold.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._held: dict[int, list[pa.Table]] = {}
        self._held_bytes = 0
        self._files: dict[int, pa.NativeFile] = {}
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table, buckets: Sequence[int], lengths: Sequence[int]) -> None:
        """Keep answers, as many for each bucket as is told."""
        start = 0
        for bucket, length in zip(buckets, lengths, strict=True):
            part = table.slice(start, length)
            start += length
            size = part.nbytes
            if self._held_bytes + size <= WAITING_BYTES:
                self._held.setdefault(bucket, []).append(part)
                self._held_bytes += size
            else:
                self._write(bucket, part)

    def pop(self, bucket: int) -> list[pa.Table]:
        """Return a bucket's answers, which are then kept no longer."""
        tables = self._held.pop(bucket, [])
        self._held_bytes -= sum(table.nbytes for table in tables)
        if bucket in self._files:
            self._finish(bucket)
            with pa.OSFile(str(self._path(bucket))) as source, pa.ipc.open_stream(source) as stream:
                tables.append(stream.read_all())
            self._path(bucket).unlink()
        return tables

    def close(self) -> None:
        """Forget what nobody came for."""
        for bucket in list(self._files):
            self._finish(bucket)
            self._path(bucket).unlink()

    def _write(self, bucket: int, table: pa.Table) -> None:
        if bucket not in self._files:
            self._files[bucket] = pa.OSFile(str(self._path(bucket)), "wb")
            self._writers[bucket] = pa.ipc.new_stream(self._files[bucket], _SPILLED)
        self._writers[bucket].write_table(table)

    def _finish(self, bucket: int) -> None:
        self._writers.pop(bucket).close()
        self._files.pop(bucket).close()

    def _path(self, bucket: int) -> Path:
        return self._scratch / f"bucket-{bucket}.arrow"


def _order(tables: list[pa.Table], rows: int) -> pa.Table:
    """Return so many rows: each row of the tables at its place, nulls elsewhere."""
    if not tables:
        return pa.table([pa.nulls(rows, SCHEMA.field(name).type) for name in COLUMNS], names=COLUMNS)
    table = pa.concat_tables(tables)
    at, answers = to_numpy(table[_AT]), table.select(COLUMNS)
    if len(at) == rows and (np.diff(at) == 1).all():
        return answers
    indices, absent = np.zeros(rows, np.int64), np.ones(rows, np.bool_)
    indices[at], absent[at] = np.arange(len(at)), False
    return answers.take(to_arrow(indices, pa.int64(), ~absent))
