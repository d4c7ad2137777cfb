"""`@claude_batch_assets`: one asset for each task, all asked in one plan.

The specs carry what the body needs to know (source, tasks, columns), so that `claude_batch.run(context)` takes nothing else.
"""

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import dagster as dg

from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.prompt_function import name_function
from claude_batch_dagster.core.status import STATUS_DESCRIPTIONS
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset

IO_MANAGER_KEY = "claude_batch_io_manager"
TASK_METADATA_KEY = "claude_batch/task"
CHECK_NAME = "rows_answered"
KINDS = ("claude", "parquet")
SHOWN_WIDTH = 92
# Each has a default, so that what a step gets always has all of them.
RUN_CONFIG: Mapping[str, dg.Field] = {
    "limit": dg.Field(
        dg.Noneable(int),
        default_value=None,
        description="Only the source's first rows, so many in all. They are not paid again in the full run. null: as the resource says.",
    ),
    "ask_again": dg.Field(
        [dg.Any],
        default_value=[],
        description="Keys of rows that are asked again though they are answered; several key columns are joined by commas.",
    ),
    "retry_failed": dg.Field(bool, default_value=False, description="Ask again the rows that failed for good."),
    "replace": dg.Field(
        dg.Noneable(bool),
        default_value=None,
        description="Write over another endpoint's answers, or over all rows with a limit. null: as the resource says.",
    ),
    "max_cost_usd": dg.Field(
        dg.Noneable(float),
        default_value=None,
        description="What this run may cost in the worst case, in USD. null: as the resource says.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAsset:
    """What one asset asks about which rows.

    Attributes:
        task: What is asked.
        source: The rows.
        columns: What is carried from the source: "key", "all" or names.
        fail_above: Share of failed rows, 0 to 1, above which nothing is published; None for never.
    """

    task: ClaudeTask
    source: ParquetDataset
    columns: str | tuple[str, ...]
    fail_above: float | None = None


class AskedAssetText(str):
    """The value of the spec's metadata `claude_batch/task`: a line for people that brings the AskedAsset along.

    Dagster keeps a spec's metadata as it was given and shows any string as it is, so this needs no registry beside the definitions.
    """

    asked: AskedAsset

    def __new__(cls, asked: AskedAsset) -> "AskedAssetText":
        """Make the line."""
        text = super().__new__(cls, f"{asked.task.kind} by {asked.task.model}, over {asked.source.uri}")
        text.asked = asked
        return text


def claude_batch_assets(
    *,
    source: ParquetDataset,
    tasks: Sequence[ClaudeTask],
    columns: str | Sequence[str] = "key",
    fail_above: float | None = None,
    partitions_def: "dg.PartitionsDefinition[str] | None" = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    name: str | None = None,
    key_prefix: str | Sequence[str] | None = None,
    group_name: str | None = None,
    owners: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    automation_condition: "dg.AutomationCondition[Any] | None" = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Define one asset for each task; the body is `yield from claude_batch.run(context)`.

    Each asset has a check, `rows_answered`, that warns where rows ended without an answer. Any subset of the tasks can be
    materialized. A range of partitions is one run, packed into shared batches and published per partition.

    One run is told otherwise in its config (in the UI: Materialize, Open launchpad), which wins over the resource:

        ops:
          review_insights:        # the body's name
            config:
              limit: 20           # only the first 20 rows
              ask_again: [17, 23] # keys of rows that are asked again
              retry_failed: true  # ask again what failed for good
              replace: true
              max_cost_usd: 25

    A body with a `config` argument of its own has that config instead. Leave `resources:` out of the run config: Dagster would
    replace the resource whole, its root too.

    Args:
        source: The rows, and the asset that writes them.
        tasks: What is asked about each row; a task's name is the last part of its asset's key.
        columns: What the outputs carry from the source: "key", "all" or names.
        fail_above: Share of failed rows, 0 to 1, above which a run fails and publishes nothing: the table that is there stays. None: a
            run succeeds whatever became of its rows, and the check warns.
        partitions_def: Its keys are the values of the source's `partition_column`. None for one output of all rows.
        backfill_policy: Of the range of a backfill; a single run unless told otherwise.
        name: Of the op; the body's name unless told otherwise.
        key_prefix: Before the tasks' names in the assets' keys.
        group_name: Of all assets.
        owners: Of all assets.
        tags: Of all assets.
        op_tags: Of the op, for the run's launcher.
        pool: That the op takes a slot of while it waits.
        retry_policy: Of the op; what cannot end differently is not retried.
        automation_condition: Of all assets.

    Raises:
        UsageError: Terminal. No tasks, two of one name, an `async` body, or partitions without a partition column or the other way round.
    """
    carried = columns if isinstance(columns, str) else tuple(columns)
    asked = [AskedAsset(task=task, source=source, columns=carried, fail_above=fail_above) for task in tasks]
    _refuse_contradictions(asked, source, columns, partitions_def)
    prefix = [key_prefix] if isinstance(key_prefix, str) else list(key_prefix or ())
    specs = [
        dg.AssetSpec(
            [*prefix, one.task.name],
            deps=[] if source.asset is None else [source.asset],
            description=_describe(one),
            metadata={TASK_METADATA_KEY: AskedAssetText(one)},
            skippable=True,
            group_name=group_name,
            code_version=one.task.task_key,
            automation_condition=automation_condition,
            owners=owners,
            tags=tags,
            kinds=set(KINDS),
            partitions_def=partitions_def,
        ).with_io_manager_key(IO_MANAGER_KEY)
        for one in asked
    ]
    if backfill_policy is None and partitions_def is not None:
        backfill_policy = dg.BackfillPolicy.single_run()

    def define(body: Callable[..., Any]) -> dg.AssetsDefinition:
        if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
            raise UsageError(
                f"{body.__qualname__} is async. Dagster cannot stop an async body in order, so terminating the run would leave its batches "
                "at the API. Write `def` and `yield from claude_batch.run(context)`."
            )
        return dg.multi_asset(
            name=name,
            specs=specs,
            check_specs=[
                dg.AssetCheckSpec(CHECK_NAME, asset=spec.key, description="Every row has an answer, a refusal or nothing to ask about.")
                for spec in specs
            ],
            can_subset=True,
            config_schema=None if "config" in inspect.signature(body).parameters else dict(RUN_CONFIG),
            partitions_def=partitions_def,
            backfill_policy=backfill_policy,
            op_tags=op_tags,
            pool=pool,
            retry_policy=retry_policy,
        )(_refuse_lost_events(body))

    return define


def asked_assets(definition: dg.AssetsDefinition) -> dict[dg.AssetKey, AskedAsset]:
    """Return what each asset of a definition asks.

    Raises:
        UsageError: Terminal. The definition was not made by `claude_batch_assets`.
    """
    found = {key: metadata.get(TASK_METADATA_KEY) for key, metadata in definition.metadata_by_key.items()}
    asked = {key: text.asked for key, text in found.items() if isinstance(text, AskedAssetText)}
    if not asked or len(asked) < len(found):
        strange = ", ".join(sorted(key.to_user_string() for key in found if key not in asked))
        raise UsageError(
            f"claude_batch.run() was called for {strange or 'no asset'}, whose metadata has no {TASK_METADATA_KEY}. Nothing was sent. "
            "Define the assets with @claude_batch_assets, and keep that entry where specs are changed afterwards."
        )
    return asked


def _refuse_lost_events(body: Callable[..., Any]) -> Callable[..., Iterator[object]]:
    """Let a body fail that drops the events of `run`: Dagster would take its None for a materialization of nothing."""

    @wraps(body)
    def checked(*arguments: Any, **named: Any) -> Iterator[object]:
        events = body(*arguments, **named)
        if not isinstance(events, Iterator):
            raise _lost_events(body, "returned", events)
        for event in events:
            if isinstance(event, Iterator):
                raise _lost_events(body, "yielded", event)
            yield event

    return checked


def _lost_events(body: Callable[..., Any], what: str, value: object) -> dg.Failure:
    kind = "None" if value is None else f"a {type(value).__name__}"
    return dg.Failure(
        description=f"{body.__qualname__} {what} {kind}, not the events of claude_batch.run(context). Nothing was materialized. "
        "Write: yield from claude_batch.run(context)",
        allow_retries=False,
    )


def _refuse_contradictions(
    asked: Sequence[AskedAsset], source: ParquetDataset, columns: str | Sequence[str], partitions_def: "dg.PartitionsDefinition[str] | None"
) -> None:
    if not asked:
        raise UsageError("claude_batch_assets has no tasks, so there is nothing to ask. Give it at least one.")
    twice = [name for name, count in Counter(one.task.name for one in asked).items() if count > 1]
    if twice:
        raise UsageError(f"claude_batch_assets has two tasks named {twice[0]!r}. A task's name is its asset's key: rename one.")
    if isinstance(columns, str) and columns not in ("key", "all"):
        raise UsageError(f'claude_batch_assets has columns={columns!r}. Write "key", "all" or a list of names: columns=[{columns!r}].')
    for one in asked:
        _refuse_collisions(one)
    fail_above = asked[0].fail_above
    if fail_above is not None and not 0 <= fail_above <= 1:
        raise UsageError(
            f"claude_batch_assets has fail_above={fail_above}; it is a share of the rows, 0 to 1. For 5 % of them: fail_above=0.05."
        )
    if partitions_def is None:
        if source.partition_column is not None:
            raise UsageError(
                f"The source {source.path} has partition_column={source.partition_column!r}, and claude_batch_assets has no partitions_def: every "
                "materialization would ask about all of its partitions. Add a partitions_def whose keys are the values of "
                f"{source.partition_column!r}, or leave partition_column out for one output of all rows."
            )
        return
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        raise UsageError(
            "claude_batch_assets has a MultiPartitionsDefinition; a source has one partition column. Use one of its dimensions."
        )
    if source.partition_column is None:
        raise UsageError(
            f"claude_batch_assets has a partitions_def, but the source {source.path} has no partition_column. Name the hive column whose "
            'values are the partition keys, for instance ParquetDataset(..., partition_column="day").'
        )


def _refuse_collisions(asked: AskedAsset) -> None:
    """Refuse columns of one name as far as they are known before the source is read; the plan does for the rest."""
    source = asked.source
    named = {"key": source.key_columns, "all": ()}.get(asked.columns, ()) if isinstance(asked.columns, str) else asked.columns
    names = (
        [name for name in named if name != source.partition_column]
        + [field.name for field in asked.task.fields]
        + list(STATUS_DESCRIPTIONS)
    )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"The output of {asked.task.name!r} would have two columns named {twice[0]!r}: carried from the source, defined by the task, or one of this "
            "tool's own. Carry fewer columns, or rename the task's field."
        )


def _describe(asked: AskedAsset) -> str:
    task = asked.task
    about = f"`{task.column}`" if task.column else "each row"
    what = {"summarize": f"A summary of {about}", "moderate": f"A moderation label for {about}"}.get(task.kind, f"An answer about {about}")
    # Dagster's UI does not wrap a code block.
    instructions = "\n".join(textwrap.fill(line, SHOWN_WIDTH) for line in (task.system or _show_prompt(task)).splitlines())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", instructions)), default=0))
    return (
        f"{what}, by {task.model} through the Message Batches API: one row for each row of `{asked.source.path}`, with its status, tokens "
        f"and cost.\n\n{fence}text\n{instructions}\n{fence}"
    )


def _show_prompt(task: ClaudeTask) -> str:
    return task.prompt if isinstance(task.prompt, str) else f"{name_function(task.prompt)}(row), version {task.version}"
