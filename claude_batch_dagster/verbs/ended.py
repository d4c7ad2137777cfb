"""Look at what was deferred: which jobs may be collected, and which wait for a person. A bounded number of calls, however many there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.client import Client
from temporalio.service import RPCError

from claude_batch_dagster.core.contract import QUESTION_MEMO, WORKFLOW_TYPE
from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.core.records import AwaitedRun, DeferralRecord
from claude_batch_dagster.storage.deferrals import number_of, read_deferral
from claude_batch_dagster.storage.plans import done_numbers
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection, connect
from claude_batch_dagster.verbs.defer import Deferral
from claude_batch_dagster.verbs.endpoint import name_root
from claude_batch_dagster.verbs.execute import is_dead

MOST_READ = 100
"""So many deferrals are read in one look; the next one goes on behind them."""
PAGE_SIZE = 1_000
CONNECT_TIMEOUT_S = 5.0
RPC_TIMEOUT = timedelta(seconds=10)
LISTED_AFTER_S = 60.0
"""So long a workflow that was just started may be missing in Temporal's list."""
OVERDUE_AFTER = timedelta(hours=1)
"""So long after it should have left, a run that nobody can be asked about was killed. Where it was not, its answers are published twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A deferred job's run that waits for a person."""

    deferral: Deferral
    run: AwaitedRun
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look found.

    Attributes:
        deferred: How many jobs are deferred.
        ended: Those whose runs are over.
        idle: Those with a run that is not over and has no workflow: it is settled by who collects.
        questions: One for each run that asks.
        after: Where the next look goes on, None for from the beginning.
    """

    deferred: int
    ended: tuple[Deferral, ...] = ()
    idle: tuple[Deferral, ...] = ()
    questions: tuple[Question, ...] = ()
    after: str | None = None


async def list_running(connection: Connection, root: str) -> dict[int, str]:
    """Return the root's runs whose workflow runs, by number, each with what it asks a person: empty for nothing.

    One call for each 1,000 workflows that run on the task queue.

    Raises:
        TemporalUnavailableError: Transient. The server does not answer, or does not let this client list.
    """
    client = await connect(connection, timeout_s=CONNECT_TIMEOUT_S)
    try:
        return await _list_running(client, connection, root)
    except RPCError as error:
        raise TemporalUnavailableError(
            f"Temporal at {connection.address} does not list its workflows ({error.status.name}). It is asked again with the next tick; look at the server if this stays.",
            address=connection.address,
        ) from error


async def _list_running(client: Client, connection: Connection, root: str) -> dict[int, str]:
    queue = connection.task_queue.replace("'", "''")
    query = f"WorkflowType = '{WORKFLOW_TYPE}' AND ExecutionStatus = 'Running' AND TaskQueue = '{queue}'"
    found: dict[int, str] = {}
    async for execution in client.list_workflows(query, page_size=PAGE_SIZE, rpc_timeout=RPC_TIMEOUT):
        memo = await execution.memo()
        if memo.get("root") == root:
            found[int(memo.get("number", 0))] = str(memo.get(QUESTION_MEMO) or "")
    return found


def look_at_deferrals(
    store: Store,
    names: Sequence[str],
    running: Mapping[int, str] | None,
    *,
    after: str | None = None,
    most: int = MOST_READ,
    has_ended: Callable[[str], bool] = lambda _: False,
) -> Look:
    """Return what may be collected, and what waits for a person.

    Args:
        store: The root.
        names: Of all deferrals, listed before `running` was: a run that starts in between is in both or in neither.
        running: The runs whose workflow runs, with their question; None where Temporal cannot be asked: then `done/` tells alone.
        after: Where the last look ended.
        most: So many deferrals are read.
        has_ended: Tells whether a Dagster run is known to have ended.
    """
    done = done_numbers(store)
    telling = [name for name in names if number_of(name) in done or _tells(number_of(name), running)]
    later = [name for name in telling if after is not None and name > after]
    # From the beginning again once the end is reached.
    turn = (later + [name for name in telling if name not in set(later)])[:most]
    ended: list[Deferral] = []
    idle: list[Deferral] = []
    questions: dict[tuple[int, str], Question] = {}
    for name in turn:
        record = read_deferral(store, name)
        if record is None or not _has_left(record, has_ended):
            continue
        deferral = Deferral(name=name, record=record)
        waits = [run for run in record.runs if run.number not in done]
        if not waits:
            ended.append(deferral)
        elif (
            running is not None
            and _is_over(record.deferred_at, timedelta(seconds=LISTED_AFTER_S))
            and any(run.number not in running for run in waits)
        ):
            idle.append(deferral)
        for run in waits:
            if text := (running or {}).get(run.number):
                questions.setdefault((run.number, text), Question(deferral=deferral, run=run, text=name_root(text, store.uri)))
    return Look(
        deferred=len(names),
        ended=tuple(ended),
        idle=tuple(idle),
        questions=tuple(questions.values()),
        after=turn[-1] if len(turn) < len(telling) else None,
    )


def _has_left(record: DeferralRecord, has_ended: Callable[[str], bool]) -> bool:
    """Tell whether a run left its batch runs, or was killed before it could."""
    if record.intent is None or is_dead(record.intent.owner):
        return True
    run_id = record.dagster_run_id
    return (run_id is not None and has_ended(run_id)) or _is_over(record.intent.leaves_at, OVERDUE_AFTER)


def _is_over(since: str, patience: timedelta) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(since) >= patience


def _tells(number: int, running: Mapping[int, str] | None) -> bool:
    return running is not None and bool(number not in running or running[number])
