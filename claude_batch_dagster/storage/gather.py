"""Gathers the answers of many rows in the rows' order, from a store that has them in another: memory stays that of a bucket.

Where rows and answers are neighbours, a bucket reads its row groups. Where they are not (answers as they came, repeated texts, a source sorted
anew), each row group is read once and its rows are scattered to a scratch file a bucket.
"""

from collections.abc import Iterator
from contextlib import ExitStack
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
BUCKET_BITS = 6
WINDOW_BUCKETS = 1 << BUCKET_BITS
"""So many buckets at once, some 40 bytes of memory a row; their scratch files hold the answers."""
FIND_ROWS = 262_144
SCATTER_READS = 2
"""Reads of row groups that cost as much as to scatter a bucket."""
GROUP_BITS = 18
ROW_BITS = (ROW_GROUP_ROWS - 1).bit_length()
"""What a row group's number in its file and a row's in its group take: with a bucket's, 25 bits of 63 are left for the file's."""
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
    files = _scatter(answers, keys, plan, scratch) if plan.is_scattered() else None
    for bucket, start in enumerate(range(0, len(keys), size)):
        places = found[start : start + size]
        if (places < 0).all():
            responses = _absent(len(places))
        elif files is None:
            chosen = plan.choose(np.flatnonzero(plan.buckets == bucket))
            read = answers.read(chosen.located, keys[chosen.rows], COLUMNS)
            responses = _order(read.select(COLUMNS), chosen.rows - start, len(places))
        else:
            read = _read_bucket(files[bucket])
            responses = _order(read.select(COLUMNS), to_numpy(read[_AT]), len(places))
        yield Gathered(places=places, responses=responses)


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
        # In place: of two million rows each array more is 16 MB.
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

    def choose(self, stretches: Places) -> _Chosen:
        """Return the rows of some stretches, one after the other."""
        lengths = self.starts[stretches + 1] - self.starts[stretches]
        chosen = np.concatenate([np.arange(self.starts[one], self.starts[one + 1]) for one in stretches])
        files = np.repeat(self.groups[stretches] >> GROUP_BITS, lengths)
        return _Chosen(rows=self.rows[chosen], located=Located(file=files, row=self.row_in_file[chosen].astype(np.int64)))

    def is_scattered(self) -> bool:
        """Tell whether reading bucket by bucket would read so many row groups again that to scatter their rows is cheaper."""
        return len(self.groups) - len(np.unique(self.groups)) > SCATTER_READS * len(np.unique(self.buckets))


def _plan(answers: Answers, keys: Keys, bucket_rows: int) -> tuple[Places, _Plan]:
    """Return the places of the keys' answers, and how they are read: of where they are no more is kept."""
    found = _find(answers, keys)
    return found.places, _Plan.of(found, bucket_rows)


def _scatter(answers: Answers, keys: Keys, plan: _Plan, scratch: Path) -> dict[int, Path]:
    files: dict[int, Path] = {}
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    with ExitStack() as stack:
        for stretches in np.split(np.arange(len(plan.groups)), np.flatnonzero(np.diff(plan.groups)) + 1):
            chosen = plan.choose(stretches)
            read = answers.read(chosen.located, keys[chosen.rows], COLUMNS).select(COLUMNS)
            table = pa.table([to_arrow(chosen.rows % plan.bucket_rows, pa.int32()), *read.columns], schema=_SPILLED)
            starts = plan.starts[stretches[0] : stretches[-1] + 2] - plan.starts[stretches[0]]
            for bucket, start, stop in zip(plan.buckets[stretches].tolist(), starts.tolist(), starts[1:].tolist(), strict=False):
                if bucket not in files:
                    files[bucket] = scratch / f"bucket-{bucket}.arrow"
                    file = stack.enter_context(pa.OSFile(str(files[bucket]), "wb"))
                    writers[bucket] = stack.enter_context(pa.ipc.new_stream(file, _SPILLED))
                writers[bucket].write_table(table.slice(start, stop - start))
    return files


def _read_bucket(file: Path) -> pa.Table:
    with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
        table = stream.read_all()
    file.unlink()
    return table


def _order(table: pa.Table, at: npt.NDArray[np.int32], rows: int) -> pa.Table:
    """Return so many rows: each row of the table at its place, nulls elsewhere."""
    indices, absent = np.zeros(rows, np.int64), np.ones(rows, np.bool_)
    indices[at], absent[at] = np.arange(len(at)), False
    return table.take(to_arrow(indices, pa.int64(), ~absent))


def _absent(rows: int) -> pa.Table:
    return pa.table([pa.nulls(rows, SCHEMA.field(name).type) for name in COLUMNS], names=COLUMNS)
