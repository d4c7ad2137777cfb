"""A run as its records and, where a worker answers, its workflow tell."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from claude_batch_dagster.cli.reach import find_connection
from claude_batch_dagster.cli.wording import SIMULATED, USUAL_DURATION, batches, command, count, duration, nano_usd
from claude_batch_dagster.core.contract import PROGRESS_QUERY, Progress, workflow_id
from claude_batch_dagster.core.submission import Accepted, Closed, NotAccepted, Record, Send
from claude_batch_dagster.verbs.endpoint import SIMULATOR, name_root

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import DoneRecord, LogEntry
    from claude_batch_dagster.verbs.connection import Connection

LIVE_TIMEOUT_S = 3.0
RPC_TIMEOUT = timedelta(seconds=2)
SHOWN_SHARDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What is known of a run.

    Attributes:
        done: None while it is open.
        submissions: Shard logs by (round, shard).
        live: What its workflow tells, None where none answers.
        rounds: Why there was a further round, or none, by its number.
        workflow_url: Its page in Temporal's UI, None where none is known.
        deferred_by: The Dagster run that was deferred for it, None where none was or its answers are published.
    """

    root: str
    entry: "LogEntry"
    done: "DoneRecord | None"
    submissions: dict[tuple[int, int], list[Record]]
    live: Progress | None
    workflow_url: str | None
    rounds: dict[int, str] = field(default_factory=dict)
    deferred_by: str | None = None

    @property
    def submitted(self) -> int:
        """Batches that were created."""
        if self.done is not None:
            return self.done.batches
        return sum(isinstance(record, Accepted) for records in self.submissions.values() for record in records)

    @property
    def ended(self) -> int:
        """Batches whose shard is settled."""
        if self.done is not None:
            return self.done.batches
        return sum(
            isinstance(records[-1], Closed) and any(isinstance(one, Accepted) for one in records) for records in self.submissions.values()
        )

    @property
    def questions(self) -> list[str]:
        """What a person has to decide."""
        return list(self.live.questions) if self.live and self.done is None else []


class Records:
    """A root's runs, and the way to their workflows: tried once, since each run would wait for a server that does not answer.

    Args:
        root: The root's URI.
    """

    def __init__(self, root: str) -> None:
        from claude_batch_dagster.storage.store import Store

        self._root = root
        self._store = Store(root)
        self._connection = find_connection(root)
        self._answers = self._connection is not None

    def view(self, entry: "LogEntry", *, in_detail: bool = True) -> RunView:
        """Read a run's records, and ask its workflow where it is open and can be reached now.

        Args:
            entry: The run.
            in_detail: Whether the shard logs of a run that is over are read too.
        """
        from claude_batch_dagster.storage.deferrals import find_deferring_run
        from claude_batch_dagster.storage.plans import list_rounds, list_submissions, read_done

        done = read_done(self._store, entry.number)
        connection = self._connection
        return RunView(
            root=self._root,
            entry=entry,
            done=done,
            submissions=list_submissions(self._store, entry.run_id) if in_detail or done is None else {},
            live=self._ask(entry) if done is None else None,
            workflow_url=connection.workflow_url(workflow_id(entry.run_id)) if connection else None,
            rounds={record.round: record.why for record in list_rounds(self._store, entry) if record.why} if in_detail else {},
            deferred_by=find_deferring_run(self._store, entry.number) if in_detail else None,
        )

    def _ask(self, entry: "LogEntry") -> Progress | None:
        from claude_batch_dagster.core.errors import TemporalUnavailableError

        if self._connection is None or not self._answers:
            return None
        try:
            return asyncio.run(_ask_workflow(self._connection, entry))
        except TemporalUnavailableError:
            self._answers = False
            return None


def run_rows(views: list[RunView]) -> list[tuple[str, ...]]:
    """Return a table: the head, then a row a run."""
    rows: list[tuple[str, ...]] = [("RUN", "WHEN", "TASKS", "REQUESTS", "BATCHES", "OUTCOME", "COST")]
    for view in views:
        entry = view.entry
        rows.append(
            (
                entry.label,
                _local(entry.admitted_at),
                ", ".join(task.name for task in entry.tasks),
                f"{entry.keys.count:,}",
                f"{view.ended:,} of {view.submitted:,} ended" if view.submitted else "none yet" if view.done is None else "none",
                _outcome(view),
                _cost(view),
            )
        )
    return rows


def describe_run(view: RunView) -> list[str]:
    """Return the details of a run."""
    entry, done = view.entry, view.done
    lines = [f"Batch run {entry.label}: {_outcome(view)}" + (f"   {SIMULATED}" if entry.endpoint == SIMULATOR else "")]
    if view.live and view.live.note and done is None:
        lines.append(f"  Now       {view.live.note}")
    lines += [
        f"  Started   {_local(entry.admitted_at)} by pid {entry.owner.pid} on {entry.owner.host}, {_elapsed(view)}",
        f"  Source    {entry.source.uri}",
        f"  Tasks     {', '.join(task.name for task in entry.tasks)}",
        f"  Requests  {entry.keys.count:,} in {batches(len(entry.shards))}",
        f"  Batches   {view.submitted:,} submitted, {view.submitted - view.ended:,} in progress, {view.ended:,} ended",
    ]
    lines += [f"  Round {number}   {why}" for number, why in sorted(view.rounds.items())]
    answered = done.rows if done else view.live.counts.by_outcome if view.live else {}
    if told := ", ".join(f"{number:,} {outcome}" for outcome, number in answered.items() if number):
        lines.append(f"  Answers   {told}")
    lines += [
        f"  Cost      {_cost(view)} (planned: expected {nano_usd(entry.cost_nano_usd.expected)}, at most {nano_usd(entry.cost_nano_usd.worst)})",
        f"  Run id    {entry.run_id}",
        f"  Workflow  {view.workflow_url or workflow_id(entry.run_id)}",
        f"  Root      {view.root}",
    ]
    if view.deferred_by is not None:
        lines.append(f"  Deferred  by Dagster run {view.deferred_by}: its sensor requests the run that publishes")
    if done and done.error:
        lines.append(f"  Error     {done.error}")
    lines += [*_describe_shards(view), *_describe_questions(view), *_describe_next(view)]
    return lines


async def _ask_workflow(connection: "Connection", entry: "LogEntry") -> Progress | None:
    from temporalio.service import RPCError

    from claude_batch_dagster.verbs.connection import connect

    client = await connect(connection, timeout_s=LIVE_TIMEOUT_S)
    try:
        told: Progress = await client.get_workflow_handle(workflow_id(entry.run_id)).query(
            PROGRESS_QUERY, result_type=Progress, rpc_timeout=RPC_TIMEOUT
        )
    except RPCError:
        return None
    return told


def _outcome(view: RunView) -> str:
    if view.done is not None:
        return view.done.outcome
    if view.questions:
        return "waits for an answer"
    return "in progress" if view.live else "open, no worker answers"


def _cost(view: RunView) -> str:
    if view.done is not None:
        return nano_usd(view.done.cost_nano_usd)
    if view.live is not None:
        return f"{nano_usd(view.live.counts.cost_nano_usd)} so far"
    return f"at most {nano_usd(view.entry.cost_nano_usd.worst)}"


def _elapsed(view: RunView) -> str:
    began = datetime.fromisoformat(view.entry.admitted_at)
    if view.done is not None:
        return f"took {duration((datetime.fromisoformat(view.done.finished_at) - began).total_seconds())}"
    return f"{duration((datetime.now(UTC) - began).total_seconds())} ago, {USUAL_DURATION}"


def _describe_shards(view: RunView) -> list[str]:
    lines = [f"    {round_number}-{shard}  {_describe_shard(records)}" for (round_number, shard), records in view.submissions.items()]
    more = len(lines) - SHOWN_SHARDS
    return ["  Shards (round-shard):", *lines[:SHOWN_SHARDS], *([f"    and {more:,} more"] if more > 0 else [])] if lines else []


def _describe_shard(records: list[Record]) -> str:
    batch_id = next((f"{record.id}, " for record in reversed(records) if isinstance(record, Accepted)), "")
    tip = records[-1]
    if isinstance(tip, Accepted):
        return f"{batch_id}in progress, created {_local(tip.created_at)}"
    if isinstance(tip, Closed):
        return f"{batch_id}{tip.reason.value}"
    if isinstance(tip, NotAccepted):
        return f"not accepted: {tip.why}"
    return f"POST of {count(tip.count, 'request')} at {_local(tip.sent_at)}: its end is not known yet"


def _describe_questions(view: RunView) -> list[str]:
    if not view.questions or view.live is None:
        return []
    asked = {question: parked.shard for parked in view.live.parked for question in [parked.question]}
    lines = []
    for question in view.questions:
        records = view.submissions.get((view.live.round, asked.get(question, -1)), [])
        sent = next((record for record in reversed(records) if isinstance(record, Send)), None)
        about = f" ({count(sent.count, 'request')}, POST at {_local(sent.sent_at)})" if sent else ""
        lines.append(f"  Waits for an answer{about}: {name_root(question, view.root)}")
    return lines


def _describe_next(view: RunView) -> list[str]:
    if view.done is not None:
        return []
    label = view.entry.label
    lines = [f"  Cancel it: {command('cancel', view.root, label)}"]
    if view.live is None:
        lines.insert(
            0, "  Nobody works on it now, as far as can be seen from here. It goes on with the command that began it, typed again."
        )
    return lines


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
