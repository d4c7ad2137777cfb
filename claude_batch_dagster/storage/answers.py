"""The best response of every key of one task: the index of the store, and over it what the index does not cover yet."""

from collections.abc import Callable, Collection, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.outcome import Outcome, raise_max_tokens
from claude_batch_dagster.storage.best import load_best
from claude_batch_dagster.storage.entries import Column, Places
from claude_batch_dagster.storage.index import index_folder
from claude_batch_dagster.storage.keys import Keys, Mask, keys_from_arrow
from claude_batch_dagster.storage.reader import Located, ResponseReader
from claude_batch_dagster.storage.responses import ANSWER_SCHEMA, CODES, FINAL, OUTCOME_BITS, OUTCOMES, RETRYABLE
from claude_batch_dagster.storage.store import Store, join_uri
from claude_batch_dagster.storage.stored import StoredFiles, read_stored_files

_FAILURE_CODES = np.array([CODES[outcome] for outcome in (Outcome.TRUNCATED, Outcome.INVALID, Outcome.ERRORED)], np.uint8)

_REPEATED_CODES = np.array([CODES[outcome] for outcome in (Outcome.TRUNCATED, Outcome.INVALID, Outcome.EXPIRED)], np.uint8)
_FAILED_CODE = CODES[Outcome.ERRORED]
"""Without FINAL: with it, no run asks again."""


class Answers:
    """The best response of every key of one task, as the store is now: the index stays in its file, the rows in theirs.

    Args:
        store: The root.
        endpoint: Whose answers.
        task_key: To which task.
        batch_ids: Only what these batches answered, None for all.
        stored: The task's files where they were listed already, for who opens one batch after another.

    Raises:
        RootError: Terminal. Response files are gone, or the index is of a newer version.
    """

    def __init__(
        self,
        store: Store,
        endpoint: str,
        task_key: str,
        *,
        batch_ids: Collection[str] | None = None,
        stored: StoredFiles | None = None,
    ) -> None:
        stored = stored or read_stored_files(store, endpoint, task_key)
        loaded = load_best(stored, batch_ids=None if batch_ids is None else frozenset(batch_ids))
        self._stored = stored
        self._base, self._fresh, self._fresh_at = loaded.base, loaded.fresh, loaded.fresh_at
        self._count = len(loaded)
        self._answered = sum(sums.answered for sums in loaded.sums.values())
        self._output_tokens = sum(sums.output_tokens for sums in loaded.sums.values())
        self._reader = ResponseReader(store, [file.path for file in stored.files])

    def __len__(self) -> int:
        return self._count

    @property
    def mean_output_tokens(self) -> float | None:
        """The mean output of an answer so far, None where there is none."""
        return self._output_tokens / self._answered if self._answered else None

    def find(self, keys: Keys) -> Places:
        """Return the place of each key's best response, -1 for none."""
        found = self._base.find(keys)
        if len(self._fresh):
            fresh = self._fresh.find(keys)
            found = np.where(fresh >= 0, fresh + len(self._base), found)
        return found

    def locate(self, places: Places) -> Located:
        """Tell in which file and row responses are: those near to each other are cheap to fetch together."""
        return Located(file=self._gather("file", places).astype(np.int64), row=self._gather("row", places).astype(np.int64))

    def release(self) -> None:
        """Give back the memory of what was read of the index."""
        self._base.release()

    def final(self, keys: Keys) -> Mask:
        """Tell which keys have a response that is not asked for again."""
        return self._match(keys, lambda codes: _is_final(codes))

    def failed(self, keys: Keys) -> Mask:
        """Tell which keys have a response that is a failure for good: truncated, invalid or errored."""
        return self._match(keys, lambda codes: (_is_final(codes)) & np.isin(codes & OUTCOME_BITS, _FAILURE_CODES))

    def ended_as(self, keys: Keys, outcome: Outcome) -> Mask:
        """Tell which keys have this outcome as their best response's."""
        return self._match(keys, lambda codes: (codes & OUTCOME_BITS) == CODES[outcome])

    def repeatable(self) -> Keys:
        """Return the keys whose response is one after which a run may ask them again; all that it does ask again are among them."""
        base, fresh = _is_repeatable(self._base.code), _is_repeatable(self._fresh.code)
        base[self._fresh_at[self._fresh_at >= 0]] = False
        found = [(entries.high[chosen], entries.low[chosen]) for entries, chosen in ((self._base, base), (self._fresh, fresh))]
        return np.stack([np.concatenate(halves) for halves in zip(*found, strict=True)], axis=1)

    def raised_caps(self, keys: Keys) -> dict[int, int]:
        """Return the `max_tokens` of the round that a cut answer's run granted and did not open, by the place of its key among these."""
        places = self.find(keys)
        cut = np.flatnonzero(places >= 0)
        codes = self._gather("code", places[cut])
        cut = cut[((codes & OUTCOME_BITS) == CODES[Outcome.TRUNCATED]) & ~_is_final(codes)]
        if not len(cut):
            return {}
        caps = self.fetch(places[cut])["max_tokens"].to_pylist()
        return {row: raise_max_tokens(cap, None) or cap for row, cap in zip(cut.tolist(), caps, strict=True)}

    def count_outcomes(self, keys: Keys) -> dict[str, int]:
        """Count keys by the outcome of their best response, `pending` for none."""
        places = self.find(keys)
        counts = np.bincount(self._outcomes_at(places[places >= 0]), minlength=len(OUTCOMES))
        return {outcome: int(count) for outcome, count in zip(OUTCOMES, counts, strict=True)} | {
            Outcome.PENDING.value: int((places < 0).sum())
        }

    def outcomes(self, keys: Keys) -> Iterator[tuple[str | None, str | None]]:
        """Yield the outcome and the error of each key's best response, (None, None) where there is none."""
        places = self.find(keys)
        answered = places[places >= 0]
        codes = self._outcomes_at(answered)
        outcomes = iter(codes.tolist())
        # A success has no error: its row need not be read.
        failed = codes != CODES[Outcome.SUCCEEDED]
        errors = iter(self.read(self.locate(answered[failed]), keys[places >= 0][failed], ["error"])["error"].to_pylist())
        for place in places:
            outcome = OUTCOMES[next(outcomes)] if place >= 0 else None
            yield outcome, None if outcome in (None, Outcome.SUCCEEDED) else next(errors)

    def fetch(self, places: Places) -> pa.Table:
        """Read responses by place, in the order given.

        Raises:
            RootError: Terminal. A file is gone, or is not what the index says.
        """
        keys = np.stack([self._gather("high", places), self._gather("low", places)], axis=1)
        return self.read(self.locate(places), keys)

    def read(self, located: Located, keys: Keys, columns: list[str] | None = None) -> pa.Table:
        """Read the responses to some keys from where they were located, in the order given.

        Args:
            located: Where they are.
            keys: Whose responses they are.
            columns: These and the key only, for who comes to each row group once: none is kept in memory. None for all.

        Raises:
            RootError: Terminal. A file is gone, or is not what the index says.
        """
        if not len(keys):
            return ANSWER_SCHEMA.empty_table()
        table = self._reader.read(located, None if columns is None else ["request_key", *columns])
        wrong = (keys_from_arrow(table["request_key"]) != keys).any(axis=1)
        if wrong.any():
            folder = index_folder(self._stored.endpoint, self._stored.task_key)
            raise RootError(
                f"{int(wrong.sum()):,} of {len(keys):,} responses are not where {join_uri(self._stored.store.uri, folder)} says: response files were "
                "changed. Nothing was sent. Delete that folder, which is made again from the responses, and run again."
            )
        return table

    def _match(self, keys: Keys, test: Callable[[npt.NDArray[np.uint8]], Mask]) -> Mask:
        places = self.find(keys)
        found = places >= 0
        found[found] = test(self._gather("code", places[found]))
        return found

    def _outcomes_at(self, places: Places) -> npt.NDArray[np.uint8]:
        codes: npt.NDArray[np.uint8] = self._gather("code", places) & np.uint8(OUTCOME_BITS)
        return codes

    def _gather(self, column: str, places: Places) -> Column:
        base: Column = getattr(self._base, column)
        fresh: Column = getattr(self._fresh, column)
        if not len(self._fresh):
            return base[places]
        is_fresh = places >= len(base)
        values = np.empty(len(places), fresh.dtype)
        values[~is_fresh] = base[places[~is_fresh]]
        values[is_fresh] = fresh[places[is_fresh] - len(base)]
        return values


def _is_final(codes: npt.NDArray[np.uint8]) -> Mask:
    return np.asarray((codes & (FINAL | RETRYABLE)) == FINAL, np.bool_)


def _is_repeatable(codes: npt.NDArray[np.uint8]) -> Mask:
    return np.asarray(np.isin(codes & OUTCOME_BITS, _REPEATED_CODES) | (codes & (OUTCOME_BITS | FINAL) == _FAILED_CODE), np.bool_)
