"""A Message Batch: a record that is decided when it is created or canceled, read against the clock. Pure.

in_progress -(seconds, at most 24 h)-> ended; in_progress -(cancel)-> canceling -> ended; 29 days after created_at: archived.
Nothing has to run for a batch to end, so a restart in between changes nothing.
"""

from dataclasses import dataclass, field, replace

from claude_batch_dagster.simulator.wire import draw, timestamp

EXPIRY_S = 86_400.0
ARCHIVED_AFTER_S = 29 * 86_400.0
OUTCOMES = ("succeeded", "errored", "canceled", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch as the books keep it. Times are epoch seconds."""

    id: str
    number: int
    """The order of creation in these books, from 1."""
    created_at: float
    takes_s: float
    """How long all of its requests need."""
    count: int
    version: str
    betas: tuple[str, ...] = ()
    retry_count: int = 0
    """The client's `x-stainless-retry-count` of the call that created it."""
    body_sha256: str = ""
    faults: dict[str, float] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)
    """How many requests end with each outcome."""
    cancel_initiated_at: float | None = None
    answered_share: float = 1.0
    """The share of the requests that are answered before the end."""
    deleted_at: float | None = None


def ended_at(batch: Batch) -> float:
    """When the batch ends or ended."""
    end = batch.created_at + min(batch.takes_s, EXPIRY_S)
    if batch.cancel_initiated_at is None:
        return end
    return min(end, batch.cancel_initiated_at + min(1.0, batch.takes_s / 4))


def hold_back(batch: Batch, now: float, *, held_from: float | None) -> float:
    """The time that counts for a batch: where it is held, half-way to its end at most; once canceled it ends all the same."""
    if held_from is None or batch.number < held_from or batch.cancel_initiated_at is not None:
        return now
    return min(now, batch.created_at + batch.takes_s / 2 - 1e-6)


def processing_status(batch: Batch, now: float) -> str:
    """`in_progress`, `canceling` or `ended`."""
    if now >= ended_at(batch):
        return "ended"
    return "in_progress" if batch.cancel_initiated_at is None else "canceling"


def is_archived(batch: Batch, now: float, after_s: float = ARCHIVED_AFTER_S) -> bool:
    """Whether the results are no longer available."""
    return now >= max(ended_at(batch), batch.created_at + after_s)


def cancel(batch: Batch, now: float) -> Batch:
    """The batch with its cancellation begun; what was answered by now stays answered. `tallies` are the caller's to count."""
    elapsed = max(0.0, now - batch.created_at) / batch.takes_s if batch.takes_s else 1.0
    return replace(batch, cancel_initiated_at=now, answered_share=min(batch.answered_share, elapsed))


def final_outcome(batch: Batch, custom_id: str, outcome: str) -> str:
    """What became of a request whose own outcome would be `outcome`."""
    if batch.answered_share < 1 and draw("answered", custom_id) >= batch.answered_share:
        return "expired" if batch.cancel_initiated_at is None else "canceled"
    return outcome


def describe_batch(batch: Batch, now: float, base_url: str, archived_after_s: float = ARCHIVED_AFTER_S) -> dict[str, object]:
    """The MessageBatch object, all ten keys; the counts flip at the end."""
    ended = processing_status(batch, now) == "ended"
    archived = is_archived(batch, now, archived_after_s)
    counts = {"processing": 0 if ended else batch.count} | {name: batch.tallies.get(name, 0) if ended else 0 for name in OUTCOMES}
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": processing_status(batch, now),
        "request_counts": {name: counts[name] for name in ("processing", "succeeded", "errored", "canceled", "expired")},
        "ended_at": timestamp(ended_at(batch)) if ended else None,
        "created_at": timestamp(batch.created_at),
        "expires_at": timestamp(batch.created_at + EXPIRY_S),
        "archived_at": timestamp(batch.created_at + archived_after_s) if archived else None,
        "cancel_initiated_at": None if batch.cancel_initiated_at is None else timestamp(batch.cancel_initiated_at),
        "results_url": f"{base_url}/v1/messages/batches/{batch.id}/results" if ended and not archived else None,
    }
