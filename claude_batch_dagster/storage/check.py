"""Checks the index of a task against its responses, every row of them, and makes it again where it is wrong."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from claude_batch_dagster.storage.best import Best, load_best
from claude_batch_dagster.storage.compaction import LIMITS, write_index
from claude_batch_dagster.storage.entries import plan_merge
from claude_batch_dagster.storage.index import index_folder, open_columns
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import read_stored_files


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCheck:
    """What was found.

    Attributes:
        keys: Requests that have a response.
        rows: Responses that were read.
        wrong: Requests of which the index said something else; all of them where it was damaged.
    """

    keys: int
    rows: int
    wrong: int


def check_index(store: Store, endpoint: str, task_key: str) -> IndexCheck | None:
    """Compare an index with what the response files hold, and write the next generation where it is wrong. None where there is no index.

    Raises:
        RootError: Terminal. Response files are gone, or the index is of a newer version.
    """
    stored = read_stored_files(store, endpoint, task_key)
    if not stored.newest.generation:
        return None
    truth = load_best(stored, use_index=False)
    record = stored.record
    index = open_columns(store, index_folder(endpoint, task_key), record) if record is not None else None
    keys, rows = len(truth), sum(sums.rows for sums in truth.sums.values())
    wrong = keys if index is None else _count_wrong(load_best(stored), truth)
    if wrong or index is None:
        write_index(stored, truth, now=datetime.now(UTC), limits=LIMITS)
    return IndexCheck(keys=keys, rows=rows, wrong=wrong)


def _count_wrong(told: Best, truth: Best) -> int:
    found, right = (plan_merge(best.base, best.fresh).entries() for best in (told, truth))
    at, known = right.find_sorted(found.high, found.low)
    same = np.zeros(len(found), np.bool_)
    at = at[known]
    # Of equal responses in two places either is right.
    same[known] = found.code[known] == right.code[at]
    return int((~same).sum()) + len(right) - len(at)
