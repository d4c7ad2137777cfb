"""The vendor's replies as JSON, and a batch made of one. Nothing of the vendor's client."""

from datetime import UTC, datetime
from typing import Literal

import msgspec

from temporal_worker.vendor import Batch


class WireCounts(msgspec.Struct):
    """`request_counts`; their sum is the batch's size from the first reply on."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class WireBatch(msgspec.Struct):
    """A MessageBatch."""

    type: Literal["message_batch"]
    id: str
    processing_status: str
    request_counts: WireCounts
    created_at: datetime
    ended_at: datetime | None = None
    archived_at: datetime | None = None
    cancel_initiated_at: datetime | None = None


class WirePage(msgspec.Struct):
    """A page of the list of batches, newest first."""

    data: list[WireBatch]
    has_more: bool = False


class WireModel(msgspec.Struct):
    """A model of the catalogue."""

    id: str
    lifecycle: str = "active"
    retires_at: str | None = None
    max_tokens: int | None = None
    max_input_tokens: int | None = None
    capabilities: dict[str, object] | None = None


def describe_batch(found: WireBatch, now: datetime | None, retry_after_s: float | None) -> Batch:
    """Return a batch in our words; `now` is the vendor's clock, None where the reply does not say."""
    counts = found.request_counts
    since = found.cancel_initiated_at or found.created_at
    return Batch(
        id=found.id,
        processing_status=found.processing_status,
        requests=counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired,
        created_at=found.created_at.astimezone(UTC),
        ended_at=None if found.ended_at is None else found.ended_at.astimezone(UTC),
        archived=found.archived_at is not None,
        age_s=0.0 if now is None else max(0.0, (now - since).total_seconds()),
        retry_after_s=retry_after_s,
    )
