"""New files become dynamic partitions: a sensor that adds one for each, and requests its run once the file is complete."""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import dagster as dg

from claude_batch_dagster.core.errors import SourceError, TransientError, UsageError
from claude_batch_dagster.storage.dataset import Dataset, ParquetDataset

DEFAULT_INTERVAL_S = 60
DEFAULT_MAX_PARTITIONS = 100
WATCHED_TICKS = 10
"""Of so many ticks' worth of new partitions the state is remembered; what is beyond them waits for its turn."""
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f]|\.\.\.")
"""What Dagster does not take in a dynamic partition's key (1.13.27)."""


def build_parquet_files_sensor(
    source: Dataset,
    partitions_def: dg.DynamicPartitionsDefinition,
    *,
    target: Any,
    name: str = "new_parquet_files",
    settle_ticks: int = 1,
    max_partitions_per_tick: int = DEFAULT_MAX_PARTITIONS,
    minimum_interval_seconds: int = DEFAULT_INTERVAL_S,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """Build a sensor that adds a dynamic partition for each new file of a source, and requests a run of it.

    What a partition is says the source: `ParquetDataset(path="drops/{partition}.parquet", partition_column="file", ...)` has one for each
    file, `drops/{partition}/*.parquet` or hive folders one for each folder. A tick lists the folder once. A partition that is there is never
    requested again by the sensor, also where its files change later: materialize it, which asks only about what changed.

    Args:
        source: The files.
        partitions_def: Of the assets that read them.
        target: What is materialized: assets, a selection or a job, as `dg.sensor(target=...)` takes it.
        name: Of the sensor.
        settle_ticks: A file is taken when its size and version were the same for so many ticks; 0 for at once, where files appear whole.
        max_partitions_per_tick: So many runs are requested at most; the rest in the next ticks, in the order of their keys.
        minimum_interval_seconds: Between ticks.
        default_status: Whether it runs as soon as the code location is loaded.
        tags: Of the runs.

    Raises:
        UsageError: Terminal. The source has no files of its own, or says of none which partition it is.
    """
    if not isinstance(source, ParquetDataset) or source.path is None or source.partition_column is None:
        raise UsageError(
            f"The sensor {name} needs to know which partition a file is, and {source.place} does not say. Give it a ParquetDataset whose path has "
            '{partition}, for instance path="drops/{partition}.parquet", partition_column="file".'
        )
    partitions_name = partitions_def.name
    if partitions_name is None:
        raise UsageError(f"The sensor {name} needs a DynamicPartitionsDefinition with a name. Give it one: name=...")
    if settle_ticks < 0 or max_partitions_per_tick < 1:
        raise UsageError(
            f"The sensor {name} has settle_ticks={settle_ticks} and max_partitions_per_tick={max_partitions_per_tick}; at least 0 and 1 are possible. Choose such numbers."
        )

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            found = _list_partitions(source)
        except (SourceError, TransientError) as error:
            # An empty folder is no failure: its files are what is waited for.
            return dg.SkipReason(str(error))
        strange = sorted(key for key in found if FORBIDDEN.search(key))
        if strange:
            context.log.warning(
                f"{len(strange)} files have names that no partition can have, and are passed over: {', '.join(strange[:5])}"
            )
        known = set(context.instance.get_dynamic_partitions(partitions_name))
        watched = _read_cursor(context.cursor)
        # What is watched is requested even where it is known: a tick that failed after the partition was added had not requested its run.
        new = sorted(key for key in found if (key not in known or key in watched) and not FORBIDDEN.search(key))
        kept: dict[str, tuple[str, int]] = {}
        taken: list[str] = []
        for key in new[: max_partitions_per_tick * WATCHED_TICKS]:
            version, ticks = watched.get(key, ("", -1))
            ticks = ticks + 1 if version == found[key] else 0
            if ticks >= settle_ticks and len(taken) < max_partitions_per_tick:
                taken.append(key)
            else:
                kept[key] = (found[key], ticks)
        cursor = json.dumps({"watched": kept})
        if not taken:
            waiting = f"{len(new):,} new, and not yet the same for {settle_ticks} ticks" if new else "none is new"
            return dg.SensorResult(skip_reason=f"{len(found):,} partitions below {source.path}, {waiting}.", cursor=cursor)
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{name}:{key}:{found[key]}", partition_key=key, tags=dict(tags or {})) for key in taken],
            dynamic_partitions_requests=[partitions_def.build_add_request([key for key in taken if key not in known])],
            cursor=cursor,
        )

    return dg.SensorDefinition(
        name=name,
        evaluation_fn=evaluate,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=f"Adds a partition for each new file of {source.path}, and materializes it when the file is complete.",
    )


def _list_partitions(source: ParquetDataset) -> dict[str, str]:
    """Return what changes when any of a partition's files does, by partition."""
    from claude_batch_dagster.storage.listing import list_dataset

    listing = list_dataset(source)
    if source.partition_column not in listing.hive_columns:
        raise SourceError(
            f"The files of {source.uri} do not say in their paths which partition they are. Nothing was requested. Use a path with {{partition}}, or "
            f"hive folders {source.partition_column}=VALUE/."
        )
    found: dict[str, list[str]] = {}
    for file in listing.files:
        found.setdefault(dict(file.hive)[source.partition_column], []).append(f"{file.path} {file.version}")
    return {key: _digest(files) for key, files in found.items()}


def _digest(files: Sequence[str]) -> str:

    return sha256("\n".join(files).encode()).hexdigest()[:16]


def _read_cursor(cursor: str | None) -> dict[str, tuple[str, int]]:
    if not cursor:
        return {}
    found: dict[str, Any] = json.loads(cursor).get("watched", {})
    return {key: (str(version), int(ticks)) for key, (version, ticks) in found.items()}
