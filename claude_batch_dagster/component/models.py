"""What a component's YAML may say beside plain values, and what becomes of it. No postponed annotations here: Dagster reads the types."""

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Optional

import dagster as dg
from dagster.components.resolved.core_models import (
    DailyPartitionsDefinitionModel,
    HourlyPartitionsDefinitionModel,
    MultiRunBackfillPolicyModel,
    SingleRunBackfillPolicyModel,
    StaticPartitionsDefinitionModel,
    TimeWindowPartitionsDefinitionModel,
    WeeklyPartitionsDefinitionModel,
    resolve_backfill_policy,
    resolve_partitions_def,
)
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.resources.resource import ClaudeBatchResource
from claude_batch_dagster.storage.dataset import Dataset, ParquetDataset, TableSnapshot
from claude_batch_dagster.verbs.endpoint import DEFAULT_ROOT
from claude_batch_dagster.verbs.task_mapping import TaskMapping, build_task, import_remedy

VERBATIM = frozenset(("prompt", "system", "output"))
"""Keys of a task that are never templates: braces in them mean a column."""
_SHORT_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class SourceModel(dg.Model):
    """The rows: Parquet files, the output of an asset, or what a function returns."""

    path: str | None = Field(
        default=None,
        description="A local path, from the project's root, or a URL (s3://, gs://, az://) of a file or folder, or with `*`, `?`, `**` and "
        "`{partition}` in it. Left out: the output of `asset`.",
    )
    load: str | None = Field(
        default=None, description="Instead of a path: a function as package.module.function, or .module.function beside defs.yaml."
    )
    key: str | list[str] = Field(description="The column or columns that identify a row within its partition.")
    asset: str | None = Field(default=None, description="The asset that writes the rows, for lineage.")
    partition_column: str | None = Field(
        default=None, description="The column whose values are the partitions, and the hive column of the outputs."
    )


class TaskModel(dg.Model):
    """What Claude is asked about each row: the keys of `claude-batch run --task FILE.yaml`."""

    preset: Literal["summarize", "moderate"] | None = Field(default=None, description="A ready task; it takes column and model.")
    name: str = Field(description="The last part of the asset's key. Renaming asks nothing again.")
    model: str = Field(description="A Claude model's id.", examples=["claude-haiku-5-5"])
    column: str | None = Field(default=None, description="Of a preset: the text column.")
    max_words: int | str | None = Field(default=None, description="Of summarize: what the summary is asked to keep to.")
    labels: list[str] | str | None = Field(default=None, description="Of moderate: at least two.")
    prompt: str | None = Field(default=None, description="The user message, with a slot {column} at least. Never a template of Dagster's.")
    prompt_file: str | None = Field(default=None, description="The prompt in a file beside defs.yaml.", examples=["prompt.md"])
    prompt_function: str | None = Field(
        default=None, description="A function of the row: package.module.function, or .module.function beside defs.yaml. Needs version."
    )
    version: int | str | None = Field(default=None, description="Of a prompt function: another number asks every row again.")
    prompt_columns: list[str] | None = Field(default=None, description="The columns that a prompt function reads.")
    system: str | None = Field(default=None, description="The system prompt. Never a template of Dagster's.")
    output: dict[str, Any] | str | None = Field(
        default=None,
        description="A JSON Schema, the name of a .json file beside defs.yaml, or a Pydantic model: package.module.Model, or .module.Model.",
    )
    schema_file: str | None = Field(default=None, description="The JSON Schema in a file beside defs.yaml.", examples=["topics.json"])
    max_tokens: int | str | None = Field(default=None, description="Upper bound of the answer in tokens, thinking included.")
    effort: str | None = Field(default=None, description="low | medium | high | ..., as the model takes it.")
    thinking: dict[str, Any] | None = Field(default=None, description="The Messages parameter.")
    params: dict[str, Any] | None = Field(default=None, description="Further raw Messages parameters.")


class DynamicPartitionsDefinitionModel(dg.Model):
    """Partitions that are added while Dagster runs, by a sensor for new files for instance."""

    type: Literal["dynamic"] = "dynamic"
    name: str


class RetryPolicyModel(dg.Model):
    """How often the op is tried again by Dagster."""

    max_retries: int = 1
    delay: float | None = Field(default=None, description="Seconds before a retry.")
    backoff: Literal["linear", "exponential"] | None = None
    jitter: Literal["full", "plus_minus"] | None = None


class ChecksModel(dg.Model):
    """The arguments of build_claude_batch_checks."""

    min_coverage: float | str | None = None
    max_failure_rate: float | str | None = None
    max_refusal_rate: float | str | None = None
    max_truncation_rate: float | str | None = None
    allowed_labels: list[str] | dict[str, list[str]] | None = None
    max_label_drift: float | dict[str, float] | None = None
    max_cost_usd: float | str | None = None
    max_cost_usd_per_row: float | str | None = None
    severity: str | dict[str, str] | None = None
    blocking: bool | list[str] | None = None


class SensorModel(dg.Model):
    """The sensor that requests the collecting runs of deferred ones."""

    name: str | None = None
    minimum_interval_seconds: int | None = None
    default_status: Literal["running", "stopped"] | None = None


PartitionsModel = (
    HourlyPartitionsDefinitionModel
    | DailyPartitionsDefinitionModel
    | WeeklyPartitionsDefinitionModel
    | TimeWindowPartitionsDefinitionModel
    | StaticPartitionsDefinitionModel
    | DynamicPartitionsDefinitionModel
    | str
)
BackfillPolicyModel = SingleRunBackfillPolicyModel | MultiRunBackfillPolicyModel | str
# Any field may be a template, so that every type may be text.
_RESOURCE_FIELDS: dict[str, Any] = {
    name: (Optional[field.annotation | str], Field(default=None, description=field.description))  # noqa: UP045 - a type that is made here
    for name, field in ClaudeBatchResource.model_fields.items()
}
ResourceModel = create_model("ResourceModel", __base__=dg.Model, __doc__="Fields of ClaudeBatchResource.", **_RESOURCE_FIELDS)


def precisely(model: type[BaseModel], *, several: bool = False) -> dict[str, Any]:
    """Return what makes `dg check yaml` name the key that is wrong inside a mapping.

    Dagster lets every field be a template instead, by an `anyOf`, of which a validator only says that nothing in it fits.
    """
    one = {"if": {"type": "object"}, "then": model.model_json_schema()}
    return {"anyOf": [{}], **({"if": {"type": "array"}, "then": {"items": one}} if several else one)}


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlTask:
    """A task that stands in YAML.

    Attributes:
        files: Of its prompt and schema, beside the YAML.
    """

    task: ClaudeTask
    files: tuple[Path, ...]


def resolve_source(context: dg.ResolutionContext, model: SourceModel) -> Dataset:
    """Return the source; its path is still the project's."""
    values = rendered(context, model.model_dump(exclude_unset=True))
    asset = values.get("asset")
    common = {
        "key": values["key"],
        "asset": dg.AssetKey.from_user_string(asset) if isinstance(asset, str) else asset,
        "partition_column": values.get("partition_column"),
    }
    if values.get("load") is None:
        return ParquetDataset(path=values.get("path"), **common)
    if values.get("path") is not None:
        raise UsageError("The source has both path and load. Give one of them.")
    name = values["load"]
    try:
        load = import_name(context, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"The source's load {name} cannot be imported: {error}. {import_remedy(name, error)}") from error
    return TableSnapshot(load=load, **common)


def resolve_task(context: dg.ResolutionContext, model: TaskModel | str) -> "YamlTask | ClaudeTask":
    """Return the task; `"{{ name }}"` is a template variable that is a ClaudeTask."""
    if isinstance(model, str):
        task = context.resolve_value(model)
        if isinstance(task, ClaudeTask):
            return task
        raise UsageError(
            f"The task {model!r} is {task!r}, and no ClaudeTask. Write its keys, or the name of a template variable that is one."
        )
    given = model.model_dump(exclude_unset=True)
    values = {key: value if key in VERBATIM else rendered(context.at_path(key), value) for key, value in given.items()}
    folder = context.resolve_source_relative_path(".")
    tree = context.source_position_tree
    mapping = TaskMapping(
        values=values,
        place=f"the task {values.get('name')!r} of {tree.position.filename if tree else 'the component'}",
        folder=folder,
        import_name=lambda name: import_name(context, name),
    )
    return YamlTask(task=build_task(mapping), files=mapping.files)


def resolve_resource(context: dg.ResolutionContext, model: Any) -> ClaudeBatchResource | None:
    """Return a resource of the component's own, None where it has none."""
    return None if model is None else ClaudeBatchResource(**rendered(context, model.model_dump(exclude_unset=True)))


def resolve_partitions(context: dg.ResolutionContext, model: Any) -> "dg.PartitionsDefinition[str] | None":
    """Return the partitions of a model of ours or of Dagster's."""
    if isinstance(model, str):
        raise UsageError(
            f"partitions_def is the text {model!r}. Write a mapping with its type, or a template such as {{{{ my_partitions }}}}."
        )
    if isinstance(model, DynamicPartitionsDefinitionModel):
        return dg.DynamicPartitionsDefinition(name=str(rendered(context, model.name)))
    return resolve_partitions_def(context, None if model is None else model.model_copy(update=rendered(context, model.model_dump())))


def resolve_backfill(context: dg.ResolutionContext, model: Any) -> dg.BackfillPolicy | None:
    """Return the policy of a model of Dagster's."""
    if isinstance(model, str):
        raise UsageError(f"backfill_policy is the text {model!r}. Write a mapping with its type: single_run or multi_run.")
    return resolve_backfill_policy(context, model)


def resolve_retry_policy(context: dg.ResolutionContext, model: Any) -> dg.RetryPolicy | None:
    """Return Dagster's policy."""
    if model is None:
        return None
    return dg.RetryPolicy(
        max_retries=model.max_retries,
        delay=model.delay,
        backoff=None if model.backoff is None else dg.Backoff[model.backoff.upper()],
        jitter=None if model.jitter is None else dg.Jitter[model.jitter.upper()],
    )


def resolve_sensor(context: dg.ResolutionContext, model: Any) -> dict[str, Any] | bool | None:
    """Return the arguments of the sensor; True and False as they are."""
    if model is None or isinstance(model, bool):
        return model
    arguments: dict[str, Any] = resolve_plainly(context, model)
    if "default_status" in arguments:
        arguments["default_status"] = dg.DefaultSensorStatus[arguments["default_status"].upper()]
    return arguments


def resolve_plainly(context: dg.ResolutionContext, value: Any) -> Any:
    """Return plain values with their templates filled in; of a model, what was given."""
    return rendered(context, value.model_dump(exclude_unset=True) if isinstance(value, dg.Model) else value)


def resolve_duration(context: dg.ResolutionContext, value: Any) -> timedelta | None:
    """Return a duration: seconds as a number, `15m`, `1h30m`, `2d`, or ISO 8601 (`PT15M`).

    Raises:
        UsageError: Terminal. It is none of them.
    """
    value = rendered(context, value)
    if value is None or isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        parts = _SHORT_DURATION.findall(value)
        if parts and not _SHORT_DURATION.sub("", value).strip():
            return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))
    try:
        duration = TypeAdapter(timedelta).validate_python(value)
    except ValidationError:
        duration = timedelta(seconds=-1)
    if duration < timedelta(0):
        raise UsageError(f"{value!r} is no duration. Write seconds (900), a short form (15m, 1h30m, 2d) or ISO 8601 (PT15M).")
    return duration


def rendered(context: dg.ResolutionContext, value: Any) -> Any:
    """Return a value with its templates filled in; a text without one stays as it is, even where it looks like a number."""
    match value:
        case str():
            return context.resolve_value(value) if "{{" in value or "{%" in value else value
        case Mapping():
            return {key: rendered(context.at_path(key), item) for key, item in value.items()}
        case Sequence():
            return [rendered(context.at_path(at), item) for at, item in enumerate(value)]
        case _:
            return value


def import_name(context: dg.ResolutionContext, name: str) -> Any:
    """Return what `package.module.name` stands for; `.module.name` is beside the YAML."""
    if name.startswith("."):
        load = dg.ComponentLoadContext.from_resolution_context(context)
        name = f"{load.defs_relative_module_name(load.path.parent if load.path.is_file() else load.path)}{name}"
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def locate(source: Dataset, project_root: Path) -> Dataset:
    """Return a source whose relative path is taken from the project's root, wherever `dg` was started."""
    if isinstance(source, ParquetDataset) and _is_relative(source.path):
        return replace(source, path=str(project_root / str(source.path)))
    return source


def locate_resource(resource: ClaudeBatchResource, project_root: Path) -> ClaudeBatchResource:
    """Return a resource whose relative folders, and the default root, are taken from the project's root."""
    folders = {name: str(project_root / getattr(resource, name)) for name in ("root", "output") if _is_relative(getattr(resource, name))}
    if resource.root is None and not os.environ.get("CLAUDE_BATCH_ROOT"):
        folders["root"] = str(project_root / DEFAULT_ROOT)
    if not folders:
        return resource
    return type(resource)(**{**{name: getattr(resource, name) for name in type(resource).model_fields}, **folders})


def _is_relative(path: str | os.PathLike[str] | None) -> bool:
    return path is not None and not isinstance(path, dg.EnvVar) and "://" not in str(path) and not Path(path).is_absolute()
