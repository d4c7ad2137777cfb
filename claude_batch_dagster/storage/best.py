"""Finds the best response of every key of a task: from the index, and from the files that it does not cover."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.storage.arrays import distinct, to_numpy
from claude_batch_dagster.storage.entries import Entries, Places, Ranked, keep_best, no_entries, plan_merge, rank_responses
from claude_batch_dagster.storage.index import index_folder, map_columns, open_columns, write_columns
from claude_batch_dagster.storage.keys import KeySet, Mask
from claude_batch_dagster.storage.reader import Located, ResponseReader
from claude_batch_dagster.storage.responses import CODES, OUTCOME_BITS, Ranks, Stretch, read_ranks
from claude_batch_dagster.storage.store import join_uri
from claude_batch_dagster.storage.stored import StoredFiles

log = logging.getLogger(__name__)

GROUP_ROWS = 1 << 20
"""Of files that the index does not cover, so many rows are in memory and sorted at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSums:
    """What a response file holds: rows, usable answers, and what these used."""

    rows: int
    answered: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best responses of a task; an entry's file is a place in the task's files.

    Attributes:
        base: What the index holds, or what was found first.
        fresh: What counts instead, or is new.
        fresh_at: Place in `base` of the same key, -1 for none.
        sums: By file.
    """

    base: Entries
    fresh: Ranked
    fresh_at: Places
    sums: dict[int, FileSums]

    def __len__(self) -> int:
        """Return how many keys have a response."""
        return len(self.base) + int((self.fresh_at < 0).sum())


def load_best(stored: StoredFiles, batch_ids: frozenset[str] | None = None, *, use_index: bool = True) -> Best:
    """Find the best response of every key.

    Args:
        stored: The files.
        batch_ids: Only what these batches answered, None for all.
        use_index: Whether the index may tell; else all files are read.
    """
    return _Loading(stored, batch_ids).load(use_index=use_index)


class _Loading:
    def __init__(self, stored: StoredFiles, batch_ids: frozenset[str] | None) -> None:
        self._stored = stored
        self._wanted = batch_ids
        self._stretches = [stored.stretches(number) for number in range(len(stored.files))]
        self._names = [file.batch_id for file in stored.files]
        ids = sorted({batch_id for number in range(len(stored.files)) for batch_id in self._batch_ids(number)})
        self._numbers = {batch_id: number for number, batch_id in enumerate(ids)}
        self._sums: dict[int, FileSums] = {}
        self._indexed = range(0)

    def load(self, *, use_index: bool) -> Best:
        stored, record = self._stored, self._stored.record
        if use_index and self._wanted is None and record is not None:
            index = open_columns(stored.store, index_folder(stored.endpoint, stored.task_key), record)
            if index is not None:
                self._indexed = range(len(record.files))
                for number, file in enumerate(record.files):
                    self._sums[number] = FileSums(rows=file.rows, answered=file.answered, output_tokens=file.output_tokens)
                best = self._load_over(index, [number for number, file in enumerate(stored.files) if not file.is_covered])
                if best is not None:
                    return best
                folder = join_uri(stored.store.uri, index_folder(stored.endpoint, stored.task_key))
                log.warning("%s does not agree with the responses: they are read without it", folder)
        self._sums.clear()
        self._indexed = range(0)
        best = self._load_over(no_entries(), range(len(stored.files)))
        assert best is not None, "nothing contradicts an empty index"
        return best

    def _load_over(self, base: Entries, numbers: Iterable[int]) -> Best | None:
        """Return the best of an index and of files, None where a file contradicts the index."""
        held: list[Ranked] = []
        rows = 0
        for number in numbers:
            if rows >= GROUP_ROWS:
                base, held, rows = self._fold(self._compare(held, base)), [], 0
            part = self._read_file(number, base)
            if part is None:
                return None
            held.append(part)
            rows += len(part)
        return self._compare(held, base)

    def _compare(self, parts: list[Ranked], base: Entries) -> Best:
        fresh = keep_best(_concatenate(parts)) if parts else no_entries()
        # They are whole in memory once, and once more while they are joined.
        parts.clear()
        at, known = base.find_sorted(fresh.high, fresh.low)
        counts = ~known
        if known.any():
            counts[known] = self._is_better(fresh.take(known), base, at[known])
        if not counts.all():
            fresh, at, known = fresh.take(counts), at[counts], known[counts]
        base.release()
        return Best(base=base, fresh=fresh, fresh_at=np.where(known, at, -1), sums=self._sums)

    def _fold(self, best: Best) -> Entries:
        """Put what was found into a file that is gone with the last reference to it: millions of places are not kept in memory."""
        merge = plan_merge(best.base, best.fresh)
        files = len(self._stored.files)
        with self._stored.store.scratch() as scratch:
            file = scratch / "found.keys"
            write_columns(file, files, merge.pieces)
            return map_columns(file, len(merge), files) if len(merge) else no_entries()

    def _is_better(self, fresh: Ranked, base: Entries, at: Places) -> Mask:
        """Tell which responses count instead of those of the same keys in the index."""
        file, row, code = base.file[at].astype(np.int64), base.row[at].astype(np.int64), base.code[at]
        moved = (fresh.file != file) | (fresh.row != row)
        nothing = np.zeros(len(at), np.int64)
        class_of_base = rank_responses(code, nothing, nothing.astype(np.int32)) >> 62
        better: Mask = moved & (fresh.rank >> 62 > class_of_base)
        # The index does not keep when a response came: that is looked up where nothing else decides.
        equal = np.flatnonzero(moved & (fresh.rank >> 62 == class_of_base))
        if len(equal):
            paths = [file.path for file in self._stored.files]
            located = Located(file=file[equal], row=row[equal])
            found = ResponseReader(self._stored.store, paths).read(located, ["answered_at", "round"])
            ranks = rank_responses(code[equal], to_numpy(found["answered_at"].cast(pa.int64())), to_numpy(found["round"]))
            batches = self._batches_at(located)
            better[equal] = (fresh.rank[equal] > ranks) | ((fresh.rank[equal] == ranks) & (fresh.batch[equal] > batches))
        return better

    def _read_file(self, number: int, base: Entries) -> Ranked | None:
        """Return the rows of a file in their order, None where the index has others of it."""
        if self._wanted is not None and self._wanted.isdisjoint(self._batch_ids(number)):
            return no_entries()
        ranks = read_ranks(self._stored.store, self._stored.files[number].path)
        if not self._agrees(number, ranks, base):
            return None
        row = np.arange(len(ranks.codes), dtype=np.uint32)
        file = np.full(len(row), number, np.uint32)
        part = Ranked(
            high=ranks.keys[:, 0],
            low=ranks.keys[:, 1],
            row=row,
            file=file,
            code=ranks.codes,
            rank=rank_responses(ranks.codes, ranks.stamps, ranks.rounds),
            batch=self._batches_at(Located(file=file.astype(np.int64), row=row.astype(np.int64))),
        )
        if self._wanted is not None:
            wanted = np.array([self._numbers[batch_id] for batch_id in self._wanted if batch_id in self._numbers], np.int32)
            chosen = np.isin(part.batch, wanted)
            part, tokens = part.take(chosen), ranks.output_tokens[chosen]
        else:
            tokens = ranks.output_tokens
        usable = (part.code & OUTCOME_BITS) == CODES[Outcome.SUCCEEDED]
        self._sums[number] = FileSums(rows=len(part), answered=int(usable.sum()), output_tokens=int(tokens[usable].sum()))
        return part

    def _agrees(self, number: int, ranks: Ranks, base: Entries) -> bool:
        """Tell whether the rows of a file that was written again are where the index has them; raise RootError where some are gone."""
        indexed = np.flatnonzero(base.file == number) if number in self._indexed else ()
        if not len(indexed):
            return True
        row = np.minimum(base.row[indexed], max(len(ranks.codes) - 1, 0))
        if len(ranks.codes):
            same = (ranks.keys[row, 0] == base.high[indexed]) & (ranks.keys[row, 1] == base.low[indexed])
            if (same & (row == base.row[indexed]) & (ranks.codes[row] == base.code[indexed])).all():
                return True
        held = KeySet(len(ranks.codes))
        held.add(ranks.keys)
        missing = int((~held.contains(np.stack((base.high[indexed], base.low[indexed]), axis=1))).sum())
        if missing:
            stored = self._stored
            folder = join_uri(stored.store.uri, index_folder(stored.endpoint, stored.task_key))
            raise RootError(
                f"{join_uri(stored.store.uri, stored.files[number].path)} was written again without {missing:,} responses that are paid for. "
                f"Nothing was sent. Restore the file. If that was on purpose, delete {folder}, which is made again from the responses."
            )
        return False

    def _batch_ids(self, number: int) -> Iterator[str]:
        stretches = self._stretches[number]
        return iter((self._names[number],)) if stretches is None else (stretch.batch_id for stretch in stretches)

    def _batches_at(self, located: Located) -> npt.NDArray[np.int32]:
        """Return the number of the batch that each row came from."""
        batches = np.empty(len(located.file), np.int32)
        for number in distinct(located.file):
            mine = located.file == number
            stretches = self._stretches[number]
            if stretches is None:
                batches[mine] = self._numbers[self._names[number]]
            else:
                batches[mine] = _number_rows(stretches, self._numbers)[located.row[mine]]
        return batches


def _number_rows(stretches: Sequence[Stretch], numbers: dict[str, int]) -> npt.NDArray[np.int32]:
    return np.repeat(np.array([numbers[one.batch_id] for one in stretches], np.int32), [one.rows for one in stretches])


def _concatenate(parts: list[Ranked]) -> Ranked:
    return Ranked(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Ranked)})
