"""Carries a job out inside a Dagster step: finds Temporal, logs what happens, and cancels when the run is terminated.

Only a terminated run cancels. A killed process leaves its batch run to the worker, and the next run of the same assets finds it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from claude_batch_dagster.core.errors import ClaudeBatchError, TransientError
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.verbs.connection import Connection, external_connection
from claude_batch_dagster.verbs.job import Job

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import LogEntry
    from claude_batch_dagster.verbs.defer import Deferring
    from claude_batch_dagster.verbs.plan import Plan
    from claude_batch_dagster.verbs.progress import JobProgress
    from claude_batch_dagster.verbs.result import JobResult

QUIET_S = 60.0
CANCEL_TIMEOUT_S = 30.0


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn our errors into dg.Failure; a retry policy applies only to what may end differently."""
    try:
        yield
    except ClaudeBatchError as error:
        raise dg.Failure(
            description=str(error), metadata=_failure_metadata(error), allow_retries=isinstance(error, TransientError)
        ) from error


@contextmanager
def final_terminations(context: dg.AssetExecutionContext) -> Iterator[None]:
    """Let a terminated run stay so: Dagster retries an interrupted step by its retry policy (1.13.27), which would ask, and pay, again."""
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
        raise dg.Failure(
            description="The run is being terminated. Nothing was sent. Start a new one: what was answered is kept.", allow_retries=False
        )
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        if context.op_def.retry_policy is None and context.job_def.op_retry_policy is None:
            raise
        raise dg.Failure(
            description="The run was terminated, and is not retried, whatever its retry policy says. What was answered is kept: the next run asks the rest.",
            allow_retries=False,
        ) from interrupt


def _failure_metadata(error: ClaudeBatchError) -> dict[str, str | int | float]:
    """Return the error's kind and its facts; money in USD."""
    metadata: dict[str, str | int | float] = {"claude_batch/error": type(error).__name__}
    for name, value in error.context.items():
        if isinstance(value, int) and name.endswith("_nano_usd"):
            metadata[f"claude_batch/{name.removesuffix('_nano_usd')}_usd"] = value / 1e9
        elif isinstance(value, (str, int, float)):
            metadata[f"claude_batch/{name}"] = value
    return metadata


def external_server(address: str | None, namespace: str | None, task_queue: str | None, ui_url: str | None) -> Connection | None:
    """Return the connection to the user's own Temporal, None where the root's embedded one is to be used.

    Args:
        address: None for TEMPORAL_ADDRESS and Temporal's other settings.
        namespace: None for TEMPORAL_NAMESPACE.
        task_queue: None for CLAUDE_BATCH_TASK_QUEUE.
        ui_url: None for CLAUDE_BATCH_TEMPORAL_UI.
    """
    given = {
        "TEMPORAL_ADDRESS": address,
        "TEMPORAL_NAMESPACE": namespace,
        "CLAUDE_BATCH_TASK_QUEUE": task_queue,
        "CLAUDE_BATCH_TEMPORAL_UI": ui_url,
    }
    return external_connection({**os.environ, **{name: value for name, value in given.items() if value}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A Temporal server that may be used.

    Attributes:
        stay: Lets an embedded stack outlive its clients, until no run of the root is open; nothing for a server of the user's own.
    """

    connection: Connection
    stay: Callable[[], None] = lambda: None


@contextmanager
def connected(external: Connection | None, root: str, *, simulate: bool) -> Iterator[Reached]:
    """Give the connection to use: the user's own Temporal, or the root's embedded stack, which stays as long as the block."""
    if external is not None:
        yield Reached(connection=external)
        return
    from claude_batch_dagster.embedded import attach

    with attach(root, simulate=simulate) as stack:
        yield Reached(connection=stack.connection, stay=stack.stay)


def carry_out(context: dg.AssetExecutionContext, job: Job, reached: Reached, deferring: "Deferring") -> "JobResult":
    """Run the job to its end, or until it is deferred.

    Raises:
        dg.DagsterExecutionInterruptedError: The run was terminated; its batches are being canceled.
    """
    from claude_batch_dagster.verbs.run import run_job

    connection = reached.connection
    log = ProgressLog(write=context.log.info, warn=context.log.warning, connection=connection, limit=job.limit, about=_about(job))
    own: list[LogEntry] = []
    try:
        result = run_job(job, connection, log, confirm=log.explain, on_admitted=own.append, deferring=deferring)
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        # Only the own run, which is the last one: other clients may be waiting for theirs.
        if own:
            _cancel(context, job, own[-1].label, connection)
        raise
    for warning in result.warnings:
        context.log.warning(warning)
    if result.deferred is not None:
        reached.stay()
        return result
    context.log.info(_result_line(result))
    return result


def _cancel(context: dg.AssetExecutionContext, job: Job, run: str, connection: Connection) -> None:
    from claude_batch_dagster.verbs.run import cancel_run

    context.log.info(f"The run was terminated: batch run {run} is being canceled. What was answered is kept.")
    try:
        done = cancel_run(job.root, run, connection, CANCEL_TIMEOUT_S)
    except ClaudeBatchError as error:
        # The interruption itself goes on: the Dagster run ends as canceled, not as failed.
        context.log.error(f"Batch run {run} could not be canceled: {error} Cancel it with: claude-batch cancel {run}")
        return
    context.log.info(f"Batch run {run} {'is over' if done else 'is still ending; the next run collects what it answered'}.")


@dataclass(slots=True, kw_only=True)
class ProgressLog:
    """Turns progress into a dozen lines: every change of state, counts at most once a minute.

    Attributes:
        write: Takes a line.
        warn: Takes a line that a person should see.
        connection: For the workflow's link.
        limit: Rows that the run is limited to.
        about: What is read, and for which tasks.
        now_s: A monotonic clock.
    """

    write: Callable[[str], object]
    warn: Callable[[str], object]
    connection: Connection
    limit: int | None = None
    about: str = "the source"
    now_s: Callable[[], float] = time.monotonic
    _run: str | None = field(default=None, init=False)
    _phase: str | None = field(default=None, init=False)
    _counts: tuple[int, int, int] | None = field(default=None, init=False)
    _said: set[str] = field(default_factory=set, init=False)
    _written_s: float = field(default=float("-inf"), init=False)

    def __call__(self, progress: "JobProgress") -> None:
        """Log what is new."""
        for text in (progress.message, progress.question):
            if text and text not in self._said:
                self._said.add(text)
                self.warn(text)
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._counts = _counts(progress)
            self._line(_phase_line(progress, self.limit, self.about))
        if progress.run is not None and progress.workflow_id is not None and progress.run != self._run:
            self._run = progress.run
            link = self.connection.workflow_url(progress.workflow_id) or progress.workflow_id
            self._line(f"Batch run {progress.run} ({_plural(progress.batches_total, 'batch', 'batches')}). Workflow: {link}")
        if progress.phase == "wait" and _counts(progress) != self._counts and self._may_write(progress):
            self._counts = _counts(progress)
            self._line(_wait_line(progress))

    def explain(self, plan: "Plan") -> bool:
        """Log what is asked, why, and what it may cost; return True: nobody is there to say no."""
        from claude_batch_dagster.verbs.cap import explain_plan

        worst, expected = plan.worst_nano_usd, plan.expected_nano_usd
        cost = "at an unknown cost"
        if worst is not None and expected is not None:
            cost = f"about {usd(expected / 1e9)}, at most {usd(worst / 1e9)}"
        self._line(f"To ask: {_plural(sum(plan.reasons.values()), 'request', 'requests')} ({explain_plan(plan)}), {cost}.")
        return True

    def _may_write(self, progress: "JobProgress") -> bool:
        is_last = progress.batches_total > 0 and progress.batches_ended == progress.batches_total
        return is_last or self.now_s() - self._written_s >= QUIET_S

    def _line(self, text: str) -> None:
        self._written_s = self.now_s()
        self.write(text)


def _counts(progress: "JobProgress") -> tuple[int, int, int]:
    return progress.batches_submitted, progress.batches_in_progress, progress.batches_ended


def _about(job: Job) -> str:
    tasks = ", ".join(target.task.name for target in job.targets)
    keys = job.partitions or ()
    some = f"{len(keys)} partitions ({keys[0]} to {keys[-1]})" if len(keys) > 1 else f"partition {keys[0]}" if keys else ""
    return f"{f'{some} of ' if some else ''}{job.source.uri} for {tasks}"


def _phase_line(progress: "JobProgress", limit: int | None, about: str) -> str:
    match progress.phase:
        case "plan":
            only = "" if limit is None else f" limit: only the first {_plural(limit, 'row', 'rows')}."
            return f"Planning: reading {about}, and looking up what is answered already.{only}"
        case "wait":
            return (
                f"Planned {_plural(progress.rows_planned, 'row', 'rows')}: {_plural(progress.requests_asked, 'request', 'requests')} to ask, "
                f"{progress.requests_already_answered:,} answered already, "
                f"{progress.requests_in_flight:,} in flight in other runs. Batches usually end within 1 h, and within 24 h at most."
            )
        case _:
            return (
                f"Publishing {_plural(progress.rows_planned, 'row', 'rows')} over all outputs; {_plural(progress.requests_asked, 'request', 'requests')} asked, "
                f"{progress.requests_already_answered:,} answered already."
            )


def _wait_line(progress: "JobProgress") -> str:
    return (
        f"{progress.batches_submitted:,} of {_plural(progress.batches_total, 'batch', 'batches')} submitted, {progress.batches_in_progress:,} processing, "
        f"{progress.batches_ended:,} ended, after {_duration(progress.elapsed_s)}; {usd(progress.cost_usd)} so far."
    )


def _result_line(result: "JobResult") -> str:
    by_status = ", ".join(f"{count:,} {status}" for status, count in result.rows.items() if count and status != "total")
    cost = "unknown cost" if result.cost_usd is None else usd(result.cost_usd)
    return f"Published {_plural(result.rows['total'], 'row', 'rows')} ({by_status}) for {cost} in {_duration(result.duration_s)}."


def _plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes >= 2 else f"{minutes * 60 + rest} s"
