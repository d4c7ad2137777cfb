"""Which requests have two usable answers, by the batches that they are in."""

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.storage.keys import Keys, keys_from_arrow, pack_keys
from claude_batch_dagster.storage.store import Store


def count_answered_twice(store: Store, endpoint: str) -> dict[tuple[str, str], int]:
    """Return how many requests of one task succeeded in both batches of a pair; only keys are in memory, one task's at a time."""
    tasks: dict[str, list[str]] = {}
    for path in store.list(f"responses/{endpoint}"):
        if path.endswith(".parquet"):
            tasks.setdefault(path.split("/")[2], []).append(path)
    found: dict[tuple[str, str], int] = {}
    for paths in tasks.values():
        names = [path.rpartition("/")[2].removesuffix(".parquet") for path in paths]
        keys, files = _read_answered(store, paths)
        order = np.lexsort((files, keys[:, 1], keys[:, 0]))
        keys, files = keys[order], files[order]
        again = (keys[1:] == keys[:-1]).all(axis=1) & (files[1:] != files[:-1])
        pairs, counts = np.unique(np.stack((files[:-1][again], files[1:][again]), axis=1), axis=0, return_counts=True)
        for (first, second), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            pair = (names[first], names[second])
            found[pair] = found.get(pair, 0) + count
    return found


def _read_answered(store: Store, paths: list[str]) -> tuple[Keys, npt.NDArray[np.int32]]:
    keys: list[Keys] = [pack_keys([])]
    files: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    for number, path in enumerate(paths):
        table = pq.read_table(store.open(path), columns=["request_key", "outcome"])
        usable = table.filter(pc.equal(table["outcome"], Outcome.SUCCEEDED.value))
        keys.append(keys_from_arrow(usable["request_key"]))
        files.append(np.full(usable.num_rows, number, np.int32))
    return np.concatenate(keys), np.concatenate(files)
