"""What earlier materializations said about themselves, from Dagster's event log: one call for each asset."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from claude_batch_dagster.core.status import STATUSES

HISTORY = 200
"""So many materializations are looked back at, at most: what a chart and a comparison cost is bounded."""
LABELS_KEY = "claude_batch/labels"
ENDPOINT_KEY = "claude_batch/endpoint"
COST_KEY = "claude_batch/cost_usd"
REQUESTS_KEY = "claude_batch/requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One materialization.

    Attributes:
        partition: None for an asset without partitions.
        at: When it was logged, in seconds since 1970.
        endpoint: Who answered; None for one that did not say so.
        labels: Answered rows by label, by column.
        rows: Rows by status.
        cost_usd: None where it is not known.
        requests: That were asked.
    """

    partition: str | None
    at: float
    endpoint: str | None
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    cost_usd: float | None = None
    requests: int = 0


def read_history(instance: dg.DagsterInstance, asset_key: dg.AssetKey, *, limit: int = HISTORY) -> list[Past]:
    """Return an asset's last materializations, the newest first.

    Args:
        instance: Whose event log is read, with one call.
        asset_key: The asset.
        limit: So many at most.
    """
    found = []
    for record in instance.fetch_materializations(asset_key, limit=limit).records:
        materialization = record.asset_materialization
        if materialization is None:
            continue
        said = {name: value.value for name, value in materialization.metadata.items()}
        found.append(past_of(said, partition=record.partition_key, at=record.timestamp))
    return found


def past_of(said: Mapping[str, Any], *, partition: str | None, at: float) -> Past:
    """Return what a materialization's metadata says, as far as later runs look back at it."""
    labels = said.get(LABELS_KEY)
    return Past(
        partition=partition,
        at=at,
        endpoint=said.get(ENDPOINT_KEY),
        labels=labels if isinstance(labels, Mapping) else {},
        rows={status: int(said[f"claude_batch/{status}"]) for status in STATUSES if f"claude_batch/{status}" in said},
        cost_usd=said.get(COST_KEY),
        requests=int(said.get(REQUESTS_KEY, 0)),
    )


def newest_by_partition(history: Sequence[Past]) -> dict[str | None, Past]:
    """Return the newest of each partition."""
    found: dict[str | None, Past] = {}
    for past in history:
        found.setdefault(past.partition, past)
    return found


def in_order(partitions: Iterable[str], definition: "dg.PartitionsDefinition[str] | None") -> list[str]:
    """Return partitions in the order of time where they have one, of their definition where that lists them, else by name."""
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        began = {key: _start(definition, key) for key in partitions}
        return sorted((key for key in began if began[key] is not None), key=lambda key: str(began[key]))
    if isinstance(definition, dg.StaticPartitionsDefinition):
        place = {key: at for at, key in enumerate(definition.get_partition_keys())}
        return sorted(partitions, key=lambda key: (place.get(key, len(place)), key))
    return sorted(partitions)


def _start(definition: dg.TimeWindowPartitionsDefinition, key: str) -> datetime | None:
    """Return when a partition begins, None for a key of a former definition."""
    try:
        return definition.time_window_for_partition_key(key).start.astimezone(UTC)
    except ValueError:
        return None
