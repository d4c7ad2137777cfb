"""What a run has paid for, from its records: also of a run that failed, was interrupted, or still goes on."""

from collections import Counter
from dataclasses import dataclass

import pyarrow.compute as pc

from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.storage.plans import batch_ids, list_submissions, read_done
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import read_batches
from claude_batch_dagster.storage.tries import list_tried

TOKENS = ("input", "output", "cache_read", "cache_write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """What was answered and paid for by now.

    Attributes:
        batches: Created.
        tokens: `input`, `output`, `cache_read`, `cache_write`.
        cost_nano_usd: None where a model has no price.
    """

    batches: int
    tokens: dict[str, int]
    cost_nano_usd: int | None


def read_paid(root: str, entry: LogEntry) -> Paid:
    """Return what a run has paid for: from its report where it is over, else from the answers that were collected."""
    store = Store(root)
    if (done := read_done(store, entry.number)) is not None:
        tokens = {name: sum(getattr(line, f"{name}_tokens") for line in done.usage) for name in TOKENS}
        return Paid(batches=done.batches, tokens=tokens, cost_nano_usd=done.cost_nano_usd)
    found = batch_ids(list_submissions(store, entry.run_id))
    sums: Counter[str] = Counter()
    priced = True
    for tried in list_tried(store, entry.run_id, [task.task_key for task in entry.tasks]).values():
        if tried.usage is not None:
            sums.update({f"{name}_tokens": getattr(tried.usage, f"{name}_tokens") for name in TOKENS})
            sums["cost_nano_usd"] += tried.usage.cost_nano_usd or 0
            priced = priced and tried.usage.cost_nano_usd is not None
    columns = [*(f"{name}_tokens" for name in TOKENS), "cost_nano_usd"]
    for table in (table for task in entry.tasks for table in read_batches(store, entry.endpoint, task.task_key, found, columns)):
        sums.update({name: pc.sum(table[name]).as_py() or 0 for name in table.column_names})
        priced = priced and not table["cost_nano_usd"].null_count
    return Paid(
        batches=len(found),
        tokens={name: sums[f"{name}_tokens"] for name in TOKENS},
        cost_nano_usd=sums["cost_nano_usd"] if priced else None,
    )
