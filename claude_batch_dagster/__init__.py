"""Parquet in, Claude's answers out, through the Message Batches API: every row accounted for, no answer paid for twice."""

# Names are imported when they are first used: `import claude_batch_dagster.core` runs this file inside Temporal's sandbox, which
# refuses the workflow if Dagster comes with it.

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_batch_dagster.assets.decorator import build_claude_batch_asset_specs, claude_batch_assets
    from claude_batch_dagster.assets.translator import ClaudeBatchTranslator, ClaudeBatchTranslatorData
    from claude_batch_dagster.checks.builder import build_claude_batch_checks
    from claude_batch_dagster.component.component import ClaudeBatchComponent
    from claude_batch_dagster.core.presets import Moderate, Summarize
    from claude_batch_dagster.core.task import ClaudeTask
    from claude_batch_dagster.resources.io_manager import ClaudeBatchIOManager
    from claude_batch_dagster.resources.resource import ClaudeBatchResource, claude_batch_resources
    from claude_batch_dagster.sensors.deferred import build_claude_batch_sensor
    from claude_batch_dagster.sensors.files import build_parquet_files_sensor
    from claude_batch_dagster.storage.dataset import ParquetDataset, TableSnapshot

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
    "ClaudeBatchIOManager": "resources.io_manager",
    "ClaudeBatchResource": "resources.resource",
    "ClaudeBatchTranslator": "assets.translator",
    "ClaudeBatchTranslatorData": "assets.translator",
    "ClaudeTask": "core.task",
    "Moderate": "core.presets",
    "ParquetDataset": "storage.dataset",
    "Summarize": "core.presets",
    "TableSnapshot": "storage.dataset",
    "build_claude_batch_asset_specs": "assets.decorator",
    "build_claude_batch_checks": "checks.builder",
    "build_claude_batch_sensor": "sensors.deferred",
    "build_parquet_files_sensor": "sensors.files",
    "claude_batch_assets": "assets.decorator",
    "claude_batch_resources": "resources.resource",
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
