"""What one asset asks about which rows, and how its spec brings that to the body."""

from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import Dataset

TASK_METADATA_KEY = "claude_batch/task"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAsset:
    """What one asset asks about which rows.

    Attributes:
        task: What is asked.
        source: The rows.
        columns: What is carried from the source: "key", "all" or names.
        fail_above: Share of failed rows, 0 to 1, above which nothing is published; None for never.
        wait_for: How long a run waits for its batches before it is deferred; None for as long as it takes.
    """

    task: ClaudeTask
    source: Dataset
    columns: str | tuple[str, ...]
    fail_above: float | None = None
    wait_for: timedelta | None = None

    @property
    def carried_keys(self) -> list[str]:
        """The key's columns that stand in the output's files."""
        named = self.columns if not isinstance(self.columns, str) else ("key",)
        carried = self.source.key_columns if {"key", "all"} & {*named, self.columns} else named
        return [key for key in self.source.key_columns if key in carried and key != self.source.partition_column]


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
