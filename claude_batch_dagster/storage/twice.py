"""Which requests have two usable answers, by the batches that they are in."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.storage.keys import Keys, keys_from_arrow, pack_keys
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import Piece, find_batches, list_task_keys, read_once


def count_answered_twice(store: Store, endpoint: str) -> dict[tuple[str, str], int]:
    """Return how many requests of one task succeeded in both batches of a pair; only keys are in memory, one task's at a time."""
    found: dict[tuple[str, str], int] = {}
    for task_key in list_task_keys(store, endpoint):
        pieces_of = find_batches(store, endpoint, task_key)
        names = sorted(pieces_of)
        keys, batches = _read_answered(store, [pieces_of[name] for name in names])
        order = np.lexsort((batches, keys[:, 1], keys[:, 0]))
        keys, batches = keys[order], batches[order]
        again = (keys[1:] == keys[:-1]).all(axis=1) & (batches[1:] != batches[:-1])
        pairs, counts = np.unique(np.stack((batches[:-1][again], batches[1:][again]), axis=1), axis=0, return_counts=True)
        for (first, second), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            pair = (names[first], names[second])
            found[pair] = found.get(pair, 0) + count
    return found


def _read_answered(store: Store, pieces_of: Sequence[Sequence[Piece]]) -> tuple[Keys, npt.NDArray[np.int32]]:
    keys: list[Keys] = [pack_keys([])]
    batches: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    for number, pieces in enumerate(pieces_of):
        for table in read_once(store, pieces, ["request_key", "outcome"]):
            usable = table.filter(pc.equal(table["outcome"], Outcome.SUCCEEDED.value))
            keys.append(keys_from_arrow(usable["request_key"]))
            batches.append(np.full(usable.num_rows, number, np.int32))
    return np.concatenate(keys), np.concatenate(batches)
