"""Doctor: what a run would need, looked at one by one, each with what to do about it. Starts no run, stops none, costs nothing.

The client's side is looked at here; what needs the key, a worker looks at (`DoctorWorkflow`). Whatever is down is a finding, never an
exception, and every wait is bounded: all of it ends within 40 s.
"""

import asyncio
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, GetSystemInfoRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import TimeoutError as TimeoutFailure
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errand_contract import DOCTOR_ID_PREFIX, DOCTOR_WORKFLOW_TYPE, DoctorInput, DoctorReport
from claude_batch_dagster.core.errors import ClaudeBatchError, CredentialsError, RootError, TransientError
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.storage.plans import read_root
from claude_batch_dagster.storage.probe import (
    PRODUCT,
    Token,
    call_within,
    describe_versions,
    examine_space,
    read_versions,
    remove_token,
    write_token,
)
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection, connect
from claude_batch_dagster.verbs.endpoint import resolve_endpoint

T = TypeVar("T")

DEADLINE_S = 37.0
ROOT_TIMEOUT_S = 8.0
ENDPOINT_TIMEOUT_S = 4.0
START_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 5.0
REPORT_TIMEOUT_S = 24.0
RPC_TIMEOUT = timedelta(seconds=4)
POLLERS_WAIT_S = 3.0
POLLERS_PAUSE_S = 0.5
# A poll of a living worker lasts a minute; the server lists pollers for five.
POLLER_LIVES_S = 90.0
DISTRIBUTIONS = (PRODUCT, "temporalio", "dagster")
WORKER_DISK = "worker disk"


async def examine(
    root: str,
    connection: Connection,
    models: Sequence[str] = (),
    *,
    simulate: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Finding, ...]:
    """Return what was found, in the order in which a person would mend it; never raises for what is broken.

    Args:
        root: URI of the root that the records are in (`root_for`).
        connection: Where Temporal is; an embedded server that is not started yet is started.
        models: Models to ask the Message Batches API for.
        simulate: Whether work would be simulated whatever the environment says.
        environ: The environment that a run would have.
    """
    return await _Doctor(Store(root), connection, tuple(models), simulate, environ).examine()


@dataclass(slots=True)
class _Doctor:
    store: Store
    connection: Connection
    models: tuple[str, ...]
    simulate: bool
    environ: Mapping[str, str]
    began_s: float = field(default_factory=time.monotonic)

    async def examine(self) -> tuple[Finding, ...]:
        versions = read_versions(*DISTRIBUTIONS)
        here = Finding(name="client", status=Health.OK, detail=describe_versions(versions))
        endpoint = await asyncio.to_thread(self._examine_endpoint)
        reaching = _needs_key() if endpoint.lacks_key else self._reach_temporal()
        root, reached = await asyncio.gather(asyncio.to_thread(self._examine_root), reaching)
        findings = [here, endpoint.finding, root.finding, *self._compare_pins(root.record, endpoint.name)]
        try:
            findings += await asyncio.to_thread(examine_space, "disk", self.store.folder)
            findings.append(reached.finding)
            if reached.client is not None:
                findings += await self._examine_worker(reached.client, versions, endpoint.name, root.token)
        finally:
            if root.token is not None:
                await asyncio.to_thread(self._remove, root.token)
        return tuple(findings)

    def _examine_endpoint(self) -> "_EndpointView":
        needs_key = not self.connection.external
        try:
            name = call_within(
                ENDPOINT_TIMEOUT_S, lambda: resolve_endpoint(simulate=self.simulate, environ=self.environ, needs_key=needs_key)
            )
        except CredentialsError:
            detail = "There is no API key: ANTHROPIC_API_KEY is not set."
            remedy = "export ANTHROPIC_API_KEY=sk-ant-..., or CLAUDE_BATCH_SIMULATE=1 to try without a key and without cost."
            return _EndpointView(finding=Finding(name="endpoint", status=Health.FAIL, detail=detail, remedy=remedy), lacks_key=True)
        except TransientError as error:
            remedy = "The same address has to answer the worker."
            return _EndpointView(finding=Finding(name="endpoint", status=Health.FAIL, detail=str(error), remedy=remedy))
        if name is None:
            detail = f"ANTHROPIC_BASE_URL did not answer within {ENDPOINT_TIMEOUT_S:.0f} s."
            remedy = "Check the address and this machine's proxy."
            return _EndpointView(finding=Finding(name="endpoint", status=Health.FAIL, detail=detail, remedy=remedy))
        return _EndpointView(finding=Finding(name="endpoint", status=Health.OK, detail=f"Work goes to {name!r}."), name=name)

    def _examine_root(self) -> "_RootView":
        try:
            view = call_within(ROOT_TIMEOUT_S, lambda: _look_at_root(self.store))
        except (RootError, TransientError) as error:
            return _RootView(finding=_unusable_root(str(error)))
        except msgspec.DecodeError as error:
            return _RootView(finding=_unusable_root(f"{self.store.uri}/root.json cannot be read: {error}.", "Restore the folder."))
        return view or _RootView(finding=_unusable_root(f"{self.store.uri} did not answer within {ROOT_TIMEOUT_S:.0f} s."))

    def _compare_pins(self, record: RootRecord | None, endpoint: str | None) -> list[Finding]:
        if record is None:
            return []
        namespace = self.connection.namespace
        detail = f"The root is pinned to the endpoint {record.endpoint!r} and the Temporal namespace {record.temporal_namespace!r}"
        if endpoint is not None and record.endpoint != endpoint:
            remedy = "Use another root (CLAUDE_BATCH_ROOT), or correct ANTHROPIC_BASE_URL and CLAUDE_BATCH_SIMULATE."
            return [Finding(name="pin", status=Health.FAIL, detail=f"{detail}, work would go to {endpoint!r}.", remedy=remedy)]
        if record.temporal_namespace != namespace:
            remedy = "Set TEMPORAL_NAMESPACE to the root's, or use another root (CLAUDE_BATCH_ROOT)."
            return [Finding(name="pin", status=Health.FAIL, detail=f"{detail}, this environment says {namespace!r}.", remedy=remedy)]
        return [Finding(name="pin", status=Health.OK, detail=f"{detail}.")]

    async def _reach_temporal(self) -> "_Reached":
        try:
            if self.connection.start is not None and await _within(START_TIMEOUT_S, self.connection.start) is None:
                return self._unreachable(f"The embedded Temporal server was not ready within {START_TIMEOUT_S:.0f} s.")
            # The client waits inside one attempt as long as it likes.
            client = await asyncio.wait_for(connect(self.connection, CONNECT_TIMEOUT_S), CONNECT_TIMEOUT_S + 2)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=RPC_TIMEOUT)
        except (TimeoutError, ClaudeBatchError) as error:
            return self._unreachable(self._describe_silence(error))
        except RPCError as error:
            return self._unreachable(f"{self.connection.address} does not say what it is: {error.status.name}.")
        address = client.service_client.config.target_host
        detail = f"Temporal {info.server_version} at {address}, namespace {self.connection.namespace}."
        return _Reached(finding=Finding(name="temporal", status=Health.OK, detail=detail), client=client)

    def _describe_silence(self, error: Exception) -> str:
        if self.connection.start is not None:
            return str(error)
        # The client's errors nest several layers; the innermost says why.
        reasons = re.findall(r'message: "([^"]+)"', str(error)) or [str(error.__cause__ or "no reply").partition("\n")[0][:200]]
        place = f"{self.connection.address} (namespace {self.connection.namespace})"
        return f"No Temporal server answers at {place} within {CONNECT_TIMEOUT_S:.0f} s: {reasons[-1]}."

    def _unreachable(self, detail: str) -> "_Reached":
        if self.connection.start is None:
            remedy = "Start the server, or correct TEMPORAL_ADDRESS; unset, a local server is started."
        else:
            remedy = "Look into *.log in the root's embedded/ folder, or set TEMPORAL_ADDRESS to a server of your own."
        return _Reached(finding=Finding(name="temporal", status=Health.FAIL, detail=detail, remedy=remedy))

    async def _examine_worker(
        self, client: Client, versions: Mapping[str, str], endpoint: str | None, token: Token | None
    ) -> list[Finding]:
        queue = f"the task queue {self.connection.task_queue!r} in the namespace {self.connection.namespace!r}"
        try:
            pollers = await self._list_pollers(client)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                detail, remedy = f"There is no namespace {self.connection.namespace!r}.", "Create it, or correct TEMPORAL_NAMESPACE."
            else:
                detail, remedy = f"Temporal does not tell who polls {queue}: {error.status.name}.", "Check the permissions of this client."
            return [Finding(name="workers", status=Health.FAIL, detail=detail, remedy=remedy)]
        if not pollers:
            remedy = "Start one: claude-batch worker, with the same TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE and CLAUDE_BATCH_TASK_QUEUE."
            return [Finding(name="workers", status=Health.FAIL, detail=f"No worker polls {queue}.", remedy=remedy)]
        workers = Finding(name="workers", status=Health.OK, detail=f"{len(pollers)} on {queue}: {', '.join(pollers)}.")
        left_s = max(1.0, min(REPORT_TIMEOUT_S, self.began_s + DEADLINE_S - time.monotonic()))
        ask = DoctorInput(root=self.store.uri, models=self.models, endpoint=endpoint, token=token.path if token else None)
        try:
            report = await self._ask_worker(client, ask, left_s)
        except (TimeoutError, WorkflowFailureError, RPCError) as error:
            return [workers, _unanswered(error, left_s)]
        # An embedded worker is on this machine: its disks were looked at.
        found = [finding for finding in report.findings if self.connection.external or finding.name != WORKER_DISK]
        return [workers, *found, compare_versions(versions[PRODUCT], report.versions.get(PRODUCT))]

    async def _list_pollers(self, client: Client) -> list[str]:
        request = DescribeTaskQueueRequest(
            namespace=self.connection.namespace,
            task_queue=TaskQueue(name=self.connection.task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        until_s = time.monotonic() + POLLERS_WAIT_S
        while True:
            found = await client.workflow_service.describe_task_queue(request, timeout=RPC_TIMEOUT)
            living = live_pollers(found.pollers, datetime.now(UTC))
            if living or time.monotonic() >= until_s:
                return living
            await asyncio.sleep(POLLERS_PAUSE_S)

    async def _ask_worker(self, client: Client, ask: DoctorInput, timeout_s: float) -> DoctorReport:
        handle = await client.start_workflow(
            DOCTOR_WORKFLOW_TYPE,
            ask,
            id=f"{DOCTOR_ID_PREFIX}{uuid.uuid4()}",
            task_queue=self.connection.task_queue,
            result_type=DoctorReport,
            # Nobody reads its result later: one that no worker takes ends by itself.
            execution_timeout=timedelta(seconds=timeout_s),
            static_summary="claude-batch doctor",
            rpc_timeout=RPC_TIMEOUT,
        )
        report: DoctorReport = await asyncio.wait_for(handle.result(), timeout_s)
        return report

    def _remove(self, token: Token) -> None:
        try:
            call_within(ROOT_TIMEOUT_S / 2, lambda: remove_token(self.store, token))
        except (RootError, TransientError):
            # An object of 12 bytes below doctor/ stays; that the root does not delete is a finding of the worker's.
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndpointView:
    finding: Finding
    name: str | None = None
    lacks_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _RootView:
    finding: Finding
    record: RootRecord | None = None
    token: Token | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reached:
    finding: Finding
    client: Client | None = None


def compare_versions(client: str, worker: str | None) -> Finding:
    """Say whether client and worker are of the same release."""
    if worker == client:
        return Finding(name="versions", status=Health.OK, detail=f"Client and worker are both {PRODUCT} {client}.")
    return Finding(
        name="versions",
        status=Health.WARN,
        detail=f"The client is {PRODUCT} {client}, the worker is {worker or 'of a version that it does not tell'}.",
        remedy="Install the same version on both sides, workers first.",
    )


def live_pollers(pollers: Sequence[PollerInfo], now: datetime) -> list[str]:
    """Return the identities of those that polled lately, sorted; the server also lists the dead of the last minutes."""
    return sorted(
        {poller.identity for poller in pollers if (now - poller.last_access_time.ToDatetime(tzinfo=UTC)).total_seconds() <= POLLER_LIVES_S}
    )


def _unanswered(error: Exception, waited_s: float) -> Finding:
    cause = error.cause if isinstance(error, WorkflowFailureError) else None
    if isinstance(error, RPCError):
        detail, remedy = f"A worker cannot be asked: {error.status.name}.", "Check the permissions of this client."
    elif cause is None or isinstance(cause, TimeoutFailure):
        detail, remedy = f"No worker answered within {waited_s:.0f} s.", "Look into the worker's log; restart it if it is stuck or older."
    else:
        detail, remedy = f"The worker failed: {cause}.", "Look into the worker's log, and install the same version on both sides."
    return Finding(name="worker", status=Health.FAIL, detail=detail, remedy=remedy)


async def _needs_key() -> _Reached:
    detail = "Not looked at: the local server starts together with its worker, which needs the key."
    return _Reached(finding=Finding(name="temporal", status=Health.WARN, detail=detail))


async def _within(timeout_s: float, work: Callable[[], T]) -> T | None:
    return await asyncio.to_thread(call_within, timeout_s, work)


def _look_at_root(store: Store) -> _RootView:
    record = read_root(store)
    token = write_token(store)
    state = "pinned" if record else "not used yet"
    return _RootView(
        finding=Finding(name="root", status=Health.OK, detail=f"{store.uri} can be read and written ({state})."), record=record, token=token
    )


def _unusable_root(detail: str, remedy: str = "Or name another root: CLAUDE_BATCH_ROOT.") -> Finding:
    return Finding(name="root", status=Health.FAIL, detail=detail, remedy=remedy)
