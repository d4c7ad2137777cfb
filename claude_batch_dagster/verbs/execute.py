"""Execute: start admitted runs, wait until every run that holds a wanted key is done, and settle the runs of the dead.

The store decides, Temporal drives: a run is over when `done/{n}.json` is there. A run without `done` whose workflow does not run is
drained by whoever needs its keys: the same driver settles what is open and buys nothing.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.contract import PROGRESS_QUERY, QUESTION_MEMO, WORKFLOW_TYPE, Progress, RunInput, workflow_id
from claude_batch_dagster.core.errors import RootError, RunError, TemporalUnavailableError, TransientError
from claude_batch_dagster.core.records import DoneRecord, LogEntry, Owner
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.plans import read_done
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection, connect, find_reason
from claude_batch_dagster.verbs.endpoint import name_root
from claude_batch_dagster.verbs.progress import JobProgress
from claude_batch_dagster.verbs.tally import Tally

LOOK_EVERY_S = 0.5
ASK_TEMPORAL_EVERY_S = 3.0
DRAIN_AFTER_S = 60.0
DEAD_OWNER_DRAIN_AFTER_S = 2.0
LEAST_DRAIN_AFTER_S = 1.0
NO_WORKER_AFTER_S = 15.0
RPC_TIMEOUT = timedelta(seconds=5)
_NANO = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class Watched:
    """A run that is waited for.

    Attributes:
        progress: As the workflow last told; None before it did.
        done: Set once the run is over.
        idle_since_s: When its workflow was first seen not to run, on the monotonic clock.
        failure: Why its workflow failed; what it left open is drained all the same.
        drained: Whether this client started a drain.
        running: Whether its workflow ran at the last look.
        question: What a person has to decide, from the workflow's memo: known without a worker that answers.
    """

    entry: LogEntry
    progress: Progress | None = None
    done: DoneRecord | None = None
    idle_since_s: float | None = None
    failure: str | None = None
    drained: bool = False
    running: bool = False
    question: str | None = None


@dataclass(slots=True, kw_only=True)
class Watch:
    """The runs that one client waits for; `look` is called in a loop.

    Attributes:
        drain_after_s: How long a workflow may be gone before its run is drained.
        ask_every_s: How often Temporal is asked.
        notes: Lines for people that were not shown yet.
    """

    client: Client
    connection: Connection
    store: Store
    runs: list[Watched]
    drain_after_s: float = DRAIN_AFTER_S
    ask_every_s: float = ASK_TEMPORAL_EVERY_S
    notes: list[str] = field(default_factory=list)
    _asked_at_s: float = float("-inf")
    _worker_seen_s: float = field(default_factory=time.monotonic)
    _said: set[str] = field(default_factory=set)
    _closing: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def open(self) -> list[Watched]:
        """The runs that are not over."""
        return [run for run in self.runs if run.done is None]

    async def look(self) -> None:
        """Look once: at `done` in the store, and every few seconds at Temporal."""
        for run in self.open:
            run.done = self._read_done(run)
        now_s = time.monotonic()
        if not self.open or now_s - self._asked_at_s < self.ask_every_s:
            return
        self._asked_at_s = now_s
        try:
            has_worker = await self._look_for_worker(now_s)
            for run in self.open:
                await self._look_at_workflow(run, now_s, has_worker=has_worker)
        except RPCError as error:
            # The server may be restarting; the run goes on there, and the next look tells.
            self.note_once(f"Temporal does not answer ({error.status.name}); still waiting.")
            if self.connection.revive is not None:
                await asyncio.to_thread(self.connection.revive)

    async def _look_at_workflow(self, run: Watched, now_s: float, *, has_worker: bool) -> None:
        handle = self.client.get_workflow_handle(workflow_id(run.entry.run_id))
        described = await _describe(handle)
        status = described.status if described else None
        run.running = status is WorkflowExecutionStatus.RUNNING
        run.question = (await described.memo()).get(QUESTION_MEMO) or None if described and run.running else None
        if status is WorkflowExecutionStatus.RUNNING:
            run.idle_since_s = None
            if has_worker:
                run.progress = await _query(handle) or run.progress
            return
        run.idle_since_s = run.idle_since_s or now_s
        run.done = self._read_done(run)
        if run.done is not None:
            return
        if status is WorkflowExecutionStatus.FAILED:
            run.failure = await _find_cause(handle)
            if run.drained:
                raise RunError(
                    f"Batch run {run.entry.label} cannot be settled: {run.failure} Its batches and keys stay as they are. "
                    f"Mend the cause, then run again, or: claude-batch cancel {run.entry.label}",
                    run=run.entry.label,
                )
        patience_s = min(self.drain_after_s, DEAD_OWNER_DRAIN_AFTER_S) if is_dead(run.entry.owner) else self.drain_after_s
        if now_s - run.idle_since_s >= max(patience_s, LEAST_DRAIN_AFTER_S):
            await self._drain(run, status)

    async def _drain(self, run: Watched, status: WorkflowExecutionStatus | None) -> None:
        await start_run(self.client, self.connection, self.store, run.entry, Mode.DRAIN)
        run.idle_since_s = run.progress = None
        run.drained = True
        what = "no workflow" if status is None else f"a workflow that is {status.name.lower()}"
        why = f" ({run.failure})" if run.failure else ""
        self.notes.append(f"Batch run {run.entry.label} is open and has {what}{why}: what it left is settled, nothing is bought for it.")

    async def _look_for_worker(self, now_s: float) -> bool:
        request = DescribeTaskQueueRequest(
            namespace=self.connection.namespace,
            task_queue=TaskQueue(name=self.connection.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        found = await self.client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
        if found.pollers:
            self._worker_seen_s = now_s
        elif now_s - self._worker_seen_s >= NO_WORKER_AFTER_S:
            self.note_once(_explain_no_worker(self.connection))
        return bool(found.pollers)

    async def rest(self, longest_s: float) -> None:
        """Wait until a workflow of these runs closes, at most so long: nobody waits half a second for what is done."""
        for run in self.open:
            if run.entry.run_id not in self._closing:
                handle = self.client.get_workflow_handle(workflow_id(run.entry.run_id))
                self._closing[run.entry.run_id] = asyncio.create_task(_await_close(handle))
        closing = [task for task in self._closing.values() if not task.done()]
        if not closing:
            await asyncio.sleep(longest_s)
            return
        closed, _ = await asyncio.wait(closing, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
        if closed:
            self._asked_at_s = float("-inf")

    def _read_done(self, run: Watched) -> DoneRecord | None:
        try:
            return read_done(self.store, run.entry.number)
        except TransientError as error:
            # The run goes on in its worker; a later look tells.
            self.note_once(f"{error} Still waiting.")
            return None

    def ask_once(self, run: Watched) -> None:
        """Note the questions of a run that were not noted yet."""
        for question in run.progress.questions if run.progress else ():
            self.note_once(f"{run.entry.label} waits for an answer: {name_root(question, self.store.uri)}")

    def note_once(self, text: str) -> None:
        """Note a line, unless it was noted before."""
        if text not in self._said:
            self._said.add(text)
            self.notes.append(text)


async def open_watch(connection: Connection, store: Store, entries: Sequence[LogEntry], drain_after_s: float = DRAIN_AFTER_S) -> Watch:
    """Connect to Temporal, to wait for these runs.

    Raises:
        TemporalUnavailableError: Transient. No server answers.
    """
    runs = [Watched(entry=entry) for entry in entries]
    return Watch(client=await connect(connection), connection=connection, store=store, runs=runs, drain_after_s=drain_after_s)


async def start_run(client: Client, connection: Connection, store: Store, entry: LogEntry, mode: Mode) -> None:
    """Start a run's workflow; one that runs already is left alone."""
    tasks = ", ".join(task.name for task in entry.tasks)
    await client.start_workflow(
        WORKFLOW_TYPE,
        RunInput(root=store.uri, number=entry.number, run_id=entry.run_id, mode=mode),
        id=workflow_id(entry.run_id),
        task_queue=connection.task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        static_summary=f"batch run {entry.label}: {tasks}",
        static_details=(
            f"{entry.keys.count:,} requests in {len(entry.shards)} {'batch' if len(entry.shards) == 1 else 'batches'}, endpoint {entry.endpoint}\n\n"
            f"- source: {entry.source.uri}\n- root: {store.uri}\n- mode: {mode.value}"
        ),
        memo={"dagster_run_id": entry.owner.dagster_run_id or "", "root": store.uri, "number": entry.number, "run_id": entry.run_id},
    )


async def cancel_run(
    connection: Connection, store: Store, entry: LogEntry, *, timeout_s: float | None = None, on_note: Callable[[str], None] | None = None
) -> DoneRecord | None:
    """Cancel a run: its batches are canceled at the vendor, what they answered is collected, nothing more is sent.

    The request is delivered in any case, also where this gives up waiting or is interrupted itself.

    Args:
        connection: Where its workflow runs, or will: a run whose workflow is gone is drained.
        store: The root.
        entry: The run.
        timeout_s: How long to wait for its end, None for as long as it takes.
        on_note: Told what is worth saying meanwhile.

    Returns:
        How it ended, None where it had not within `timeout_s`.

    Raises:
        RunError: Terminal. The run cannot be settled; its workflow says why.
        TemporalUnavailableError: Transient. The request could not be delivered.
    """
    began_s = time.monotonic()
    watch = await open_watch(connection, store, [entry], drain_after_s=0)
    watch.ask_every_s = LOOK_EVERY_S
    (run,) = watch.runs
    handle = watch.client.get_workflow_handle(workflow_id(entry.run_id))
    requested = False
    try:
        while True:
            await watch.look()
            watch.ask_once(run)
            for note in watch.notes:
                if on_note is not None:
                    on_note(note)
            watch.notes.clear()
            if run.done is not None or (timeout_s is not None and time.monotonic() - began_s >= timeout_s):
                return run.done
            # A workflow that is canceled before its first task runs no code of its own, so it could not settle anything: it is given
            # the time for that task where a worker is there.
            if run.progress is None:
                requested = False
            elif not requested:
                try:
                    requested = await _request_cancel(handle)
                except RPCError as error:
                    watch.note_once(f"Temporal does not take the request to cancel ({error.status.name}); it is made again.")
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        if run.done is None and not requested:
            try:
                await _request_cancel(handle)
            except RPCError as error:
                raise TemporalUnavailableError(
                    f"Temporal does not take the request to cancel batch run {entry.label} ({error.status.name}): the run goes on. "
                    f"Once the server answers: claude-batch cancel {entry.label}",
                    run=entry.label,
                ) from error


def describe_waiting(watch: Watch, own: LogEntry | None, total: Tally, *, elapsed_s: float) -> JobProgress:
    """Return where a job stands that waits, and take the notes that were not shown yet.

    Args:
        watch: The runs that it waits for.
        own: Its own one among them, None where others ask everything.
        total: What its first plan counted.
        elapsed_s: Since it began.
    """
    shown = next((run for run in watch.runs if own is None or run.entry.run_id == own.run_id), watch.runs[0])
    told, done = shown.progress, shown.done
    questions = [question for run in watch.runs if run.progress and run.done is None for question in run.progress.questions]
    message = " ".join(watch.notes) or None
    watch.notes.clear()
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
        elapsed_s=elapsed_s,
        run=shown.entry.label,
        workflow_id=workflow_id(shown.entry.run_id),
        message=message,
        question=name_root(questions[0], watch.store.uri) if questions else None,
    )


def _explain_no_worker(connection: Connection) -> str:
    if connection.start is not None:
        return (
            "The embedded worker does not answer; it is started again. Still waiting. Its log is worker.log in the root's embedded/ folder."
        )
    return (
        f"No worker polls the task queue {connection.task_queue!r} at {connection.address} (namespace {connection.namespace}); still waiting. "
        "Start one: claude-batch worker"
    )


def is_dead(owner: Owner) -> bool:
    """Tell whether a plan's owner was a process of this machine and is gone: it will not start the run any more."""
    if owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


async def _request_cancel(handle: WorkflowHandle[object, object]) -> bool:
    try:
        await handle.cancel(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


def check_end(own: LogEntry, done: DoneRecord, failure: str | None) -> None:
    """Raise where an own run is over and failed, or its counts do not add up.

    Args:
        own: The run.
        done: How it ended.
        failure: Why its workflow failed, None where it did not.
    """
    check_concluded(own, done)
    reason = done.error if done.outcome == "failed" else failure
    if done.outcome == "failed" or failure is not None:
        raise RunError(f"Batch run {own.label} failed: {reason or 'no reason was recorded'}", run=own.label)


def check_concluded(entry: LogEntry, done: DoneRecord) -> None:
    """Raise RootError where a run's own count does not add up: an answer would be missing silently."""
    if sum(done.rows.values()) != entry.keys.count:
        raise RootError(
            f"Batch run {entry.label} concluded {sum(done.rows.values()):,} of its {entry.keys.count:,} requests. Nothing was written. "
            "Please report this with the root's log/, rounds/ and submissions/."
        )


async def _describe(handle: WorkflowHandle[object, object]) -> WorkflowExecutionDescription | None:
    try:
        return await handle.describe(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def _find_cause(handle: WorkflowHandle[object, object]) -> str:
    """Return why a closed workflow failed; nothing is waited for, since it is closed."""
    try:
        await handle.result(rpc_timeout=RPC_TIMEOUT)
    except WorkflowFailureError as error:
        return find_reason(error)
    return "its workflow gave no reason."


async def _await_close(handle: WorkflowHandle[object, object]) -> None:
    """Return once a workflow closed, however, or nothing can be told of it."""
    with suppress(RPCError, WorkflowFailureError):
        await handle.result()


async def _query(handle: WorkflowHandle[object, object]) -> Progress | None:
    try:
        told: Progress = await handle.query(PROGRESS_QUERY, result_type=Progress, rpc_timeout=RPC_TIMEOUT)
        return told
    except (RPCError, WorkflowQueryFailedError):
        # Between two workers, or before the first workflow task; the next look asks again.
        return None
