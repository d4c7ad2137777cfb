"""How a Dagster run is deferred, and how the one that collects knows what it collects."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import DeferralRecord, LogEntry
    from claude_batch_dagster.verbs.defer import Deferred, Deferring

COLLECTS_TAG = "claude_batch/collects"
"""On a run that a sensor requests: the name of the deferral."""
SENSOR_METADATA_KEY = "claude_batch/assets"
"""On such a sensor: the keys of the assets that it collects."""
BACKFILL_TAG = "dagster/backfill"
PARENT_TAG = "dagster/parent_run_id"
ASKED_ONCE = ("ask_again", "retry_failed")
DOWNSTREAM_SKIPPED = (
    " Assets downstream of it in this run are skipped, and the collecting run is without them: let them follow by an automation condition."
)
ALREADY_COLLECTED = (
    "Nothing to do: what this run was to collect is published already, by a run that waited or was started by hand. "
    "To materialize again, start a new run instead of this one again."
)


def read_collected(context: dg.AssetExecutionContext, root: str) -> tuple[str | None, "DeferralRecord | None"]:
    """Return the deferral that this run was requested for, and its record: None once it is collected."""
    name = context.run.tags.get(COLLECTS_TAG)
    if name is None:
        return None, None
    from claude_batch_dagster.storage.deferrals import read_deferral
    from claude_batch_dagster.storage.store import Store

    return name, read_deferral(Store(root), name)


def is_executed_again(context: dg.AssetExecutionContext) -> bool:
    """Tell whether somebody started this run again, or a retry did: it has the tags of the first one."""
    return PARENT_TAG in context.run.tags


def describe_deferring(
    context: dg.AssetExecutionContext, keys: Sequence[dg.AssetKey], wait_for: timedelta | None, *, collects: str | None, kept: str | None
) -> "Deferring":
    """Return how long the run waits, and what the collecting one is to know. A backfill takes a run without materializations for failed.

    Args:
        context: Of the run.
        keys: What it materializes.
        wait_for: As the assets were defined.
        collects: Name of the deferral that it collects.
        kept: Names of the tables that are asked about, where the source is a function.
    """
    from claude_batch_dagster.verbs.defer import Deferring

    waits = wait_for is None or BACKFILL_TAG in context.run.tags
    if wait_for is not None and waits:
        context.log.info("A run of a backfill waits for its batches, whatever wait_for says: deferred, the backfill would fail.")
    return Deferring(
        assets=tuple(tuple(key.path) for key in keys),
        wait_s=None if waits or wait_for is None else wait_for.total_seconds(),
        collects=collects,
        op=context.op_def.name,
        config=_keep_config(context),
        snapshot=kept,
    )


def observe_deferred(
    context: dg.AssetExecutionContext, keys: Sequence[dg.AssetKey], job: Job, deferred: "Deferred", connection: Connection
) -> None:
    """Log an observation for each asset and partition, and what happens next."""
    metadata = _describe_runs(deferred.open, connection)
    for key in keys:
        for partition in job.partitions or (None,):
            context.log_event(dg.AssetObservation(key, partition=partition, metadata=metadata))
    labels = ", ".join(entry.label for entry in deferred.open)
    context.log.info(
        f"Deferred: {'batch run' if len(deferred.open) == 1 else 'batch runs'} {labels} "
        f"{'goes' if len(deferred.open) == 1 else 'go'} on without this run, usually for under 1 h, for 24 h at most. {_tell_next(context, keys)}"
        f"{DOWNSTREAM_SKIPPED if len(context.job_def.nodes) > 1 else ''}"
    )


def _describe_runs(runs: "Sequence[LogEntry]", connection: Connection) -> dict[str, Any]:
    labels = [entry.label for entry in runs]
    urls = [connection.workflow_url(workflow_id(entry.run_id)) for entry in runs]
    metadata: dict[str, Any] = {
        "claude_batch/state": "deferred: asked, not published yet",
        "claude_batch/run": f"batch run {', '.join(labels)}",
        "claude_batch/requests": sum(entry.keys.count for entry in runs),
    }
    first = urls[0] if urls else None
    metadata["claude_batch/workflow"] = dg.MetadataValue.url(first) if first else workflow_id(runs[0].run_id)
    for key, words, name in (("claude_batch/expected_usd", "about", "expected"), ("claude_batch/worst_usd", "at most", "worst")):
        costs = [getattr(entry.cost_nano_usd, name) for entry in runs]
        if None not in costs:
            cost_usd = sum(costs) / 1e9
            before = f"{metadata['claude_batch/cost']}, " if "claude_batch/cost" in metadata else ""
            metadata["claude_batch/cost"] = f"{before}{words} {usd(cost_usd)}"
            metadata[key] = cost_usd
    return metadata


def _tell_next(context: dg.AssetExecutionContext, keys: Sequence[dg.AssetKey]) -> str:
    name = _find_sensor(context, keys)
    if name is None:
        return (
            "No sensor of this code location collects it (build_claude_batch_sensor): once it is over, materialize the same assets and "
            "partitions again, which publishes and asks nothing twice."
        )
    return f"Once it is over, the sensor {name} requests the run that publishes; it has to be running (Automation in the UI)."


def _find_sensor(context: dg.AssetExecutionContext, keys: Sequence[dg.AssetKey]) -> str | None:
    # Dagster raises it outside a code location, as in `dg.materialize`, and exports no name for it.
    from dagster._check import CheckError

    wanted = {key.to_user_string() for key in keys}
    try:
        sensors = context.repository_def.sensor_defs
    except CheckError:
        return None
    for sensor in sensors:
        collected = sensor.metadata.get(SENSOR_METADATA_KEY)
        if collected is not None and wanted <= set(str(collected.value).split(", ")):
            return sensor.name
    return None


def _keep_config(context: dg.AssetExecutionContext) -> dict[str, Any] | None:
    run_config: Mapping[str, Any] = context.run.run_config
    ops: Mapping[str, Any] = run_config.get("ops") or {}
    given = (ops.get(context.op_def.name) or {}).get("config")
    if not isinstance(given, Mapping):
        return None
    return {name: value for name, value in given.items() if name not in ASKED_ONCE}
