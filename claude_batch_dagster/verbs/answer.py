"""Answer: a person decides what the records cannot tell, or says that what a run waits for is mended.

An answer is a record at the tip of the shard's log, put-if-absent like the machine's own: it cannot race with it.
"""

import asyncio
import uuid
from datetime import timedelta
from enum import StrEnum

from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.contract import LOOK_AGAIN_SIGNAL, PROGRESS_QUERY, Progress, workflow_id
from claude_batch_dagster.core.errand_contract import ADOPT_ID_PREFIX, ADOPT_WORKFLOW_TYPE, AdoptInput
from claude_batch_dagster.core.errors import RunError, TemporalUnavailableError, UsageError
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.submission import Closed, CloseReason, DoAsk, How, Mode, NotAccepted, Record, Unknown, next_step
from claude_batch_dagster.storage.plans import append_submission, last_round, list_submissions, read_done
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection, connect, find_reason
from claude_batch_dagster.verbs.execute import RPC_TIMEOUT

ADOPT_TIMEOUT = timedelta(minutes=31)
"""A little longer than its activity may take."""


class Choice(StrEnum):
    """What a person can answer."""

    ADOPT = "adopt"
    """This batch is the shard's."""
    RESEND = "resend"
    """The shard has no batch: send it again."""
    ABANDON = "abandon"
    """Leave the shard's rows without an answer."""
    RESUME = "resume"
    """What the run waits for is mended."""


def answer_run(
    connection: Connection, store: Store, entry: LogEntry, choice: Choice, *, shard: int | None = None, batch_id: str | None = None
) -> str:
    """Carry an answer out and wake the run; return what was done, in a sentence.

    Args:
        connection: Where its workflow runs.
        store: The root.
        entry: The run.
        choice: What is answered.
        shard: Which shard of the last round, from 0; None where only one waits.
        batch_id: To adopt.

    Raises:
        UsageError: Terminal. The run or the shard waits for no such answer.
        RunError: Terminal. The batch is not the shard's, or the shard was settled meanwhile.
        TemporalUnavailableError: Transient.
    """
    try:
        return asyncio.run(_answer(connection, store, entry, choice, shard, batch_id))
    except RPCError as error:
        raise TemporalUnavailableError(
            f"Temporal at {connection.address} does not answer ({error.status.name}). Whether batch run {entry.label} heard of the answer is not known: "
            f"claude-batch status {entry.label}"
        ) from error


async def _answer(connection: Connection, store: Store, entry: LogEntry, choice: Choice, shard: int | None, batch_id: str | None) -> str:
    done = read_done(store, entry.number)
    if done is not None:
        raise UsageError(
            f"Batch run {entry.label} has ended ({done.outcome}): it waits for no answer. Nothing was changed. See claude-batch status {entry.label}."
        )
    client = await connect(connection)
    if choice is Choice.RESUME:
        if not await _wake(client, entry):
            raise UsageError(f"No workflow of batch run {entry.label} runs. The command that started it goes on with it: run that again.")
        return f"Batch run {entry.label} looks again now."
    told = await _ask_progress(client, entry)
    round_number = last_round(store, entry).round
    undecided = [parked.shard for parked in told.parked if parked.undecided and told.round == round_number]
    if shard is None and len(undecided) == 1:
        # Others of which nobody knows the end are just being sent, or settled.
        (shard,) = undecided
    shard, slot = _find_shard(store, entry, round_number, shard)
    if choice is Choice.ADOPT:
        said = await _adopt(client, connection, store, entry, round_number, shard, batch_id or "")
    else:
        if choice is Choice.RESEND and shard not in undecided:
            raise UsageError(
                f"Shard {shard} of batch run {entry.label} is still being settled: sending it again now could pay twice. Nothing was changed. "
                f"Wait until it asks: claude-batch status {entry.label}"
            )
        said = _put_answer(store, entry, round_number, shard, slot, choice)
    if not await _wake(client, entry):
        said += " No workflow of the run is at work: the command that started it goes on with it."
    return said


def _find_shard(store: Store, entry: LogEntry, round_number: int, shard: int | None) -> tuple[int, int]:
    waiting: dict[int, int] = {}
    for (number, place), records in list_submissions(store, entry.run_id).items():
        step = next_step(records, Mode.RUN)
        if number == round_number and isinstance(step, (Unknown, DoAsk)):
            waiting[place] = step.slot
    if shard is None and len(waiting) == 1:
        (shard,) = waiting
    if shard in waiting:
        return shard, waiting[shard]
    which = f"Its shards {', '.join(map(str, sorted(waiting)))} do: name one" if waiting else "No shard of it does"
    what = f"Shard {shard}" if shard is not None else "Not exactly one shard"
    raise UsageError(
        f"{what} of batch run {entry.label} waits for an answer. {which}. Nothing was changed. See claude-batch status {entry.label}."
    )


def _put_answer(store: Store, entry: LogEntry, round_number: int, shard: int, slot: int, choice: Choice) -> str:
    record: Record
    if choice is Choice.RESEND:
        record, said = NotAccepted(why="a person found no batch of it", how=How.PERSON), "is sent again"
    else:
        record, said = (
            Closed(reason=CloseReason.ABANDONED),
            (
                "is given up: its rows stay without an answer, and the next run asks about them. A batch of it that exists after all is paid for"
            ),
        )
    if not append_submission(store, entry.run_id, round_number, shard, slot, record):
        raise RunError(
            f"Shard {shard} of batch run {entry.label} was settled meanwhile. Nothing was changed. See claude-batch status {entry.label}."
        )
    return f"Shard {shard} of batch run {entry.label} {said}."


async def _adopt(
    client: Client, connection: Connection, store: Store, entry: LogEntry, round_number: int, shard: int, batch_id: str
) -> str:
    ask = AdoptInput(root=store.uri, number=entry.number, run_id=entry.run_id, round=round_number, shard=shard, batch_id=batch_id)
    try:
        said: str = await client.execute_workflow(
            ADOPT_WORKFLOW_TYPE,
            ask,
            id=f"{ADOPT_ID_PREFIX}{uuid.uuid4()}",
            task_queue=connection.task_queue,
            result_type=str,
            execution_timeout=ADOPT_TIMEOUT,
            static_summary=f"is {batch_id} shard {shard} of {entry.label}?",
        )
    except WorkflowFailureError as error:
        raise RunError(find_reason(error)) from error
    return said


async def _wake(client: Client, entry: LogEntry) -> bool:
    """Tell the run's workflow to look again; return whether there is one."""
    try:
        await client.get_workflow_handle(workflow_id(entry.run_id)).signal(LOOK_AGAIN_SIGNAL, rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return False
    return True


async def _ask_progress(client: Client, entry: LogEntry) -> Progress:
    try:
        handle = client.get_workflow_handle(workflow_id(entry.run_id))
        told: Progress = await handle.query(PROGRESS_QUERY, result_type=Progress, rpc_timeout=RPC_TIMEOUT)
        return told
    except RPCError:
        return Progress()
