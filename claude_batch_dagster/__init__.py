"""Parquet in, Claude's answers out, through the Message Batches API: every row accounted for, no answer paid for twice.

Names are imported when they are first used: `import claude_batch_dagster.core` runs this file inside Temporal's sandbox, which
refuses the workflow if Dagster comes with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_batch_dagster.assets import build_claude_batch_asset_specs, claude_batch_assets
    from claude_batch_dagster.checks import build_claude_batch_checks
    from claude_batch_dagster.component.component import ClaudeBatchComponent
    from claude_batch_dagster.core.presets import Moderate, Summarize
    from claude_batch_dagster.core.task import ClaudeTask
    from claude_batch_dagster.files_sensor import build_parquet_files_sensor
    from claude_batch_dagster.io_manager import ClaudeBatchIOManager
    from claude_batch_dagster.resource import ClaudeBatchResource, claude_batch_resources
    from claude_batch_dagster.sensor import build_claude_batch_sensor
    from claude_batch_dagster.storage.dataset import ParquetDataset, TableSnapshot
    from claude_batch_dagster.translator import ClaudeBatchTranslator, ClaudeBatchTranslatorData

__all__ = [
    "ClaudeBatchComponent",
    "ClaudeBatchIOManager",
    "ClaudeBatchResource",
    "ClaudeBatchTranslator",
    "ClaudeBatchTranslatorData",
    "ClaudeTask",
    "Moderate",
    "ParquetDataset",
    "Summarize",
    "TableSnapshot",
    "build_claude_batch_asset_specs",
    "build_claude_batch_checks",
    "build_claude_batch_sensor",
    "build_parquet_files_sensor",
    "claude_batch_assets",
    "claude_batch_resources",
]

_MODULES = {
    "ClaudeBatchComponent": "component.component",
    "ClaudeBatchIOManager": "io_manager",
    "ClaudeBatchResource": "resource",
    "ClaudeBatchTranslator": "translator",
    "ClaudeBatchTranslatorData": "translator",
    "ClaudeTask": "core.task",
    "Moderate": "core.presets",
    "ParquetDataset": "storage.dataset",
    "Summarize": "core.presets",
    "TableSnapshot": "storage.dataset",
    "build_claude_batch_asset_specs": "assets",
    "build_claude_batch_checks": "checks",
    "build_claude_batch_sensor": "sensor",
    "build_parquet_files_sensor": "files_sensor",
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
