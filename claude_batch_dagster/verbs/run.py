"""The verbs in order: plan, admit, execute, publish, again for what others gave up. What every face calls."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from temporalio.service import RPCError

from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.errors import ClaudeBatchError, CostError, RunError, TemporalUnavailableError, UsageError
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.deferrals import remove_deferral, withdraw_intent
from claude_batch_dagster.storage.plans import batch_ids, find_entry, list_submissions, read_done, read_entry
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs import execute
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.aging import warn_of_aging
from claude_batch_dagster.verbs.cap import check_cap
from claude_batch_dagster.verbs.connection import Connection, connect
from claude_batch_dagster.verbs.defer import (
    Deferral,
    Deferred,
    Deferring,
    defer_job,
    find_ended,
    forget_run,
    read_tallies,
    refuse_question,
    remove_needless,
    take_up,
    was_never_started,
)
from claude_batch_dagster.verbs.execute import LOOK_EVERY_S, Watch, check_end, describe_waiting, open_watch, start_run
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.lost_root import find_orphans, refuse_lost_root
from claude_batch_dagster.verbs.plan import Plan, plan_job
from claude_batch_dagster.verbs.progress import JobProgress, OnProgress
from claude_batch_dagster.verbs.publish import PublishedOutput, publish_job
from claude_batch_dagster.verbs.result import JobResult, describe_result
from claude_batch_dagster.verbs.tally import Tally
from claude_batch_dagster.verbs.upkeep import keep_up_answers
from claude_batch_dagster.verbs.writable import check_writable

MAX_PLANS = 5
MAX_CHANGES = 3
"""So often a source that changed while it was asked about is planned again."""
START_TRIES = 10
START_EVERY_S = 3.0
PROGRESS_EVERY_S = 1.0


def run_job(
    job: Job,
    connection: Connection,
    on_progress: OnProgress | None = None,
    *,
    detach: bool = False,
    confirm: Callable[[Plan], bool] | None = None,
    on_admitted: Callable[[LogEntry], None] | None = None,
    deferring: Deferring | None = None,
) -> JobResult:
    """Plan, admit, execute and publish a job.

    An interruption passes through and cancels nothing: the run goes on, and the next invocation waits for it.

    Args:
        job: What is asked.
        connection: Where Temporal is.
        on_progress: Called whenever something changed.
        detach: Return once the run is started; nothing is published.
        confirm: Asked before a plan with new requests is admitted; False ends the job.
        on_admitted: Called with the own run as soon as its keys are its own.
        deferring: How the job may be left to its runs; a deferral of the same outputs is gone on with. None for never.

    Raises:
        ClaudeBatchError: Terminal or Transient, see the verbs. RunError: the own run failed; nothing was written.
    """
    return _Runner(job, connection, on_progress, confirm, on_admitted, deferring).run(detach=detach)


def cancel_run(
    root: str, run: str, connection: Connection, timeout_s: float | None = None, on_note: Callable[[str], None] | None = None
) -> DoneRecord | None:
    """Cancel a run by `r42` or its run_id; see `execute.cancel_run`.

    Raises:
        UsageError: Terminal. There is no such run in this root.
    """
    store = Store(root)
    entry = find_entry(store, run)
    if entry is None:
        raise UsageError(f"There is no batch run {run} in the root {store.uri}. Nothing was canceled. `claude-batch status` lists them.")
    return asyncio.run(execute.cancel_run(connection, store, entry, timeout_s=timeout_s, on_note=on_note))


class _DeclinedError(UsageError):
    """A person said no to a plan."""


def _tell_more(error: ClaudeBatchError) -> str:
    """Return an error of a further plan, whose words are those of a first one."""
    return str(error).replace("Nothing was sent", "Nothing more was sent")


def _find_cost(entry: LogEntry, done: DoneRecord | None) -> int:
    """Return what a run cost; the worst case of one that is not over, or whose model has no price."""
    if done is not None and done.cost_nano_usd is not None:
        return done.cost_nano_usd
    return entry.cost_nano_usd.worst or 0


@dataclass(slots=True)
class _Runner:
    job: Job
    connection: Connection
    on_progress: OnProgress | None
    confirm: Callable[[Plan], bool] | None
    on_admitted: Callable[[LogEntry], None] | None
    deferring: Deferring | None = None
    store: Store = field(init=False)
    invoked_s: float = field(default_factory=time.monotonic)
    began_s: float = field(default_factory=time.monotonic)
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    former: Deferral | None = None
    intents: list[str] = field(default_factory=list)
    deferred: Deferred | None = None
    plans: int = 0
    changes: int = 0
    own: list[tuple[LogEntry, DoneRecord | None]] = field(default_factory=list)
    waited: list[str] = field(default_factory=list)
    first: Plan | None = None
    last: Plan | None = None
    gave_up: bool = False
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.job.root)

    def run(self, *, detach: bool) -> JobResult:
        check_writable(self.job)
        try:
            self._take_up()
            return self._carry_out(detach=detach)
        except RunError as error:
            if self.former is not None and "question" not in error.context:
                # It is told now; who tries again begins anew.
                remove_deferral(self.store, self.former.name)
            raise
        finally:
            # Published, failed or interrupted: whoever looks sees that. Only a process that was killed leaves it behind.
            for intent in self.intents if self.deferred is None else ():
                # One that stays costs a run that publishes again.
                with suppress(ClaudeBatchError):
                    withdraw_intent(self.store, intent, self.job.dagster_run_id)

    def _carry_out(self, *, detach: bool) -> JobResult:
        if self.former is not None and (self.plans >= MAX_PLANS or self.changes >= MAX_CHANGES):
            return self._end_former()
        is_former = self.former is not None
        while self.plans < MAX_PLANS:
            self.plans += 1
            try:
                plan = self._plan()
            except (CostError, _DeclinedError) as error:
                if not self.own:
                    raise
                # What was asked is paid: it is published, and what came in meanwhile is left for later.
                self.left.append(_tell_more(error))
                break
            if plan.total.asked or plan.waits:
                # Before admission: what cannot be started must not own keys.
                asyncio.run(self._reach_temporal())
            admission = admit_plan(self.job, plan, reserved_nano_usd=self._reserved_nano_usd())
            if admission.own is not None:
                self.own.append((admission.own, None))
                if self.on_admitted is not None:
                    self.on_admitted(admission.own)
                self.changes += is_former
            is_former = False
            if not admission.own and not admission.waits:
                break
            asyncio.run(self._execute(admission.own, admission.waits, detach=detach))
            self.waited += [entry.run_id for entry in admission.waits]
            if detach or self.deferred is not None:
                break
            if not admission.waits:
                if self.changes >= MAX_CHANGES or not plan.source.changed(self.job.partitions):
                    break
                self.changes += 1
                self._report(
                    replace(self._planned("plan", plan.total), message="The source changed meanwhile: what is new in it is asked now.")
                )
        else:
            self.gave_up = True
        assert self.first is not None, "there was at least one plan"
        if detach or self.deferred is not None:
            return self._result(self.first, (), dict(self.first.bad_partitions), detached=True)
        return self._publish(self.first)

    def _take_up(self) -> None:
        """Go on with what was deferred: its runs are this job's own."""
        self.former = take_up(self.store, self.job, self.deferring) if self.deferring is not None else None
        if self.former is None or self.deferring is None:
            return
        record = self.former.record
        own = [(read_entry(self.store, run.number), read_done(self.store, run.number)) for run in record.runs if run.own]
        failed = [f"{entry.label}, {done.error}" for entry, done in own if done is not None and done.outcome == "failed"]
        if failed and self.deferring.collects is None:
            # Who materializes by hand wants to try again, and not to be told of it first.
            remove_deferral(self.store, self.former.name)
            self.former = None
            message = f"An earlier run was deferred, and its batch run failed ({failed[0]}). What was not answered is asked anew."
            self._report(JobProgress(phase="plan", message=message))
            return
        self.own = own
        self.plans, self.changes = record.plans, record.changes
        self.began_at = datetime.fromisoformat(record.began_at)
        self.began_s -= max(0.0, (datetime.now(UTC) - self.began_at).total_seconds())
        for entry, done in own:
            if done is not None:
                self._end(entry, done, None)
        waiting = [read_entry(self.store, run.number) for run in record.runs if read_done(self.store, run.number) is None]
        if waiting and self.deferring.collects is not None:
            asyncio.run(self._refuse_questions(waiting))

    async def _refuse_questions(self, waiting: Sequence[LogEntry]) -> None:
        watch = await open_watch(self.connection, self.store, waiting)
        await watch.look()
        refuse_question(watch)

    def _end_former(self) -> JobResult:
        """Publish what a deferred job was answered, asking nothing more: it was planned so often, or its source changed so often."""
        plan = self._plan(preview=True)
        own = {entry.run_id for entry, _ in self.own}
        waits = [entry for entry in plan.waits if entry.run_id in own]
        if waits:
            asyncio.run(self._execute(None, waits, detach=False))
        self.gave_up = self.plans >= MAX_PLANS
        if self.deferred is not None:
            return self._result(plan, (), dict(plan.bad_partitions), detached=True)
        return self._publish(plan)

    async def _reach_temporal(self) -> None:
        refuse_lost_root(self.store, await find_orphans(await connect(self.connection), self.connection, self.store))

    def _plan(self, *, preview: bool = False) -> Plan:
        self._report(JobProgress(phase="plan", message=" ".join(warn_of_aging(self.store)) or None))
        last_s = time.monotonic()

        def on_rows(tally: Tally) -> None:
            nonlocal last_s
            if time.monotonic() - last_s >= PROGRESS_EVERY_S:
                last_s = time.monotonic()
                self._report(self._planned("plan", tally))

        try:
            own = [entry.run_id for entry, _ in self.own]
            plan = plan_job(self.job, preview=preview, concluded_runs=own, waited_runs=self.waited, on_rows=on_rows)
        except ClaudeBatchError as error:
            if self.own:
                kept = f"What batch run {self.own[-1][0].label} was answered is kept: the same command again asks only for the rest."
                error.args = (f"{_tell_more(error)} {kept}",)
            raise
        self.first = self.first or plan
        if not preview:
            check_cap(self.job, plan, self._reserved_nano_usd())
        self.last = plan
        left_out = [f"Left out: {reason}" for reason in plan.bad_partitions.values()]
        self._report(replace(self._planned("plan", plan.total), message=" ".join(left_out) or None))
        if plan.total.asked and not preview and self.confirm is not None and not self.confirm(plan):
            requests = f"{plan.total.asked:,} {'request' if plan.total.asked == 1 else 'requests'}"
            if self.own:
                raise _DeclinedError(
                    f"Not confirmed: {requests} more, nothing of it was sent. Its rows are pending. Run again to ask about them."
                )
            raise _DeclinedError(
                f"Not confirmed: none of {requests} was sent. Nothing was written. To send them without a question: --max-cost-usd X."
            )
        return plan

    async def _execute(self, own: LogEntry | None, waits: Sequence[LogEntry], *, detach: bool) -> None:
        entries = [*([own] if own else []), *waits]
        if not detach and self._may_be_left() and (own is not None or self.former is None):
            self.intents.append(self._defer(entries, is_intent=True).name)
        watch = await open_watch(self.connection, self.store, entries)
        if own is not None:
            await self._start(watch, own)
        if waits:
            watch.notes.append(f"Waiting for {', '.join(entry.label for entry in waits)}, which already asks for some of these rows.")
        last_s = float("-inf")
        while not detach:
            await watch.look()
            if watch.notes or time.monotonic() - last_s >= PROGRESS_EVERY_S or not watch.open:
                last_s = time.monotonic()
                self._report(describe_waiting(watch, own, self._total(), elapsed_s=time.monotonic() - self.began_s))
            # At once: a refused key must not wait for other runs' batches.
            self._conclude(watch)
            if not watch.open:
                break
            if self._may_leave(watch):
                self._leave(watch)
                break
            await watch.rest(LOOK_EVERY_S)

    async def _start(self, watch: Watch, own: LogEntry) -> None:
        """Start the own run; its keys are taken, so a server that restarts just now is waited for."""
        for attempt in range(START_TRIES):
            try:
                return await start_run(watch.client, self.connection, self.store, own, Mode.RUN)
            except RPCError as error:
                if attempt + 1 == START_TRIES:
                    raise TemporalUnavailableError(
                        f"Batch run {own.label} was admitted, and Temporal does not confirm the start of its workflow: {error}. It may have begun and "
                        "sent its batches. Nothing of it is paid twice. Type the same command again: it goes on with the run, or settles it and asks anew.",
                        run=own.label,
                    ) from error
                await asyncio.sleep(START_EVERY_S)

    def _conclude(self, watch: Watch) -> None:
        for own, done in tuple(self.own):
            run = next((run for run in watch.runs if run.entry.run_id == own.run_id), None)
            if done is None and run is not None and run.done is not None:
                self._end(own, run.done, run.failure)

    def _end(self, own: LogEntry, done: DoneRecord, failure: str | None) -> None:
        check_end(own, done, failure)
        if self.former is not None and was_never_started(self.former, own, done):
            self.former = forget_run(self.former, own)
            self.own = [pair for pair in self.own if pair[0].run_id != own.run_id]
        else:
            self.own = [(one, done if one.run_id == own.run_id else end) for one, end in self.own]

    def _may_be_left(self) -> bool:
        return self.deferring is not None and self.deferring.wait_s is not None

    def _may_leave(self, watch: Watch) -> bool:
        """Tell whether the job may be left to its runs: a run without a workflow is settled by who waits for it."""
        if self.deferring is None or self.deferring.wait_s is None:
            return False
        return time.monotonic() - self.invoked_s >= self.deferring.wait_s and all(run.running for run in watch.open)

    def _leave(self, watch: Watch) -> None:
        self.deferred = self._defer([run.entry for run in watch.open])
        if self.deferring is not None and self.deferring.collects is not None:
            refuse_question(watch)

    def _defer(self, waits: Sequence[LogEntry], *, is_intent: bool = False) -> Deferred:
        assert self.deferring is not None, "it may leave"
        assert self.first is not None, "a plan came first"
        return defer_job(
            self.store,
            self.job,
            self.deferring,
            former=self.former,
            own=[entry for entry, _ in self.own],
            waits=waits,
            tallies=self._first_tallies(self.first),
            began_at=self.began_at,
            plans=self.plans,
            changes=self.changes,
            is_intent=is_intent,
        )

    def _first_tallies(self, plan: Plan) -> dict[tuple[str, str | None], Tally]:
        """Return what the job's first plan counted, also where that was made before it was deferred; partitions that came since with it."""
        return plan.tallies if self.former is None else plan.tallies | read_tallies(self.former.record.planned)

    def _reserved_nano_usd(self) -> int:
        """Return what own runs cost: a further round may have cost more than the worst case, which asks each request once."""
        return sum(_find_cost(entry, done) for entry, done in self.own)

    def _publish(self, plan: Plan) -> JobResult:
        self._report(self._planned("publish", plan.total))
        last = self.last or plan
        # A source that changed may have more of them by now.
        partitions = list(dict.fromkeys(partition for _, partition in (*plan.tallies, *last.tallies)))
        own_batch_ids = frozenset(batch_id for entry, _ in self.own for batch_id in batch_ids(list_submissions(self.store, entry.run_id)))
        label = self.own[-1][0].label if self.own else None
        # Before the answers are opened to be published, which is quicker then.
        keep_up_answers(self.job)
        ended = find_ended(self.store, self.job, self.deferring) if self.deferring is not None else []
        published = publish_job(self.job, partitions, run=label, limit=plan.limit, own_batch_ids=own_batch_ids)
        if self.deferring is not None:
            done = {output.partition for output in published.outputs} - published.failed_partitions.keys()
            remove_needless(self.store, ended, self.job, self.deferring, done)
        if self.former is not None:
            # A partition that could not be published is told by this run, which fails; one beyond the limit was not asked.
            remove_deferral(self.store, self.former.name)
        return self._result(plan, published.outputs, {**last.bad_partitions, **published.failed_partitions}, detached=False)

    def _result(self, plan: Plan, outputs: tuple[PublishedOutput, ...], failed: dict[str, str], *, detached: bool) -> JobResult:
        warnings = (*plan.warnings, *self.left, *self._changed(plan, outputs), *self._given_up())
        return describe_result(
            self.store,
            self.own,
            tallies=self._first_tallies(plan),
            outputs=outputs,
            failed_partitions=failed,
            detached=detached,
            duration_s=time.monotonic() - self.began_s,
            warnings=warnings,
            limit=plan.limit,
            deferred=self.deferred,
        )

    def _given_up(self) -> list[str]:
        if not self.gave_up:
            return []
        return [f"Other runs took these rows {MAX_PLANS} times and gave them up: what has no answer is pending. Run again to ask about it."]

    def _changed(self, plan: Plan, outputs: tuple[PublishedOutput, ...]) -> list[str]:
        pending = sum(output.written.rows["pending"] for output in outputs)
        if not outputs or not pending or not plan.source.changed(self.job.partitions):
            return []
        return [
            f"The source changed while it was asked about: {pending:,} {'row is' if pending == 1 else 'rows are'} pending. Run again to ask about {'it' if pending == 1 else 'them'}."
        ]

    def _planned(self, phase: str, tally: Tally) -> JobProgress:
        return JobProgress(
            phase=phase,
            rows_planned=tally.rows,
            requests_asked=tally.asked,
            requests_already_answered=tally.already_answered,
            requests_in_flight=tally.in_flight,
            batches_total=self.first.batches if self.first else 0,
            elapsed_s=time.monotonic() - self.began_s,
            run=self.own[-1][0].label if self.own else None,
            workflow_id=workflow_id(self.own[-1][0].run_id) if self.own else None,
        )

    def _total(self) -> Tally:
        assert self.first is not None, "a plan came first"
        return self.first.total

    def _report(self, progress: JobProgress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)
