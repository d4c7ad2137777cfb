"""Batches that nobody collected and whose results the vendor soon has no more."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from claude_batch_dagster.core.recovery_contract import RESULTS_KEPT
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.storage.plans import list_submissions, read_log
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.endpoint import root_options

WARN_AFTER = timedelta(days=25)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingBatch:
    """A batch of an open run that is not collected, over 25 days after its creation."""

    run: str
    batch_id: str
    created_at: datetime

    @property
    def readable_until(self) -> datetime:
        """When its results go."""
        return self.created_at + RESULTS_KEPT


def find_aging(store: Store, now: datetime | None = None) -> list[AgingBatch]:
    """Return the batches whose results go within four days or went already, the oldest first.

    Args:
        now: Aware; None for this machine's clock.
    """
    oldest = (now or datetime.now(UTC)) - WARN_AFTER
    found = []
    for entry in read_log(store).open:
        # A batch is younger than its plan.
        if datetime.fromisoformat(entry.admitted_at) > oldest:
            continue
        for records in list_submissions(store, entry.run_id).values():
            tip = records[-1]
            if isinstance(tip, Accepted) and (created_at := datetime.fromisoformat(tip.created_at)) <= oldest:
                found.append(AgingBatch(run=entry.label, batch_id=tip.id, created_at=created_at))
    return sorted(found, key=lambda one: one.created_at)


def warn_of_aging(store: Store, now: datetime | None = None) -> list[str]:
    """Return a sentence a run whose paid answers are about to be lost, with what to do.

    Args:
        now: Aware; None for this machine's clock.
    """
    now = now or datetime.now(UTC)
    by_run: dict[str, list[AgingBatch]] = {}
    for one in find_aging(store, now):
        by_run.setdefault(one.run, []).append(one)
    return [_warn(store.uri, run, batches, now) for run, batches in by_run.items()]


def _warn(root: str, run: str, batches: list[AgingBatch], now: datetime) -> str:
    first = batches[0]
    what = f"batch {first.batch_id} is" if len(batches) == 1 else f"{len(batches):,} batches are"
    left = first.readable_until - now
    when = (
        f"that ends in {_days(left)}, on {first.readable_until:%Y-%m-%d}"
        if left > timedelta()
        else f"it was over on {first.readable_until:%Y-%m-%d}"
    )
    return (
        f"Batch run {run}: {what} not collected, {_days(now - first.created_at)} after creation. Results can be read for 29 days: {when}. "
        f"They are paid for. Start a worker with the key and type the run's command again; see claude-batch status {run} {root_options(root)}"
    )


def _days(span: timedelta) -> str:
    days = math.floor(span / timedelta(days=1))
    return "less than a day" if days < 1 else f"{days} day{'' if days == 1 else 's'}"
