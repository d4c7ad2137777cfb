"""What a plan subtracts from the requests it wants: what is seen already, in flight, answered for good, or concluded by its own run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import Keys, KeySet, Mask, read_owned_keys
from claude_batch_dagster.storage.plans import LogSnapshot
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What became of some rows' requests; each request counts once, at its first row.

    Attributes:
        asked: Rows whose request the plan will own.
        in_flight: Distinct requests that another open run owns.
        answered: Distinct requests that are not asked again.
        holders: Numbers of the open runs that own any of them.
    """

    asked: Mask
    in_flight: int
    answered: int
    holders: frozenset[int]


@dataclass(slots=True, kw_only=True)
class Subtraction:
    """What one task's requests are compared with.

    Attributes:
        retry_failed: Whether a failure for good counts as unanswered.
        in_flight: Requests of open runs, by the run's number.
        concluded: Requests that own runs of this invocation concluded.
        again: Requests that are asked again though they are answered.
        waited: Requests of runs that this invocation waited for: what they answered is as new as can be.
        seen: Requests that an earlier row had.
    """

    answers: Answers
    retry_failed: bool
    in_flight: dict[int, KeySet] = field(default_factory=dict)
    concluded: KeySet = field(default_factory=KeySet)
    again: KeySet = field(default_factory=KeySet)
    waited: KeySet = field(default_factory=KeySet)
    seen: KeySet = field(default_factory=KeySet)

    def split(self, keys: Keys) -> Split:
        """Tell which rows' requests are to be asked."""
        new = self.seen.add(keys)
        wanted = keys[new]
        in_flight = np.zeros(len(wanted), np.bool_)
        holders = set()
        for number, held in self.in_flight.items():
            mine = held.contains(wanted)
            if mine.any():
                holders.add(number)
            in_flight |= mine
        overridden = self.again.contains(wanted)
        if self.retry_failed:
            overridden |= self.answers.failed(wanted)
        final = self.answers.final(wanted) & ~(overridden & ~self.waited.contains(wanted))
        answered = ~in_flight & (final | self.concluded.contains(wanted))
        asked = np.zeros(len(keys), np.bool_)
        asked[np.flatnonzero(new)[~in_flight & ~answered]] = True
        return Split(asked=asked, in_flight=int(in_flight.sum()), answered=int(answered.sum()), holders=frozenset(holders))


def read_subtractions(
    store: Store, job: Job, snapshot: LogSnapshot, *, rows: int, concluded_runs: Sequence[str], waited_runs: Sequence[str]
) -> dict[str, Subtraction]:
    """Return what each task's requests are compared with, by task_key.

    Args:
        store: The root.
        job: What is asked.
        snapshot: The plan log, read before this: the answers are read now.
        rows: How many may come, a request each at most.
        concluded_runs: Own runs of this invocation.
        waited_runs: Others' runs that this invocation waited for.
    """
    found = {
        target.task.task_key: Subtraction(
            answers=Answers(store, job.endpoint, target.task.task_key), retry_failed=job.retry_failed, seen=KeySet(rows)
        )
        for target in job.targets
    }
    for entry in snapshot.open:
        _add_open_run(store, entry, found)
    for run_id in (*concluded_runs, *waited_runs):
        for task_key, keys in read_owned_keys(store, run_id):
            if task_key in found:
                (found[task_key].concluded if run_id in concluded_runs else found[task_key].waited).add(keys)
    return found


def _add_open_run(store: Store, entry: LogEntry, found: dict[str, Subtraction]) -> None:
    for task_key, keys in read_owned_keys(store, entry.run_id):
        if task_key in found:
            found[task_key].in_flight.setdefault(entry.number, KeySet(entry.keys.count)).add(keys)
