"""What an invocation did, for whoever called it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.records import DoneRecord, LogEntry, ModelUsage
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.tries import list_tried
from claude_batch_dagster.verbs.defer import Deferred
from claude_batch_dagster.verbs.publish import PublishedOutput
from claude_batch_dagster.verbs.tally import Tally, sum_tallies

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
        deferred: Set where the job was left to its runs: nothing is published yet.
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
    deferred: Deferred | None = None


def describe_result(
    store: Store,
    own: Sequence[tuple[LogEntry, DoneRecord | None]],
    *,
    tallies: Mapping[tuple[str, str | None], Tally],
    outputs: tuple[PublishedOutput, ...],
    failed_partitions: dict[str, str],
    detached: bool,
    duration_s: float,
    warnings: tuple[str, ...],
    limit: int | None,
    deferred: Deferred | None,
) -> JobResult:
    """Return what an invocation did.

    Args:
        store: The root.
        own: Its runs, with how they ended.
        tallies: Of its first plan.
        outputs: What was written.
        failed_partitions: As in the result, like all that follow.
    """
    last = own[-1][0] if own else None
    total = sum_tallies(tallies.values())
    done = [record for _, record in own if record is not None]
    usage = [line for record in done for line in record.usage]
    costs = [record.cost_nano_usd for record in done]
    rows = {"total": sum(sum(output.written.rows.values()) for output in outputs) if outputs else total.rows}
    rows |= {status: sum(output.written.rows[status] for output in outputs) for status in STATUSES}
    return JobResult(
        root=store.uri,
        run=last.label if last else None,
        run_id=last.run_id if last else None,
        workflow_id=workflow_id(last.run_id) if last else None,
        rows=rows,
        requests={
            "asked": sum(entry.keys.count for entry, _ in own),
            "already_answered": total.already_answered,
            "in_flight": total.in_flight,
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
        tallies=dict(tallies),
        failed_partitions=failed_partitions,
        detached=detached,
        duration_s=duration_s,
        warnings=warnings,
        limit=limit,
        tries={name: usage for entry, _ in own for name, usage in _tries(store, entry).items()},
        deferred=deferred,
    )


def _tries(store: Store, entry: LogEntry) -> dict[str, ModelUsage]:
    tried = list_tried(store, entry.run_id, [task.task_key for task in entry.tasks])
    names = {task.task_key: task.name for task in entry.tasks}
    return {names[task_key]: record.usage for task_key, record in tried.items() if record.usage is not None}
