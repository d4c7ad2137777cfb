"""Keeps a task's responses quick to open: writes index generations, joins small response files, removes what was replaced long ago.

- A compacted file is written whole before the index that names it; the files that it replaces are removed two days after that index.
- Two at once: the record of a generation is put-if-absent, and the loser's columns go. Its compacted file repeats what
  others hold: it is passed over, and removed like what was replaced.
- Killed anywhere: what is there is right, only slower to open. Response rows are never changed, and stay in the order of their batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uuid_utils

from claude_batch_dagster.storage.best import Best, load_best
from claude_batch_dagster.storage.entries import Column, Merge, plan_merge
from claude_batch_dagster.storage.index import (
    IndexedFile,
    IndexRecord,
    ReplacedFile,
    index_folder,
    open_columns,
    read_generations,
    record_name,
    sum_columns,
    write_columns,
)
from claude_batch_dagster.storage.responses import (
    COMPACTED,
    Origin,
    Stretch,
    iter_rows,
    responses_folder,
    write_compacted_file,
)
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import StoredFiles, find_version, read_stored_files


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When there is something to do.

    Attributes:
        fresh_rows: A new generation covers as many rows, or `fresh_share` of the index if that is more.
        fresh_files: Or as many files.
        small_rows: A file with less is small.
        compacted_rows: Of a compacted file at most; at least half of it, unless it joins `compacted_files`.
        kept_for: How long what was replaced stays for those who read it.
    """

    fresh_rows: int = 100_000
    fresh_share: float = 0.1
    fresh_files: int = 64
    small_rows: int = 50_000
    compacted_rows: int = 200_000
    compacted_files: int = 32
    kept_for: timedelta = timedelta(days=2)


LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compacted:
    """A compacted file and the numbers of the files that it replaces, in its order."""

    file: IndexedFile
    numbers: tuple[int, ...]


def maintain_responses(store: Store, endpoint: str, task_key: str, *, now: datetime | None = None, limits: Limits = LIMITS) -> bool:
    """Do what is due for the responses to one task; return whether there is a new index. Cheap where nothing is due.

    Raises:
        RootError: Terminal. Response files are gone, or the index is of a newer version.
    """
    now = now or datetime.now(UTC)
    stored = read_stored_files(store, endpoint, task_key)
    _remove_replaced(stored, now, limits)
    if not _is_due(stored, limits):
        return False
    return write_index(stored, load_best(stored), now=now, limits=limits)


def forget_lost_responses(store: Store, endpoint: str, task_key: str) -> tuple[str, ...]:
    """Make the index again where response files are gone: what they held is not answered any more. Return their names."""
    stored = read_stored_files(store, endpoint, task_key, lost_too=True)
    if stored.lost:
        write_index(stored, load_best(stored), now=datetime.now(UTC), limits=LIMITS)
    return stored.lost


def write_index(stored: StoredFiles, best: Best, *, now: datetime, limits: Limits) -> bool:
    """Write the next generation of an index, and compacted files first where there are small ones; return whether this call did.

    Args:
        stored: The files.
        best: What they hold.
        now: Stands in the record.
        limits: Which files are small.
    """
    store, folder = stored.store, index_folder(stored.endpoint, stored.task_key)
    known = [_describe(stored, best, number) for number in range(len(stored.files))]
    with store.scratch() as scratch:
        compacted = [_compact(stored, known, numbers, scratch) for numbers in _choose_small(stored, known, limits)]
    joined = [one for one in compacted if one is not None]
    gone = {number for one in joined for number in one.numbers}
    files = [file for number, file in enumerate(known) if number not in gone] + [one.file for one in joined]
    merge = _Renumbered(plan_merge(best.base, best.fresh), *_renumber(known, gone, joined))
    keys = len(merge)
    generation = stored.newest.generation + 1
    name = f"{record_name(generation).removesuffix('.json')}-{uuid_utils.uuid7()}.keys" if keys else ""
    checksum = ""
    if keys:
        with store.putting(f"{folder}/{name}") as file:
            write_columns(file, len(files), merge.pieces)
            checksum = sum_columns(file)
    record = IndexRecord(
        generation=generation,
        written_at=now,
        columns=name,
        keys=keys,
        checksum=checksum,
        files=tuple(files),
        replaced=(
            *_still_replaced(stored),
            *(ReplacedFile(name=known[number].name, version=known[number].version, since=now) for number in sorted(gone)),
            *(ReplacedFile(name=file.name, version=file.version, since=now) for file in stored.redundant),
        ),
    )
    path, content = f"{folder}/{record_name(generation)}", msgspec.json.encode(record)
    if store.put_if_absent(path, content) or store.get(path) == content:
        return True
    if name:
        store.delete(f"{folder}/{name}")
    return False


def _is_due(stored: StoredFiles, limits: Limits) -> bool:
    record = stored.record
    fresh = [file for file in stored.files if not file.is_covered]
    if record is None and stored.newest.generation:
        return True
    if record is not None and stored.store.folder is not None and not fresh:
        return open_columns(stored.store, index_folder(stored.endpoint, stored.task_key), record) is None
    if len(fresh) > limits.fresh_files:
        return True
    rows: int = sum(pq.read_metadata(stored.store.open(file.path)).num_rows for file in fresh)
    return rows > max(limits.fresh_rows, limits.fresh_share * (record.keys if record else 0))


def _describe(stored: StoredFiles, best: Best, number: int) -> IndexedFile:
    file, sums = stored.files[number], best.sums[number]
    stretches = stored.stretches(number) or (Stretch(batch_id=file.batch_id, rows=sums.rows),)
    return IndexedFile(
        name=file.name, version=file.version, rows=sums.rows, answered=sums.answered, output_tokens=sums.output_tokens, stretches=stretches
    )


def _still_replaced(stored: StoredFiles) -> Iterator[ReplacedFile]:
    there = {file.name for file in stored.replaced}
    return (file for file in (stored.newest.record.replaced if stored.newest.record else ()) if file.name in there)


def _choose_small(stored: StoredFiles, known: Sequence[IndexedFile], limits: Limits) -> list[tuple[int, ...]]:
    """Return numbers of small files that are joined, in the order in which their batches were answered."""
    small = [number for number, file in enumerate(known) if file.rows < limits.small_rows]
    if sum(known[number].rows for number in small) < limits.compacted_rows // 2 and len(small) <= limits.compacted_files:
        return []
    began = {number: _first_stamp(stored, number) for number in small}
    small.sort(key=lambda number: (began[number], next((one.batch_id for one in known[number].stretches), ""), known[number].name))
    groups: list[list[int]] = [[]]
    rows = 0
    for number in small:
        if rows + known[number].rows > limits.compacted_rows:
            groups.append([])
            rows = 0
        groups[-1].append(number)
        rows += known[number].rows
    return [
        tuple(group)
        for group in groups
        if len(group) > 1
        and (len(group) > limits.compacted_files or sum(known[number].rows for number in group) >= limits.compacted_rows // 2)
    ]


def _first_stamp(stored: StoredFiles, number: int) -> int:
    with pq.ParquetFile(stored.store.open(stored.files[number].path)) as file:
        stamps = file.read_row_group(0, columns=["answered_at"])["answered_at"] if file.metadata.num_rows else pa.array([0])
    return int(stamps[0].cast(pa.int64()).as_py())


def _compact(stored: StoredFiles, known: Sequence[IndexedFile], numbers: tuple[int, ...], scratch: Path) -> _Compacted | None:
    """Write one compacted file; None where a file changed meanwhile, or went."""
    store, folder = stored.store, responses_folder(stored.endpoint, stored.task_key)
    stretches = tuple(stretch for number in numbers for stretch in known[number].stretches if stretch.rows)
    file = scratch / "compacted.parquet"
    origin = Origin(stretches=stretches, sources=tuple((known[number].name, known[number].version) for number in numbers))
    try:
        write_compacted_file(file, (rows for number in numbers for rows in _read_rows(stored, number)), origin)
    except FileNotFoundError:
        return None
    if any(find_version(store, f"{folder}/{known[number].name}") != known[number].version for number in numbers):
        return None
    # A name that nobody else gives: what no index names can go, and never comes back.
    name = f"{COMPACTED}{uuid_utils.uuid7()}.parquet"
    store.put_file(f"{folder}/{name}", file)
    described = IndexedFile(
        name=name,
        version=COMPACTED,
        rows=sum(known[number].rows for number in numbers),
        answered=sum(known[number].answered for number in numbers),
        output_tokens=sum(known[number].output_tokens for number in numbers),
        stretches=stretches,
    )
    return _Compacted(file=described, numbers=numbers)


def _read_rows(stored: StoredFiles, number: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(stored.store.open(stored.files[number].path), pre_buffer=False) as file:
        yield from iter_rows(file)


def _renumber(
    known: Sequence[IndexedFile], gone: set[int], joined: Sequence[_Compacted]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return the new number of each file, and what is added to its rows' numbers."""
    numbers, offsets = np.zeros(len(known) + 1, np.uint32), np.zeros(len(known) + 1, np.uint32)
    kept = [number for number in range(len(known)) if number not in gone]
    numbers[kept] = np.arange(len(kept))
    for place, one in enumerate(joined):
        rows = 0
        for number in one.numbers:
            numbers[number], offsets[number] = len(kept) + place, rows
            rows += known[number].rows
    return numbers, offsets


class _Renumbered:
    """The columns of the best responses, with the places that they have after compaction."""

    def __init__(self, merge: Merge, numbers: npt.NDArray[np.uint32], offsets: npt.NDArray[np.uint32]) -> None:
        self._merge = merge
        self._numbers = numbers
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._merge)

    def pieces(self, name: str, dtype: npt.DTypeLike) -> Iterator[Column]:
        """Yield one column, some responses at a time."""
        if name == "file":
            return (self._numbers[files].astype(dtype) for files in self._merge.pieces("file", np.uint32))
        if name == "row":
            places = zip(self._merge.pieces("row", dtype), self._merge.pieces("file", np.uint32), strict=True)
            return (rows + self._offsets[files] for rows, files in places)
        return self._merge.pieces(name, dtype)


def _remove_replaced(stored: StoredFiles, now: datetime, limits: Limits) -> None:
    """Remove response files and generations that were replaced long ago."""
    record = stored.record
    if record is None:
        return
    store = stored.store
    since = {file.name: file.since for file in record.replaced}
    for file in stored.replaced:
        # One that was written again meanwhile has rows that no other file has.
        if now - since[file.name] >= limits.kept_for and find_version(store, file.path) == file.version:
            store.delete(file.path)
    index = index_folder(stored.endpoint, stored.task_key)
    found = read_generations(store, index)
    for older, newer in zip(found.records, found.records[1:], strict=False):
        if newer.generation <= record.generation and now - newer.written_at >= limits.kept_for:
            store.delete(f"{index}/{record_name(older.generation)}")
            found.named.discard(older.columns)
    for name in found.columns - found.named:
        if int(name[:8]) <= record.generation:
            store.delete(f"{index}/{name}")
