"""Parquet in, Claude's answers out, through the Message Batches API: every row accounted for, no answer paid for twice.

Names are imported when they are first used: `import claude_batch_dagster.core` runs this file inside Temporal's sandbox, which
refuses the workflow if Dagster comes with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_batch_dagster.assets import claude_batch_assets
    from claude_batch_dagster.core.presets import Moderate, Summarize
    from claude_batch_dagster.core.task import ClaudeTask
    from claude_batch_dagster.io_manager import ClaudeBatchIOManager
    from claude_batch_dagster.resource import ClaudeBatchResource, claude_batch_resources
    from claude_batch_dagster.storage.dataset import ParquetDataset

__all__ = [
    "ClaudeBatchIOManager",
    "ClaudeBatchResource",
    "ClaudeTask",
    "Moderate",
    "ParquetDataset",
    "Summarize",
    "claude_batch_assets",
    "claude_batch_resources",
]

_MODULES = {
    "ClaudeBatchIOManager": "io_manager",
    "ClaudeBatchResource": "resource",
    "ClaudeTask": "core.task",
    "Moderate": "core.presets",
    "ParquetDataset": "storage.dataset",
    "Summarize": "core.presets",
    "claude_batch_assets": "assets",
    "claude_batch_resources": "resource",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
