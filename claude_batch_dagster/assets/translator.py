"""What each task becomes in Dagster: a translator makes its spec, and a subclass of it makes another."""

import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from claude_batch_dagster.assets.asked import TASK_METADATA_KEY, AskedAsset, AskedAssetText
from claude_batch_dagster.assets.columns import column_lineage, expected_schema, source_dep
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.prompt_function import name_function
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import Dataset

IO_MANAGER_KEY = "claude_batch_io_manager"
KINDS = ("claude", "parquet")
SHOWN_WIDTH = 92


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeBatchTranslatorData:
    """What a translator is told: one task, and what `claude_batch_assets` was given for all of them.

    Attributes:
        task: What is asked; its name is the last part of the key.
        source: The rows, and the asset that writes them.
        columns: What the output carries from the source: "key", "all" or names.
        fail_above: Share of failed rows, 0 to 1, above which nothing is published; None for never.
        wait_for: How long a run waits for its batches before it is deferred; None for as long as it takes.
        partitions_def: Of all assets.
        key_prefix: Before the task's name in the key.
        group_name: Of all assets.
        owners: Of all assets.
        tags: Of all assets.
        automation_condition: Of all assets.
        freshness_policy: Of all assets.
    """

    task: ClaudeTask
    source: Dataset
    columns: str | tuple[str, ...] = "key"
    fail_above: float | None = None
    wait_for: timedelta | None = None
    partitions_def: "dg.PartitionsDefinition[str] | None" = None
    key_prefix: tuple[str, ...] = ()
    group_name: str | None = None
    owners: tuple[str, ...] | None = None
    tags: Mapping[str, str] | None = None
    automation_condition: "dg.AutomationCondition[Any] | None" = None
    freshness_policy: dg.FreshnessPolicy | None = None

    @property
    def asked(self) -> AskedAsset:
        """What the asset asks, as the body reads it."""
        return AskedAsset(task=self.task, source=self.source, columns=self.columns, fail_above=self.fail_above, wait_for=self.wait_for)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePlace:
    """A line of a file, from 1."""

    file: Path
    line: int = 1


class ClaudeBatchTranslator:
    """Makes the spec of each task's asset.

    A subclass changes what it likes of what `super().get_asset_spec(data)` returns: key, group, deps, owners, tags, description, further
    metadata, conditions and policies. The output lies below the asset's key, so that another key is another folder.

        class ByModel(ClaudeBatchTranslator):
            def get_asset_spec(self, data):
                spec = super().get_asset_spec(data)
                return spec.replace_attributes(key=spec.key.with_prefix("claude")).merge_attributes(tags={"model": data.task.model})
    """

    def get_asset_spec(self, data: ClaudeBatchTranslatorData) -> dg.AssetSpec:
        """Return the spec of one task's asset: lineage, columns, code version, kinds, and what `claude_batch.run` needs to know."""
        asked = data.asked
        dep, lineage = source_dep(data.source), column_lineage(asked)
        return dg.AssetSpec(
            [*data.key_prefix, data.task.name],
            deps=[] if dep is None else [dep],
            description=_describe(asked),
            metadata={
                TASK_METADATA_KEY: AskedAssetText(asked),
                "dagster/column_schema": expected_schema(asked),
                **({} if lineage is None else {"dagster/column_lineage": lineage}),
            },
            skippable=True,
            group_name=data.group_name,
            code_version=data.task.task_key,
            freshness_policy=data.freshness_policy,
            automation_condition=data.automation_condition,
            owners=None if data.owners is None else list(data.owners),
            tags=data.tags,
            kinds=set(KINDS),
            partitions_def=data.partitions_def,
        ).with_io_manager_key(IO_MANAGER_KEY)


def translate(translator: ClaudeBatchTranslator, data: ClaudeBatchTranslatorData) -> dg.AssetSpec:
    """Return a translator's spec of a task.

    Raises:
        UsageError: Terminal. It lacks what the body needs to know.
    """
    spec = translator.get_asset_spec(data)
    made = f"{type(translator).__qualname__}.get_asset_spec({data.task.name!r})"
    remedy = "Start from super().get_asset_spec(data), and change the spec with replace_attributes; for tags and metadata, with merge_attributes."
    if not isinstance(spec, dg.AssetSpec):
        raise UsageError(f"{made} returned {'nothing' if spec is None else f'a {type(spec).__name__}'}, and not an AssetSpec. {remedy}")
    text = spec.metadata.get(TASK_METADATA_KEY)
    if not isinstance(text, AskedAssetText):
        raise UsageError(
            f"{made} returned a spec without the metadata {TASK_METADATA_KEY}, so the run would not know what to ask. {remedy}"
        )
    if text.asked != data.asked:
        raise UsageError(f"{made} returned the spec of another task, {text.asked.task.name!r}. {remedy}")
    if spec.partitions_def != data.partitions_def:
        raise UsageError(
            f"{made} returned a spec with another partitions_def. All tasks of one source are asked in shared batches: give partitions_def to "
            "claude_batch_assets instead."
        )
    if not spec.skippable:
        raise UsageError(f"{made} returned a spec that is not skippable, and a subset of the tasks could not be materialized. {remedy}")
    return spec


def add_code_references(spec: dg.AssetSpec, places: Sequence[CodePlace]) -> dg.AssetSpec:
    """Return a spec that also says where its code is, for the UI's links."""
    if not places:
        return spec
    there = spec.metadata.get("dagster/code_references")
    before = there.code_references if isinstance(there, dg.CodeReferencesMetadataValue) else []
    with warnings.catch_warnings():
        # Both classes are in beta since 1.8; a person who did not write them cannot do anything about the warning.
        warnings.simplefilter("ignore", dg.BetaWarning)
        added = [dg.LocalFileCodeReference(file_path=str(one.file), line_number=one.line, label=one.file.name) for one in places]
        references = dg.CodeReferencesMetadataValue(code_references=[*before, *added])
    return spec.merge_attributes(metadata={"dagster/code_references": references})


def place_of(function: Callable[..., object]) -> list[CodePlace]:
    """Return where a function is written, nothing where it was not read from a file."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        return []
    return [CodePlace(file=Path(code.co_filename).absolute(), line=code.co_firstlineno)]


def _describe(asked: AskedAsset) -> str:
    task = asked.task
    about = f"`{task.column}`" if task.column else "each row"
    what = {"summarize": f"A summary of {about}", "moderate": f"A moderation label for {about}"}.get(task.kind, f"An answer about {about}")
    # Dagster's UI does not wrap a code block.
    instructions = "\n".join(textwrap.fill(line, SHOWN_WIDTH) for line in (task.system or _show_prompt(task)).splitlines())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", instructions)), default=0))
    return (
        f"{what}, by {task.model} through the Message Batches API: one row for each row of `{asked.source.place}`, with its status, tokens "
        f"and cost.\n\n{fence}text\n{instructions}\n{fence}"
    )


def _show_prompt(task: ClaudeTask) -> str:
    return task.prompt if isinstance(task.prompt, str) else f"{name_function(task.prompt)}(row), version {task.version}"
