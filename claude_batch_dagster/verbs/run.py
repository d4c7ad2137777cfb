"""The verbs in order: plan, admit, execute, publish, again for what others gave up. What every face calls."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from temporalio.service import RPCError

from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.errors import ClaudeBatchError, CostError, RunError, TemporalUnavailableError, UsageError
from claude_batch_dagster.core.records import DoneRecord, LogEntry, ModelUsage
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.plans import batch_ids, find_entry, list_submissions
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.tries import list_tried
from claude_batch_dagster.verbs import execute
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.aging import warn_of_aging
from claude_batch_dagster.verbs.cap import check_cap
from claude_batch_dagster.verbs.connection import Connection, connect
from claude_batch_dagster.verbs.endpoint import name_root
from claude_batch_dagster.verbs.execute import LOOK_EVERY_S, Watch, Watched, check_concluded, open_watch, start_run
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.lost_root import find_orphans, refuse_lost_root
from claude_batch_dagster.verbs.plan import Plan, plan_job
from claude_batch_dagster.verbs.progress import JobProgress, OnProgress
from claude_batch_dagster.verbs.publish import PublishedOutput, publish_job
from claude_batch_dagster.verbs.tally import Tally
from claude_batch_dagster.verbs.upkeep import keep_up_answers
from claude_batch_dagster.verbs.writable import check_writable

MAX_PLANS = 5
MAX_CHANGES = 3
"""So often a source that changed while it was asked about is planned again."""
START_TRIES = 10
START_EVERY_S = 3.0
PROGRESS_EVERY_S = 1.0
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What an invocation did.

    Attributes:
        run: `r42`, the last own run; None where nothing was asked.
        rows: Source rows over all outputs, as `total` and by status.
        requests: `asked`, `already_answered` and `in_flight`, distinct.
        batches: Of the own runs.
        tokens: `input`, `output`, `cache_read`, `cache_write`, of the own runs.
        cost_usd: What the own runs cost; None where a model has no price.
        outputs: What was written; none when detached.
        tallies: Of the first plan, by (task name, partition).
        failed_partitions: Partitions left out, with the reason.
        detached: The run goes on without this client.
        warnings: For people.
        limit: Set where a limit left rows out.
        tries: What trying a new task cost the own runs, by the task's name; in `tokens` and `cost_usd` as well.
    """

    root: str
    run: str | None
    run_id: str | None
    workflow_id: str | None
    rows: dict[str, int]
    requests: dict[str, int]
    batches: int
    tokens: dict[str, int]
    cost_usd: float | None
    outputs: tuple[PublishedOutput, ...]
    tallies: dict[tuple[str, str | None], Tally]
    failed_partitions: dict[str, str]
    detached: bool
    duration_s: float
    warnings: tuple[str, ...]
    limit: int | None = None
    tries: dict[str, ModelUsage] = field(default_factory=dict)


def run_job(
    job: Job,
    connection: Connection,
    on_progress: OnProgress | None = None,
    *,
    detach: bool = False,
    confirm: Callable[[Plan], bool] | None = None,
    on_admitted: Callable[[LogEntry], None] | None = None,
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

    Raises:
        ClaudeBatchError: Terminal or Transient, see the verbs. RunError: the own run failed; nothing was written.
    """
    return _Runner(job, connection, on_progress, confirm, on_admitted).run(detach=detach)


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
    store: Store = field(init=False)
    began_s: float = field(default_factory=time.monotonic)
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
        changes = 0
        for _ in range(MAX_PLANS):
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
            if not admission.own and not admission.waits:
                break
            asyncio.run(self._execute(admission.own, admission.waits, detach=detach))
            self.waited += [entry.run_id for entry in admission.waits]
            if detach:
                break
            if not admission.waits:
                if changes == MAX_CHANGES or not plan.source.changed(self.job.partitions):
                    break
                changes += 1
                self._report(
                    replace(self._planned("plan", plan.total), message="The source changed meanwhile: what is new in it is asked now.")
                )
        else:
            self.gave_up = True
        assert self.first is not None, "there was at least one plan"
        if detach:
            return self._result(self.first, (), dict(self.first.bad_partitions), detached=True)
        return self._publish(self.first)

    async def _reach_temporal(self) -> None:
        refuse_lost_root(self.store, await find_orphans(await connect(self.connection), self.connection, self.store))

    def _plan(self) -> Plan:
        self._report(JobProgress(phase="plan", message=" ".join(warn_of_aging(self.store)) or None))
        last_s = time.monotonic()

        def on_rows(tally: Tally) -> None:
            nonlocal last_s
            if time.monotonic() - last_s >= PROGRESS_EVERY_S:
                last_s = time.monotonic()
                self._report(self._planned("plan", tally))

        try:
            plan = plan_job(self.job, concluded_runs=[entry.run_id for entry, _ in self.own], waited_runs=self.waited, on_rows=on_rows)
        except ClaudeBatchError as error:
            if self.own:
                kept = f"What batch run {self.own[-1][0].label} was answered is kept: the same command again asks only for the rest."
                error.args = (f"{_tell_more(error)} {kept}",)
            raise
        check_cap(self.job, plan, self._reserved_nano_usd())
        self.first = self.first or plan
        self.last = plan
        left_out = [f"Left out: {reason}" for reason in plan.bad_partitions.values()]
        self._report(replace(self._planned("plan", plan.total), message=" ".join(left_out) or None))
        if plan.total.asked and self.confirm is not None and not self.confirm(plan):
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
        watch = await open_watch(self.connection, self.store, [*([own] if own else []), *waits])
        if own is not None:
            await self._start(watch, own)
        if waits:
            watch.notes.append(f"Waiting for {', '.join(entry.label for entry in waits)}, which already asks for some of these rows.")
        last_s = float("-inf")
        while not detach:
            await watch.look()
            if watch.notes or time.monotonic() - last_s >= PROGRESS_EVERY_S or not watch.open:
                last_s = time.monotonic()
                self._report(self._waiting(watch, own))
            if own is not None and self.own[-1][1] is None:
                # At once: a refused key must not wait for other runs' batches.
                self._conclude(own, watch.runs[0])
            if not watch.open:
                break
            await asyncio.sleep(LOOK_EVERY_S)

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

    def _conclude(self, own: LogEntry, run: Watched) -> None:
        if run.done is None:
            return
        self.own[-1] = (own, run.done)
        check_concluded(own, run.done)
        reason = run.done.error if run.done.outcome == "failed" else run.failure
        if run.done.outcome == "failed" or run.failure is not None:
            raise RunError(f"Batch run {own.label} failed: {reason or 'no reason was recorded'}", run=own.label)

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
        published = publish_job(self.job, partitions, run=label, limit=plan.limit, own_batch_ids=own_batch_ids)
        return self._result(plan, published.outputs, {**last.bad_partitions, **published.failed_partitions}, detached=False)

    def _result(self, plan: Plan, outputs: tuple[PublishedOutput, ...], failed: dict[str, str], *, detached: bool) -> JobResult:
        last = self.own[-1][0] if self.own else None
        done = [record for _, record in self.own if record is not None]
        usage = [line for record in done for line in record.usage]
        costs = [record.cost_nano_usd for record in done]
        rows = {"total": sum(sum(output.written.rows.values()) for output in outputs) if outputs else plan.total.rows}
        rows |= {status: sum(output.written.rows[status] for output in outputs) for status in STATUSES}
        return JobResult(
            root=self.store.uri,
            run=last.label if last else None,
            run_id=last.run_id if last else None,
            workflow_id=workflow_id(last.run_id) if last else None,
            rows=rows,
            requests={
                "asked": sum(entry.keys.count for entry, _ in self.own),
                "already_answered": plan.total.already_answered,
                "in_flight": plan.total.in_flight,
            },
            batches=sum(record.batches for record in done),
            tokens={
                "input": sum(line.input_tokens for line in usage),
                "output": sum(line.output_tokens for line in usage),
                "cache_read": sum(line.cache_read_tokens for line in usage),
                "cache_write": sum(line.cache_write_tokens for line in usage),
            },
            cost_usd=None if None in costs else sum(cost or 0 for cost in costs) / _NANO,
            outputs=outputs,
            tallies=plan.tallies,
            failed_partitions=failed,
            detached=detached,
            duration_s=time.monotonic() - self.began_s,
            warnings=(*plan.warnings, *self.left, *self._changed(plan, outputs), *self._given_up()),
            limit=plan.limit,
            tries={name: usage for entry, _ in self.own for name, usage in self._tries(entry).items()},
        )

    def _tries(self, entry: LogEntry) -> dict[str, ModelUsage]:
        tried = list_tried(self.store, entry.run_id, [task.task_key for task in entry.tasks])
        names = {task.task_key: task.name for task in entry.tasks}
        return {names[task_key]: record.usage for task_key, record in tried.items() if record.usage is not None}

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

    def _waiting(self, watch: Watch, own: LogEntry | None) -> JobProgress:
        assert self.first is not None, "a plan came first"
        total = self.first.total
        shown = next((run for run in watch.runs if own is None or run.entry.run_id == own.run_id), watch.runs[0])
        told = shown.progress
        questions = [question for run in watch.runs if run.progress and run.done is None for question in run.progress.questions]
        message = " ".join(watch.notes) or None
        watch.notes.clear()
        done = shown.done
        return JobProgress(
            phase="wait",
            rows_planned=total.rows,
            requests_asked=total.asked,
            requests_already_answered=total.already_answered,
            requests_in_flight=total.in_flight,
            batches_total=max(len(shown.entry.shards), told.submitted if told else 0, done.batches if done else 0),
            batches_submitted=done.batches if done else told.submitted if told else 0,
            batches_in_progress=0 if done else told.in_progress if told else 0,
            batches_ended=done.batches if done else told.collected if told else 0,
            cost_usd=(done.cost_nano_usd or 0) / _NANO if done else told.counts.cost_nano_usd / _NANO if told else 0.0,
            elapsed_s=time.monotonic() - self.began_s,
            run=shown.entry.label,
            workflow_id=workflow_id(shown.entry.run_id),
            message=message,
            question=name_root(questions[0], self.store.uri) if questions else None,
        )

    def _report(self, progress: JobProgress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)
