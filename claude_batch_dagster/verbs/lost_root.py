"""A root that lost its records while its runs live on: who finds out, and what is done about it.

A run is in the plan log before its workflow is started. A workflow of this root that the log does not know is of a log that is gone.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.contract import WORKFLOW_TYPE
from claude_batch_dagster.core.errors import RootError, TemporalUnavailableError
from claude_batch_dagster.storage.plans import find_entry
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection

SENDING_ACTIVITIES = frozenset({"open_run", "submit"})
"""What may be creating a batch while it is under way: opening a run submits its first shard."""
SHOWN = 3
LOOK_EVERY_S = 1.0
DEFAULT_SETTLE_S = 60.0
REASON = "claude-batch recover: the root lost this run's records. What its batches answered is harvested."


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A workflow that runs for this root, and that the root's plan log does not know."""

    workflow_id: str
    label: str


async def find_orphans(client: Client, connection: Connection, store: Store) -> list[Orphan]:
    """Return the workflows whose records this root lost; none where Temporal does not let this client list them.

    Raises:
        TemporalUnavailableError: Transient. The server does not answer.
    """
    queue = connection.task_queue.replace("'", "''")
    query = f"WorkflowType = '{WORKFLOW_TYPE}' AND ExecutionStatus = 'Running' AND TaskQueue = '{queue}'"
    found = []
    try:
        async for execution in client.list_workflows(query):
            memo = await execution.memo()
            if memo.get("root") == store.uri and not _is_known(store, str(memo.get("run_id")), int(memo.get("number", 0))):
                found.append(Orphan(workflow_id=execution.id, label=f"r{memo.get('number')}"))
    except RPCError as error:
        if error.status not in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.INVALID_ARGUMENT):
            raise TemporalUnavailableError(
                f"Temporal does not say which runs of {store.uri} it has ({error.status.name}). Nothing was sent. Try again."
            ) from error
    return found


def refuse_lost_root(store: Store, orphans: Sequence[Orphan]) -> None:
    """Raise RootError where there are any: their batches are paid for, and a plan would ask for the same again."""
    if not orphans:
        return
    shown = ", ".join(orphan.workflow_id for orphan in orphans[:SHOWN]) + (", ..." if len(orphans) > SHOWN else "")
    what = "a workflow" if len(orphans) == 1 else f"{len(orphans):,} workflows"
    raise RootError(
        f"The root {store.uri} lost its records: Temporal runs {what} of it that its log does not know ({shown}). Nothing was sent: what "
        "their batches answered would be paid for again. Restore the folder, or harvest the answers with the same arguments: claude-batch recover"
    )


async def end_orphans(client: Client, orphans: Sequence[Orphan], on_note: Callable[[str], None]) -> None:
    """Terminate workflows that can do nothing more: their records are gone. What one of them is sending just now is waited out.

    Args:
        client: Of their server.
        orphans: The workflows.
        on_note: Told what is waited for.

    Raises:
        TemporalUnavailableError: Transient. The server does not answer.
    """
    was_sending = False
    for orphan in orphans:
        handle = client.get_workflow_handle(orphan.workflow_id)
        try:
            # To terminate a workflow does not stop an upload, and its batch would come after the list was read.
            while _is_sending(await handle.describe()):
                was_sending = True
                on_note(f"Batch run {orphan.label} is sending a batch; it is waited for, 30 minutes at most.")
                await asyncio.sleep(LOOK_EVERY_S)
            await handle.terminate(reason=REASON)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailableError(
                    f"The workflow {orphan.workflow_id} cannot be ended ({error.status.name}). Nothing was harvested. Try again."
                ) from error
    if was_sending:
        await asyncio.sleep(_settle_s(os.environ))


def _settle_s(environ: Mapping[str, str]) -> float:
    """Return the seconds after which a created batch is in the vendor's list, as the worker has them."""
    try:
        return float(environ.get("CLAUDE_BATCH_SETTLE_SECONDS") or DEFAULT_SETTLE_S)
    except ValueError:
        return DEFAULT_SETTLE_S


def _is_sending(described: WorkflowExecutionDescription) -> bool:
    return any(
        pending.activity_type.name in SENDING_ACTIVITIES and pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        for pending in described.raw_description.pending_activities
    )


def _is_known(store: Store, run_id: str, number: int) -> bool:
    entry = find_entry(store, f"r{number}")
    return entry is not None and entry.run_id == run_id
