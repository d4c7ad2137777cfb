"""Recover: harvest every answer of the last 29 days that belongs to a job's rows and tasks, whatever became of root and Temporal.

The client renders the wanted keys and stages them in the root; a worker, which has the key, reads the vendor's batches and stores what
is wanted. Nothing is sent to be answered, so nothing is paid; doing it again stores nothing twice.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import uuid_utils
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
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.contract import PROGRESS_QUERY
from claude_batch_dagster.core.errors import RunError, SourceError, TemporalUnavailableError
from claude_batch_dagster.core.recovery_contract import (
    RECOVER_ID_PREFIX,
    RECOVER_WORKFLOW_TYPE,
    Harvest,
    RecoverInput,
    RecoverProgress,
    WantedTask,
)
from claude_batch_dagster.core.request import short_name
from claude_batch_dagster.storage.compaction import forget_lost_responses
from claude_batch_dagster.storage.plans import read_log
from claude_batch_dagster.storage.recovered import WantedKeys, iter_wanted_keys, remove_recovery, wanted_keys_path
from claude_batch_dagster.storage.source import Source, SourceFile
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection, connect, find_reason
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.lost_root import end_orphans, find_orphans
from claude_batch_dagster.verbs.pin import pin_job_root
from claude_batch_dagster.verbs.render import iter_keys
from claude_batch_dagster.verbs.select import FileRows, select_rows
from claude_batch_dagster.verbs.subtract import read_subtractions

LOOK_EVERY_S = 0.5
NO_WORKER_AFTER_S = 15.0
RPC_TIMEOUT = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverStatus:
    """Where a recovery stands.

    Attributes:
        harvest: As far as the worker told.
        note: One sentence on what is done now.
        message: A line worth keeping, None for none.
    """

    harvest: Harvest
    note: str
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """Distinct requests of the job's rows: what the next run would do with them."""

    asked: int = 0
    already_answered: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryResult:
    """What a recovery did.

    Attributes:
        requests: Distinct requests that were looked for.
        harvest: What was found.
        before: What a run would have done before it.
        after: What a run would do now.
        ended_runs: Runs whose records were lost, and whose workflows were ended.
        left_out: Partitions that cannot be read, with the reason.
    """

    root: str
    requests: int
    harvest: Harvest
    before: Unanswered
    after: Unanswered
    ended_runs: tuple[str, ...]
    left_out: dict[str, str]
    duration_s: float


def recover_job(
    job: Job, connection: Connection, on_status: Callable[[RecoverStatus], None] | None = None, *, wait: bool = True
) -> RecoveryResult:
    """Harvest what was paid for and belongs to the job. Type it again after an interruption: it goes on.

    Args:
        job: The rows and tasks; its outputs are not touched.
        connection: Where Temporal is.
        on_status: Called whenever something changed.
        wait: Whether batches in progress are waited for; they take 24 hours at most.

    Raises:
        SourceError: Terminal. The source cannot be read as described.
        TaskError: Terminal. A slot is no column.
        RootError: Terminal. The root is another endpoint's, or cannot be written.
        RunError: Terminal. The worker gave up, and why.
        TemporalUnavailableError: Transient.
    """
    return _Recovery(job, connection, on_status, wait).run()


@dataclass(slots=True)
class _Recovery:
    job: Job
    connection: Connection
    on_status: Callable[[RecoverStatus], None] | None
    wait: bool
    store: Store = field(init=False)
    recovery_id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    left_out: dict[str, str] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    harvest: Harvest = field(default_factory=Harvest)

    def __post_init__(self) -> None:
        self.store = Store(self.job.root)

    def run(self) -> RecoveryResult:
        self._tell("rendering the rows' request keys")
        pin_job_root(self.store, self.job, write=True)
        try:
            tasks = tuple(self._stage(target, files) for files in [self._list_files()] for target in self.job.targets)
            self._accept_losses()
            before = self._count_unanswered(tasks)
            ended = asyncio.run(self._harvest(tasks))
            after = self._count_unanswered(tasks)
        finally:
            remove_recovery(self.store, self.recovery_id)
        return RecoveryResult(
            root=self.store.uri,
            requests=sum(task.count for task in tasks),
            harvest=self.harvest,
            before=before,
            after=after,
            ended_runs=ended,
            left_out=self.left_out,
            duration_s=time.monotonic() - self.began_s,
        )

    def _accept_losses(self) -> None:
        """Let the index forget response files that are gone: what they held is looked for at Anthropic."""
        for target in self.job.targets:
            lost = forget_lost_responses(self.store, self.job.endpoint, target.task.task_key)
            if lost:
                files = f"{len(lost):,} response {'file' if len(lost) == 1 else 'files'}"
                self._tell("looking for lost responses", f"{files} of {target.task.name} are gone: {', '.join(lost[:3])}.")

    def _list_files(self) -> dict[str | None, list[FileRows]]:
        source = Source(self.job.source)
        wanted = self.job.partitions if self.job.partitions is not None else source.partition_keys()
        files: dict[str | None, list[SourceFile]] = {}
        for partition in wanted:
            try:
                found = source.files_of(partition)
                sum(source.row_count(file) for file in found)
            except SourceError as error:
                if partition is None:
                    raise
                self.left_out[partition] = str(error)
            else:
                files[partition] = found
        return select_rows(source, files, self.job.limit)

    def _stage(self, target: Target, files: dict[str | None, list[FileRows]]) -> WantedTask:
        """Render the keys of the job's rows for a task, and put them where the worker finds them."""
        task = target.task
        self.store.put_if_absent(f"tasks/{task.task_key}.json", task.encode_document())
        source = Source(self.job.source)
        path = wanted_keys_path(self.recovery_id, task.task_key)
        with self.store.scratch() as scratch:
            with WantedKeys(scratch / "keys.parquet") as wanted:
                for partition, parts in files.items():
                    try:
                        for part in parts:
                            for rows in iter_keys(self.store, source, part, task):
                                wanted.add(rows.keys)
                            self._tell(f"{len(wanted):,} requests of {task.name} to look for")
                    except SourceError as error:
                        if partition is None:
                            raise
                        self.left_out[partition] = str(error)
            self.store.put_file(path, wanted.file)
        return WantedTask(name=short_name(task.name), task_key=task.task_key, keys=path, count=len(wanted))

    def _count_unanswered(self, tasks: tuple[WantedTask, ...]) -> Unanswered:
        """Tell what a run would do with the requests, as the store is now."""
        rows = max(task.count for task in tasks)
        known = read_subtractions(self.store, self.job, read_log(self.store), rows=rows, concluded_runs=(), waited_runs=())
        asked = answered = in_flight = 0
        for task in tasks:
            for keys in iter_wanted_keys(self.store, task.keys):
                split = known[task.task_key].split(keys)
                asked += int(split.asked.sum())
                answered += split.answered
                in_flight += split.in_flight
        return Unanswered(asked=asked, already_answered=answered, in_flight=in_flight)

    async def _harvest(self, tasks: tuple[WantedTask, ...]) -> tuple[str, ...]:
        client = await connect(self.connection)
        orphans = await find_orphans(client, self.connection, self.store)
        if orphans:
            # Before the list is read: what they would still send must not come after it.
            await end_orphans(client, orphans, lambda text: self._tell("ending workflows whose records are lost", text))
            self._tell(
                "ending workflows whose records are lost",
                f"Ended {len(orphans):,} workflows of this root whose records are lost: {', '.join(orphan.label for orphan in orphans)}.",
            )
        handle = await self._start(client, tasks)
        finished = False
        try:
            self.harvest = await self._wait(client, handle)
            finished = True
        finally:
            if not finished:
                await _cancel(handle)
        return tuple(orphan.label for orphan in orphans)

    async def _start(self, client: Client, tasks: tuple[WantedTask, ...]) -> "WorkflowHandle[object, Harvest]":
        # Two that store answers of the same task would write the same files: the later one takes over.
        about = hashlib.sha256("\n".join([self.store.uri, *sorted(task.task_key for task in tasks)]).encode()).hexdigest()[:16]
        try:
            return await client.start_workflow(
                RECOVER_WORKFLOW_TYPE,
                RecoverInput(root=self.store.uri, recovery_id=self.recovery_id, tasks=tasks, wait=self.wait),
                id=f"{RECOVER_ID_PREFIX}{about}",
                task_queue=self.connection.task_queue,
                result_type=Harvest,
                id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
                static_summary=f"recover answers of {', '.join(target.task.name for target in self.job.targets)}",
                static_details=f"- source: {self.job.source.uri}\n- root: {self.store.uri}",
                rpc_timeout=RPC_TIMEOUT,
            )
        except RPCError as error:
            raise TemporalUnavailableError(f"The recovery cannot be started: {error}. Nothing was changed. Try again.") from error

    async def _wait(self, client: Client, handle: "WorkflowHandle[object, Harvest]") -> Harvest:
        worker_seen_s = time.monotonic()
        while True:
            try:
                described = await handle.describe(rpc_timeout=RPC_TIMEOUT)
                if described.status not in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW):
                    return await _read_result(handle)
                if await self._has_worker(client):
                    worker_seen_s = time.monotonic()
                    if (told := await _query(handle)) is not None:
                        self.harvest = told.harvest
                        self._tell(told.note, _find_trouble(described))
                elif time.monotonic() - worker_seen_s >= NO_WORKER_AFTER_S:
                    self._tell("waiting for a worker", self._explain_no_worker())
            except RPCError as error:
                # The server may be restarting; the recovery goes on there.
                self._tell("waiting for Temporal", f"Temporal does not answer ({error.status.name}); still waiting.")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _has_worker(self, client: Client) -> bool:
        request = DescribeTaskQueueRequest(
            namespace=self.connection.namespace,
            task_queue=TaskQueue(name=self.connection.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        return bool((await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)).pollers)

    def _explain_no_worker(self) -> str:
        if self.connection.start is not None:
            return "The local worker does not answer yet; its log is worker.log in the root's embedded/ folder. Still waiting."
        return (
            f"No worker polls the task queue {self.connection.task_queue!r} at {self.connection.address} (namespace "
            f"{self.connection.namespace}); still waiting. Start one: claude-batch worker"
        )

    def _tell(self, note: str, message: str | None = None) -> None:
        if self.on_status is not None:
            self.on_status(RecoverStatus(harvest=self.harvest, note=note, message=message))


def _find_trouble(described: WorkflowExecutionDescription) -> str | None:
    """Return why the worker's last attempt failed, None where it did not."""
    failures = (
        pending.last_failure.message for pending in described.raw_description.pending_activities if pending.HasField("last_failure")
    )
    return next(failures, None)


async def _read_result(handle: "WorkflowHandle[object, Harvest]") -> Harvest:
    try:
        return await handle.result(rpc_timeout=RPC_TIMEOUT)
    except WorkflowFailureError as error:
        raise RunError(
            f"The recovery ended early: {find_reason(error)} What was harvested is kept. The same command again goes on."
        ) from error


async def _query(handle: "WorkflowHandle[object, Harvest]") -> RecoverProgress | None:
    try:
        told: RecoverProgress = await handle.query(PROGRESS_QUERY, result_type=RecoverProgress, rpc_timeout=RPC_TIMEOUT)
        return told
    except (RPCError, WorkflowQueryFailedError):
        # Between two workers, or before the first workflow task; the next look asks again.
        return None


async def _cancel(handle: "WorkflowHandle[object, Harvest]") -> None:
    try:
        await handle.cancel(rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
