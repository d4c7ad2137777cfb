"""Places of responses as arrays that are sorted by key: millions of them are searched and merged without a Python object for any.

Which response of a key counts: a usable one first, then a final one, then the latest, then that of the highest round, then batch id.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.storage.keys import Keys, Mask
from claude_batch_dagster.storage.responses import CODES, FINAL, OUTCOME_BITS

STAMP_BITS = 52
ROUND_BITS = 10
FOUND_AT_ONCE = 1 << 17
MERGED_AT_ONCE = 1 << 20
GUESSED_FROM = 1 << 17
SPARSE = 256
"""In at least so many entries, and so many for each key that is looked for, a place is guessed first."""

Places = npt.NDArray[np.int64]
Column = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Places of responses, sorted by key, each key once.

    Attributes:
        high: The first half of each key, as in Keys.
        row: In its file.
        file: A number, of which the owner knows the file.
        code: A place in OUTCOMES, with FINAL and RETRYABLE.
    """

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    row: npt.NDArray[np.uint32]
    file: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    code: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.high)

    def find(self, keys: Keys) -> Places:
        """Return the place of each key, -1 for none."""
        if not len(self):
            return np.full(len(keys), -1, np.int64)
        # Probes that go up pass over an array of any size once.
        order = np.argsort(keys[:, 0])
        high, low = keys[order, 0], keys[order, 1]
        at, known = self.find_sorted(high, low)
        found = np.empty(len(keys), np.int64)
        found[order] = np.where(known, at, -1)
        return found

    def find_sorted(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> tuple[Places, Mask]:
        """Return the place of the first entry that is not less than each key, and whether it is that key's; keys go up by their first half."""
        if len(high) <= FOUND_AT_ONCE:
            return self._find_some(high, low)
        parts = []
        for start in range(0, len(high), FOUND_AT_ONCE):
            some = slice(start, start + FOUND_AT_ONCE)
            parts.append(self._find_some(high[some], low[some]))
            # Such keys lie near to each other: less of a file than all of it is in memory.
            self.release()
        return np.concatenate([at for at, _ in parts]), np.concatenate([known for _, known in parts])

    def release(self) -> None:
        """Give back the memory of what was read of a file of entries; it is read again where it is needed."""
        owner: object = self.high.base
        mapped = owner.obj if isinstance(owner, memoryview) else owner
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)

    def _find_some(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> tuple[Places, Mask]:
        at = _search(self.high, high)
        known = np.zeros(len(at), np.bool_)
        pending = np.flatnonzero(at < len(self))
        while len(pending):
            pending = pending[self.high[at[pending]] == high[pending]]
            near = self.low[at[pending]]
            known[pending[near == low[pending]]] = True
            pending = pending[near < low[pending]]
            at[pending] += 1
            pending = pending[at[pending] < len(self)]
        return at, known


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked(Entries):
    """Entries with what decides between two of the same key.

    Attributes:
        rank: The higher one counts.
        batch: A number, higher for a later batch id: decides where the ranks are the same.
    """

    rank: npt.NDArray[np.uint64]
    batch: npt.NDArray[np.int32]

    def take(self, places: Places | Mask) -> "Ranked":
        """Return some of the entries."""
        return Ranked(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


def _search(words: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> Places:
    """Return the place of the first word that is not less than each wanted one, as `np.searchsorted` does."""
    if len(words) < GUESSED_FROM or len(wanted) * SPARSE > len(words):
        return np.searchsorted(words, wanted)
    # Keys are hashes, so their value tells about where they are: halving the whole for few of them would read memory all over it.
    reach = 4 * isqrt(len(words))
    guess = (wanted * (len(words) / 2.0**64)).astype(np.int64)
    low, high = np.maximum(guess - reach, 0), np.minimum(guess + reach, len(words) - 1)
    inside = (words[low] < wanted) & (words[high] >= wanted)
    while (low < high).any():
        middle = (low + high) >> 1
        less = words[middle] < wanted
        low, high = np.where(less, middle + 1, low), np.where(less, high, middle)
    if not inside.all():
        low[~inside] = np.searchsorted(words, wanted[~inside])
    return low


def no_entries() -> Ranked:
    """Return the entries of an empty store."""
    empty = np.empty(0, np.uint64)
    return Ranked(
        high=empty,
        low=empty,
        row=empty.astype(np.uint32),
        file=empty.astype(np.uint32),
        code=empty.astype(np.uint8),
        rank=empty,
        batch=empty.astype(np.int32),
    )


def rank_responses(codes: npt.NDArray[np.uint8], stamps: npt.NDArray[np.int64], rounds: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """Return a number a response, the higher the better."""
    usable = (codes & OUTCOME_BITS) == CODES[Outcome.SUCCEEDED]
    final = (codes & FINAL) != 0
    age = np.clip(stamps, 0, (1 << STAMP_BITS) - 1).astype(np.uint64)
    number = np.clip(rounds, 0, (1 << ROUND_BITS) - 1).astype(np.uint64)
    ranks: npt.NDArray[np.uint64] = (usable.astype(np.uint64) << 63) | (final.astype(np.uint64) << 62) | (age << ROUND_BITS) | number
    return ranks


def keep_best(rows: Ranked) -> Ranked:
    """Return the best response of each key, sorted by key, of rows in any order."""
    order = np.argsort(rows.high)
    high = rows.high[order]
    same = np.flatnonzero(high[1:] == high[:-1])
    if not len(same):
        return rows.take(order)
    # Few keys have two responses: only these are compared.
    double = np.union1d(same, same + 1)
    some = order[double]
    some = some[np.lexsort((rows.row[some], rows.batch[some], rows.rank[some], rows.low[some], rows.high[some]))]
    order[double] = some
    last = np.ones(len(order), np.bool_)
    last[double[:-1]] = (rows.high[some[1:]] != rows.high[some[:-1]]) | (rows.low[some[1:]] != rows.low[some[:-1]])
    return rows.take(order[last])


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """How new entries come between old ones; of a key that both have, the new one counts.

    Attributes:
        old: Those that are there.
        new: Those that come.
        added: Places of the new entries whose key is new.
        added_at: Where they come to stand.
        replacing: Places of the other new entries.
        replaced_at: Where they come to stand.
        kept: Of the merged entries, which come from the old ones or replace one.
    """

    old: Entries
    new: Entries
    added: Places
    added_at: Places
    replacing: Places
    replaced_at: Places
    kept: Mask

    def __len__(self) -> int:
        return len(self.kept)

    def pieces(self, name: str, dtype: npt.DTypeLike) -> Iterator[Column]:
        """Yield one column of the merged entries, some at a time: of the old ones no more is in memory."""
        old, new = getattr(self.old, name), getattr(self.new, name)
        taken = 0
        for start in range(0, len(self), MERGED_AT_ONCE):
            kept = self.kept[start : start + MERGED_AT_ONCE]
            stop = taken + int(np.count_nonzero(kept))
            piece = np.empty(len(kept), dtype)
            piece[kept] = old[taken:stop]
            for places, at in ((self.added, self.added_at), (self.replacing, self.replaced_at)):
                some = slice(*np.searchsorted(at, (start, start + len(kept))))
                piece[at[some] - start] = new[places[some]]
            taken = stop
            self.old.release()
            yield piece

    def entries(self) -> Entries:
        """Return the merged entries, all in memory."""
        columns = {field.name: getattr(self.new, field.name) for field in fields(Entries)}
        return Entries(**{name: np.concatenate([new[:0], *self.pieces(name, new.dtype)]) for name, new in columns.items()})


def plan_merge(old: Entries, new: Entries) -> Merge:
    """Return how to merge entries."""
    at, known = old.find_sorted(new.high, new.low)
    before = at[~known]
    added_at = before + np.arange(len(before))
    kept = np.ones(len(old) + len(before), np.bool_)
    kept[added_at] = False
    return Merge(
        old=old,
        new=new,
        added=np.flatnonzero(~known),
        added_at=added_at,
        replacing=np.flatnonzero(known),
        replaced_at=at[known] + np.searchsorted(before, at[known], side="right"),
        kept=kept,
    )
