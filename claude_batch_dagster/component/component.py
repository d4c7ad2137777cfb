"""`ClaudeBatchComponent`: what `@claude_batch_assets` says in Python, said in YAML. No postponed annotations here: Dagster reads the types."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Optional, cast

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver

from claude_batch_dagster.assets.decorator import build_claude_batch_asset_specs, define_assets
from claude_batch_dagster.assets.translator import (
    IO_MANAGER_KEY,
    ClaudeBatchTranslator,
    ClaudeBatchTranslatorData,
    CodePlace,
    add_code_references,
    place_of,
)
from claude_batch_dagster.checks.builder import build_claude_batch_checks
from claude_batch_dagster.component.models import (
    BackfillPolicyModel,
    ChecksModel,
    PartitionsModel,
    ResourceModel,
    RetryPolicyModel,
    SensorModel,
    SourceModel,
    TaskModel,
    YamlTask,
    locate,
    locate_resource,
    precisely,
    resolve_backfill,
    resolve_duration,
    resolve_partitions,
    resolve_plainly,
    resolve_resource,
    resolve_retry_policy,
    resolve_sensor,
    resolve_source,
    resolve_task,
)
from claude_batch_dagster.component.scaffolder import ClaudeBatchScaffolder
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.resources.io_manager import ClaudeBatchIOManager
from claude_batch_dagster.resources.resource import RESOURCE_KEY, ClaudeBatchResource
from claude_batch_dagster.sensors.deferred import build_claude_batch_sensor
from claude_batch_dagster.storage.dataset import Dataset

IO_MANAGER_METADATA_KEY = "dagster/io_manager_key"
_TRANSLATION = TranslationFnResolver[ClaudeBatchTranslatorData](lambda data: {"data": data, "task": data.task})
_TRANSLATION.description = "Changes of the assets' specs: key, tags, description, ...; `task`, `data` and `spec` are in its templates."


@dg.scaffold_with(ClaudeBatchScaffolder)
@dataclass(kw_only=True)
class ClaudeBatchComponent(dg.Component, dg.Resolvable):
    """Ask Claude about every row of a Parquet dataset at the Message Batches price: one asset for each task.

    The attributes have the names and meanings of the arguments of `@claude_batch_assets`. Without `resource` the component uses the code
    location's resource `claude_batch`.
    """

    source: Annotated[
        Dataset,
        dg.Resolver(resolve_source, model_field_type=SourceModel, description="The rows.", json_schema_extra=precisely(SourceModel)),
    ]
    tasks: Annotated[
        Sequence[Annotated[YamlTask | ClaudeTask, dg.Resolver(resolve_task, model_field_type=TaskModel | str)]],
        dg.Resolver.default(
            description="What is asked about each row; each task is an asset.", json_schema_extra=precisely(TaskModel, several=True)
        ),
    ]
    columns: Annotated[
        str | Sequence[str],
        dg.Resolver(
            resolve_plainly, model_field_type=str | list[str], description='What the outputs carry from the source: "key", "all" or names.'
        ),
    ] = "key"
    fail_above: Annotated[
        float | None,
        dg.Resolver(
            resolve_plainly,
            model_field_type=float | str | None,
            description="Share of failed rows, 0 to 1, above which a run fails and publishes nothing.",
        ),
    ] = None
    wait_for: Annotated[
        timedelta | None,
        dg.Resolver(
            resolve_duration,
            model_field_type=int | float | str | None,
            description="How long a run waits for its batches before it is deferred: seconds, 15m, 2h, or ISO 8601. Left out: to the end.",
            examples=[0, "15m"],
        ),
    ] = None
    partitions_def: Annotated[
        Optional["dg.PartitionsDefinition[str]"],
        dg.Resolver(
            resolve_partitions,
            model_field_type=PartitionsModel | None,
            description="Its keys are the values of the source's partition_column.",
        ),
    ] = None
    backfill_policy: Annotated[
        dg.BackfillPolicy | None,
        dg.Resolver(
            resolve_backfill,
            model_field_type=BackfillPolicyModel | None,
            description="Of the range of a backfill; a single run unless told otherwise.",
        ),
    ] = None
    name: Annotated[str | None, dg.Resolver.default(description="Of the op, in run config. Default: the folder's name.")] = None
    key_prefix: Annotated[
        str | Sequence[str] | None,
        dg.Resolver(
            resolve_plainly,
            model_field_type=str | list[str] | None,
            description="Before the tasks' names in the assets' keys.",
        ),
    ] = None
    group_name: Annotated[str | None, dg.Resolver.default(description="Of all assets.")] = None
    owners: Annotated[Sequence[str] | None, dg.Resolver.default(description="Of all assets.")] = None
    tags: Annotated[
        Mapping[str, str] | None,
        dg.Resolver(resolve_plainly, model_field_type=dict[str, str] | None, description="Of all assets."),
    ] = None
    op_tags: Annotated[
        Mapping[str, Any] | None,
        dg.Resolver(
            resolve_plainly,
            model_field_type=dict[str, Any] | None,
            description="Of the op, for the run's launcher.",
        ),
    ] = None
    pool: Annotated[str | None, dg.Resolver.default(description="That the op takes a slot of while it waits.")] = None
    retry_policy: Annotated[
        dg.RetryPolicy | None,
        dg.Resolver(
            resolve_retry_policy,
            model_field_type=RetryPolicyModel | None,
            description="Of the op.",
            json_schema_extra=precisely(RetryPolicyModel),
        ),
    ] = None
    automation_condition: Annotated[
        Optional["dg.AutomationCondition[Any]"],
        dg.Resolver.default(
            model_field_type=str | None,
            description="Of all assets.",
            examples=["{{ dg.AutomationCondition.eager() }}"],
        ),
    ] = None
    freshness_policy: Annotated[
        dg.FreshnessPolicy | None,
        dg.Resolver.default(
            model_field_type=str | None,
            description="Of all assets.",
            examples=["{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=36)) }}"],
        ),
    ] = None
    translation: Annotated[
        TranslationFn[ClaudeBatchTranslatorData] | None,
        _TRANSLATION,
    ] = None
    checks: Annotated[
        Mapping[str, Any] | None,
        dg.Resolver(
            resolve_plainly,
            model_field_type=ChecksModel | None,
            description="Limits, as the arguments of build_claude_batch_checks: each is an asset check of every asset.",
            json_schema_extra=precisely(ChecksModel),
        ),
    ] = None
    sensor: Annotated[
        bool | Mapping[str, Any] | None,
        dg.Resolver(
            resolve_sensor,
            model_field_type=bool | SensorModel | None,
            description="Whether a sensor collects what was deferred. Default: where wait_for is given.",
            json_schema_extra=precisely(SensorModel),
        ),
    ] = None
    resource: Annotated[
        ClaudeBatchResource | None,
        dg.Resolver(
            resolve_resource,
            model_field_type=ResourceModel | None,
            description="A resource of this component's own: root, output, max_cost_usd, ... Default: the code location's `claude_batch`.",
            json_schema_extra=precisely(ResourceModel),
        ),
    ] = None

    def get_asset_spec(self, data: ClaudeBatchTranslatorData) -> dg.AssetSpec:
        """Return the spec of one task's asset; a subclass may change it, as with ClaudeBatchTranslator. `translation` comes after it."""
        return ClaudeBatchTranslator().get_asset_spec(data)

    def execute(self, context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource) -> Iterator[object]:
        """Carry out a run: the body of the assets. A subclass may do something before and after `yield from super().execute(...)`."""
        yield from claude_batch.run(context)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the assets, and the checks, the sensor and the resources that the component brings."""
        name = self.name or _name_of(context)
        resource_key, io_manager_key = RESOURCE_KEY, IO_MANAGER_KEY
        if self.resource is not None:
            resource_key, io_manager_key = f"{RESOURCE_KEY}__{name}", f"{IO_MANAGER_KEY}__{name}"
        tasks = [one if isinstance(one, YamlTask) else YamlTask(task=one, files=()) for one in self.tasks]
        specs = build_claude_batch_asset_specs(
            source=locate(self.source, context.project_root),
            tasks=[one.task for one in tasks],
            columns=self.columns,
            fail_above=self.fail_above,
            wait_for=self.wait_for,
            partitions_def=self.partitions_def,
            key_prefix=self.key_prefix,
            group_name=self.group_name,
            owners=self.owners,
            tags=self.tags,
            automation_condition=self.automation_condition,
            freshness_policy=self.freshness_policy,
            translator=_ComponentTranslator(self, {one.task.name: one for one in tasks}, io_manager_key),
        )

        def body(context: dg.AssetExecutionContext) -> Iterator[object]:
            yield from self.execute(context, getattr(context.resources, resource_key))

        assets = define_assets(
            body,
            specs,
            name=name,
            partitions_def=self.partitions_def,
            backfill_policy=self.backfill_policy,
            op_tags=self.op_tags,
            pool=self.pool,
            retry_policy=self.retry_policy,
            required_resource_keys={resource_key},
        )
        return dg.Definitions(
            assets=[assets],
            asset_checks=[] if self.checks is None else build_claude_batch_checks(assets, resource_key=resource_key, **self.checks),
            sensors=self._sensors(assets, name, resource_key),
            resources=self._resources(context.project_root, resource_key, io_manager_key),
        )

    def _sensors(self, assets: dg.AssetsDefinition, name: str, resource_key: str) -> list[dg.SensorDefinition]:
        wanted = self.wait_for is not None if self.sensor is None else self.sensor
        if wanted is False:
            return []
        arguments = wanted if isinstance(wanted, Mapping) else {}
        return [build_claude_batch_sensor(assets, resource_key=resource_key, **{"name": f"{name}_sensor", **arguments})]

    def _resources(self, project_root: Path, resource_key: str, io_manager_key: str) -> dict[str, object]:
        if self.resource is None:
            return {}
        resource = locate_resource(self.resource, project_root)
        shared = {name: getattr(resource, name) for name in ClaudeBatchIOManager.model_fields}
        return {resource_key: resource, io_manager_key: ClaudeBatchIOManager(**shared)}


class _ComponentTranslator(ClaudeBatchTranslator):
    """The component's own `get_asset_spec`, then the YAML's `translation`, then where the task is written."""

    def __init__(self, component: ClaudeBatchComponent, tasks: Mapping[str, YamlTask], io_manager_key: str) -> None:
        self._component = component
        self._tasks = tasks
        self._io_manager_key = io_manager_key

    def get_asset_spec(self, data: ClaudeBatchTranslatorData) -> dg.AssetSpec:
        # What a subclass returns is judged where every translator's is.
        made: Any = self._component.get_asset_spec(data)
        if self._component.translation is not None:
            made = self._component.translation(made, data)
        if not isinstance(made, dg.AssetSpec):
            return cast(dg.AssetSpec, made)
        spec = made
        # The path as it was written: the project's root is another on each machine.
        if spec.description is not None:
            spec = spec.replace_attributes(description=spec.description.replace(data.source.place, self._component.source.place))
        if spec.metadata.get(IO_MANAGER_METADATA_KEY) == IO_MANAGER_KEY:
            spec = spec.with_io_manager_key(self._io_manager_key)
        places = [CodePlace(file=file) for file in self._tasks[data.task.name].files]
        return add_code_references(spec, [*places, *(place_of(data.task.prompt) if callable(data.task.prompt) else ())])


def _name_of(context: dg.ComponentLoadContext) -> str:
    """Return a name that no other component of the project has: the folder's, and its place in a file of several."""
    file: Path | None = getattr(context.component_loc, "file_path", None)
    if file is None or not file.is_relative_to(context.defs_module_path):
        return RESOURCE_KEY
    folder = file if file.is_dir() else file.parent
    number = getattr(context.component_loc, "instance_key", None)
    parts = [*folder.relative_to(context.defs_module_path).parts, *([str(number)] if number else [])]
    return re.sub(r"\W", "_", "__".join(parts)) or RESOURCE_KEY
