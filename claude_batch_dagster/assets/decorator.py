"""`@claude_batch_assets`: one asset for each task, all asked in one plan.

The specs carry what the body needs to know (source, tasks, columns), so that `claude_batch.run(context)` takes nothing else.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import wraps
from importlib.metadata import version
from typing import Any

import dagster as dg

from claude_batch_dagster.assets.arguments import refuse_strange_kinds
from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.assets.translator import (
    ClaudeBatchTranslator,
    ClaudeBatchTranslatorData,
    add_code_references,
    place_of,
    translate,
)
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.status import STATUS_DESCRIPTIONS
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import Dataset, ParquetDataset

# What a code location says it is made of. Dagster imports this name, and does not declare that it exports it.
dg.DagsterLibraryRegistry.register(  # type: ignore[attr-defined]
    "claude-batch-dagster", version("claude-batch-dagster"), is_dagster_package=False
)

CHECK_NAME = "rows_answered"
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


def claude_batch_assets(
    *,
    source: Dataset,
    tasks: Sequence[ClaudeTask],
    columns: str | Sequence[str] = "key",
    fail_above: float | None = None,
    wait_for: timedelta | None = None,
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
    freshness_policy: dg.FreshnessPolicy | None = None,
    translator: ClaudeBatchTranslator | None = None,
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

    A body with a `config` argument of its own has that config instead; what has one of these names in it means the same. Leave `resources:`
    out of the run config: Dagster would replace the resource whole, its root too.

    Args:
        source: The rows, and the asset that writes them.
        tasks: What is asked about each row; a task's name is the last part of its asset's key.
        columns: What the outputs carry from the source: "key", "all" or names.
        fail_above: Share of failed rows, 0 to 1, above which a run fails and publishes nothing: the table that is there stays. None: a
            run succeeds whatever became of its rows, and the check warns.
        wait_for: How long a run waits for its batches. One that has waited so long ends well without a materialization, and
            `build_claude_batch_sensor` requests the run that publishes once the batches are over. `timedelta(0)` never waits, None waits
            to the end; a run of a backfill waits in any case.
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
        freshness_policy: Of all assets.
        translator: Makes the specs of the assets; what it changes wins over the arguments here.

    Raises:
        UsageError: Terminal. No tasks, two of one name, an `async` body, an argument of another kind, a prompt without a slot, or
            partitions without a partition column or the other way round; or a translator whose specs lack what the body needs.
    """
    specs = build_claude_batch_asset_specs(
        source=source,
        tasks=tasks,
        columns=columns,
        fail_above=fail_above,
        wait_for=wait_for,
        partitions_def=partitions_def,
        key_prefix=key_prefix,
        group_name=group_name,
        owners=owners,
        tags=tags,
        automation_condition=automation_condition,
        freshness_policy=freshness_policy,
        translator=translator,
    )

    def define(body: Callable[..., Any]) -> dg.AssetsDefinition:
        return define_assets(
            body,
            [add_code_references(spec, place_of(body)) for spec in specs],
            name=name,
            partitions_def=partitions_def,
            backfill_policy=backfill_policy,
            op_tags=op_tags,
            pool=pool,
            retry_policy=retry_policy,
        )

    return define


def build_claude_batch_asset_specs(
    *,
    source: Dataset,
    tasks: Sequence[ClaudeTask],
    columns: str | Sequence[str] = "key",
    fail_above: float | None = None,
    wait_for: timedelta | None = None,
    partitions_def: "dg.PartitionsDefinition[str] | None" = None,
    key_prefix: str | Sequence[str] | None = None,
    group_name: str | None = None,
    owners: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    automation_condition: "dg.AutomationCondition[Any] | None" = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
    translator: ClaudeBatchTranslator | None = None,
) -> list[dg.AssetSpec]:
    """Return the specs that `claude_batch_assets` would define, one for each task, and define nothing.

    For a code location that only names the assets of another, and for `@dg.multi_asset(specs=..., can_subset=True)` with a body of
    one's own around `yield from claude_batch.run(context)`. The arguments are those of `claude_batch_assets`. Definitions of these
    specs alone need the resource `claude_batch_io_manager` too, with which downstream assets load.

    Raises:
        UsageError: Terminal. As `claude_batch_assets`.
    """
    refuse_strange_kinds(source, tasks, fail_above, wait_for)
    carried = columns if isinstance(columns, str) else tuple(columns)
    data = [
        ClaudeBatchTranslatorData(
            task=task,
            source=source,
            columns=carried,
            fail_above=fail_above,
            wait_for=wait_for,
            partitions_def=partitions_def,
            key_prefix=(key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix or ()),
            group_name=group_name,
            owners=None if owners is None else tuple(owners),
            tags=tags,
            automation_condition=automation_condition,
            freshness_policy=freshness_policy,
        )
        for task in tasks
    ]
    _refuse_contradictions([one.asked for one in data], source, columns, partitions_def)
    specs = [translate(translator or ClaudeBatchTranslator(), one) for one in data]
    twice = [key for key, count in Counter(spec.key for spec in specs).items() if count > 1]
    if twice:
        raise UsageError(
            f"The translator gave two tasks the asset key {twice[0].to_user_string()!r}. Each needs a key, and a folder, of its own."
        )
    return specs


def define_assets(
    body: Callable[..., Any],
    specs: Sequence[dg.AssetSpec],
    *,
    name: str | None = None,
    description: str | None = None,
    partitions_def: "dg.PartitionsDefinition[str] | None" = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    op_tags: Mapping[str, Any] | None = None,
    pool: str | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    required_resource_keys: set[str] | None = None,
) -> dg.AssetsDefinition:
    """Return the assets of these specs, computed by one body.

    Raises:
        UsageError: Terminal. The body is `async`.
    """
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        raise UsageError(
            f"{body.__qualname__} is async. Dagster cannot stop an async body in order, so terminating the run would leave its batches "
            "at the API. Write `def` and `yield from claude_batch.run(context)`."
        )
    if backfill_policy is None and partitions_def is not None:
        backfill_policy = dg.BackfillPolicy.single_run()
    return dg.multi_asset(
        name=name,
        description=description,
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
        required_resource_keys=required_resource_keys,
    )(_refuse_lost_events(body))


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
    asked: Sequence[AskedAsset], source: Dataset, columns: str | Sequence[str], partitions_def: "dg.PartitionsDefinition[str] | None"
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
    wait_for = asked[0].wait_for
    if wait_for is not None and wait_for < timedelta(0):
        raise UsageError(
            f"claude_batch_assets has wait_for={wait_for!r}; it cannot be negative. Write timedelta(0) for a run that does not wait, None for one that waits to the end."
        )
    if partitions_def is None:
        if source.partition_column is not None:
            raise UsageError(
                f"The source {source.place} has partition_column={source.partition_column!r}, and claude_batch_assets has no partitions_def: every "
                "materialization would ask about all of its partitions. Add a partitions_def whose keys are the values of "
                f"{source.partition_column!r}, or leave partition_column out for one output of all rows."
            )
        return
    if isinstance(partitions_def, dg.MultiPartitionsDefinition):
        raise UsageError(
            "claude_batch_assets has a MultiPartitionsDefinition; a source has one partition column. Use one of its dimensions."
        )
    if source.partition_column is None and not (isinstance(source, ParquetDataset) and source.path is None):
        raise UsageError(
            f"claude_batch_assets has a partitions_def, but the source {source.place} has no partition_column. Name the hive column whose "
            'values are the partition keys, for instance ParquetDataset(..., partition_column="day").'
        )


def _refuse_collisions(asked: AskedAsset) -> None:
    """Refuse columns of one name as far as they are known before the source is read; the plan does for the rest."""
    source = asked.source
    given = (asked.columns,) if isinstance(asked.columns, str) else asked.columns
    named = [] if asked.columns == "all" else [name for one in given for name in (source.key_columns if one == "key" else (one,))]
    names = (
        [name for name in dict.fromkeys(named) if name != source.partition_column]
        + [field.name for field in asked.task.fields]
        + list(STATUS_DESCRIPTIONS)
    )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"The output of {asked.task.name!r} would have two columns named {twice[0]!r}: carried from the source, defined by the task, or one of this "
            "tool's own. Carry fewer columns, or rename the task's field."
        )
