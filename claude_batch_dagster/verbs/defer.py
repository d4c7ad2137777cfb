"""Defer: a job is left to its batch runs, and taken up again when they are over, as if one invocation had waited."""

import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from claude_batch_dagster.core.errors import RunError
from claude_batch_dagster.core.records import AwaitedRun, DeferralRecord, DoneRecord, Intent, LogEntry, Owner, PlannedOutput
from claude_batch_dagster.storage.deferrals import (
    digest_deferral,
    digest_of,
    find_deferral,
    list_deferrals,
    name_deferral,
    number_of,
    read_deferral,
    remove_deferral,
    write_deferral,
    write_intent,
)
from claude_batch_dagster.storage.plans import done_numbers
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.endpoint import name_root
from claude_batch_dagster.verbs.execute import Watch
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.tally import Tally

MOST_COMPARED = 100
"""So many deferrals are read at most to see whether a publication covers them; one too many costs a run that publishes again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferring:
    """How a job may be left to its batch runs.

    Attributes:
        assets: Keys of what is published, each as its parts.
        wait_s: How long the job waits before it is deferred; None for as long as it takes.
        collects: Name of the deferral that this invocation was started to collect.
        op: Whose config is kept.
        config: Of the op, for the invocation that collects.
        snapshot: Names of the kept tables that are asked about, where the source is a function.
    """

    assets: tuple[tuple[str, ...], ...]
    wait_s: float | None = None
    collects: str | None = None
    op: str | None = None
    config: Mapping[str, Any] | None = None
    snapshot: str | None = None

    def digest(self, job: Job) -> str:
        """Return what names the job's outputs."""
        return digest_deferral(self.assets, job.partitions, job.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """A job that was deferred."""

    name: str
    record: DeferralRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """What came of deferring a job.

    Attributes:
        name: Of the deferral.
        open: The runs that it waits for.
    """

    name: str
    open: tuple[LogEntry, ...]


def take_up(store: Store, job: Job, deferring: Deferring) -> Deferral | None:
    """Return the deferral that an invocation goes on with, None where it begins.

    One of the same outputs is gone on with whoever started this, since its runs are this job's: what failed in them is published as it
    is and not asked again at once. Not where rows are asked again on purpose.
    """
    name = deferring.collects
    if name is None and not (job.ask_again or job.retry_failed):
        name = find_deferral(store, deferring.digest(job))
    record = read_deferral(store, name) if name is not None else None
    return None if name is None or record is None else Deferral(name=name, record=record)


def defer_job(
    store: Store,
    job: Job,
    deferring: Deferring,
    *,
    former: Deferral | None,
    own: Sequence[LogEntry],
    waits: Sequence[LogEntry],
    tallies: Mapping[tuple[str, str | None], Tally],
    began_at: datetime,
    plans: int,
    changes: int,
    is_intent: bool = False,
) -> Deferred:
    """Write the deferral of a job, before its runs are started (its intent) or when it leaves them.

    Args:
        store: The root.
        job: What is asked.
        deferring: By whom.
        former: What it went on with.
        own: The job's own runs, those that are over too.
        waits: The runs that are not over, own ones or others'.
        tallies: Of its first plan.
        began_at: When its first plan began.
        plans: How often it was planned.
        changes: How often its source had changed meanwhile.
        is_intent: It is about to start them, and waits itself.
    """
    digest = deferring.digest(job)
    if former is None and (name := find_deferral(store, digest)) is not None and (record := read_deferral(store, name)) is not None:
        former = Deferral(name=name, record=record)
    own_ids = {entry.run_id for entry in own} | {run.run_id for run in (former.record.runs if former else ()) if run.own}
    runs = {run.number: run for run in (former.record.runs if former else ()) if run.own}
    for entry in (*own, *waits):
        runs[entry.number] = AwaitedRun(number=entry.number, run_id=entry.run_id, own=entry.run_id in own_ids)
    # A question is asked about the run that names the deferral: an own one, where one is open.
    number = max((entry.number for entry in waits if entry.run_id in own_ids), default=max(entry.number for entry in waits))
    name = name_deferral(number, digest)
    record = DeferralRecord(
        deferred_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        began_at=began_at.isoformat(timespec="milliseconds"),
        dagster_run_id=job.dagster_run_id,
        assets=tuple(sorted(deferring.assets)),
        partitions=job.partitions,
        runs=tuple(runs[number] for number in sorted(runs)),
        planned=tuple(
            PlannedOutput(
                task=task,
                partition=partition,
                rows=tally.rows,
                asked=tally.asked,
                already_answered=tally.already_answered,
                in_flight=tally.in_flight,
            )
            for (task, partition), tally in tallies.items()
        ),
        plans=plans,
        changes=changes,
        limit=job.limit,
        replace=job.replace,
        max_cost_usd=job.max_cost_usd,
        op=deferring.op,
        config=None if deferring.config is None else dict(deferring.config),
        snapshot=deferring.snapshot,
        intent=_intend(job, deferring) if is_intent else None,
    )
    if is_intent:
        write_intent(store, name, record)
        return Deferred(name=name, open=tuple(waits))
    write_deferral(store, name, record)
    if former is not None and digest_of(former.name) != digest:
        remove_deferral(store, former.name)
    return Deferred(name=name, open=tuple(waits))


def _intend(job: Job, deferring: Deferring) -> Intent:
    leaves_at = datetime.now(UTC) + timedelta(seconds=deferring.wait_s or 0)
    owner = Owner(host=socket.gethostname(), pid=os.getpid(), dagster_run_id=job.dagster_run_id)
    return Intent(owner=owner, leaves_at=leaves_at.isoformat(timespec="milliseconds"))


def was_never_started(former: Deferral, entry: LogEntry, done: DoneRecord) -> bool:
    """Tell whether a job that is gone on with was killed before it could start a run of its own: that one was settled, and asked nothing."""
    is_its_own = any(run.run_id == entry.run_id for run in former.record.runs)
    return is_its_own and former.record.intent is not None and done.outcome == "finished" and done.batches == 0


def forget_run(former: Deferral, entry: LogEntry) -> Deferral:
    """Return a deferral without a run that has asked nothing."""
    runs = tuple(run for run in former.record.runs if run.run_id != entry.run_id)
    return Deferral(name=former.name, record=msgspec.structs.replace(former.record, runs=runs))


def refuse_question(watch: Watch) -> None:
    """Raise RunError where a run waits for a person: nobody reads the log of an invocation that ends well."""
    for run in watch.open:
        if run.question is not None:
            raise RunError(
                f"Batch run {run.entry.label} waits for an answer: {name_root(run.question, watch.store.uri)} Nothing is lost, and nothing "
                "was published yet. Answer it: once the run is over, a further run publishes.",
                run=run.entry.label,
                question=run.question,
            )


def read_tallies(planned: Iterable[PlannedOutput]) -> dict[tuple[str, str | None], Tally]:
    """Return what a deferred job's first plan counted."""
    return {
        (one.task, one.partition): Tally(rows=one.rows, asked=one.asked, already_answered=one.already_answered, in_flight=one.in_flight)
        for one in planned
    }


def find_ended(store: Store, job: Job, deferring: Deferring) -> list[Deferral]:
    """Return the deferrals that a publication of this job's outputs may make needless: before it, since a run that ends later is not in it."""
    names = list_deferrals(store)
    if not names:
        return []
    done = done_numbers(store)
    digest = deferring.digest(job)
    likely = sorted((name for name in names if number_of(name) in done), key=lambda name: digest_of(name) != digest)
    read = [(name, read_deferral(store, name)) for name in likely[:MOST_COMPARED]]
    return [
        Deferral(name=name, record=record) for name, record in read if record is not None and all(run.number in done for run in record.runs)
    ]


def remove_needless(store: Store, ended: Sequence[Deferral], job: Job, deferring: Deferring, published: Collection[str | None]) -> None:
    """Remove the deferrals whose outputs were just published.

    Args:
        store: The root.
        ended: As `find_ended` returned them before the answers were read.
        job: What was published, in the whole or to its limit.
        deferring: Its assets.
        published: Its partitions that were.
    """

    def is_needless(record: DeferralRecord) -> bool:
        wanted = (None,) if record.partitions is None else record.partitions
        has_rows = job.limit is None or job.limit == record.limit
        return has_rows and set(record.assets) <= set(deferring.assets) and set(wanted) <= set(published)

    remove_deferral(store, *(deferral.name for deferral in ended if is_needless(deferral.record)))
