"""What crosses Temporal for `recover` and `doctor --audit`: references and counts only, never a key, a row or an answer.

Both sides import this file; a new field gets a default.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from claude_batch_dagster.core.contract import Counts

RECOVER_WORKFLOW_TYPE = "RecoverWorkflow"
RECOVER_ID_PREFIX = "claude-batch-recover/"
AUDIT_WORKFLOW_TYPE = "AuditWorkflow"
AUDIT_ID_PREFIX = "claude-batch-audit/"
RESULTS_KEPT = timedelta(days=29)
"""How long results can be read, from a batch's creation. Source: platform.claude.com batch processing, limitations (checked 2026-11-22)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTask:
    """A task whose answers are wanted.

    Attributes:
        name: As custom_ids carry it: at most 22 characters.
        keys: Path, below the root, of the Parquet file with the wanted request_keys.
        count: How many there are.
    """

    name: str
    task_key: str
    keys: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverInput:
    """Input of the workflow and of its activity.

    Attributes:
        root: URI of the root, which is pinned.
        recovery_id: UUIDv7; what the recovery stages is below `recoveries/{recovery_id}/`.
        wait: Whether batches in progress are waited for.
        events_before_continue: History events after which the workflow continues as new.
    """

    root: str
    recovery_id: str
    tasks: tuple[WantedTask, ...]
    wait: bool = True
    events_before_continue: int = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What a recovery found so far, in batches of the last 29 days.

    Attributes:
        looked: That were looked at and have ended.
        in_progress: That are in no record and have not ended: whose they are shows at their end.
        harvested: Whose answers are stored now and were not before.
        stored_before: Whose answers were in the root already.
        left_to_runs: Of open runs of this root, which collect them themselves.
        other: Of this product, with none of the wanted requests: other rows, other prompts, other tasks.
        foreign: Of others.
        archived: Whose results the vendor has no more.
        unreadable: Whose results the vendor refuses.
        strays: Harvested ones that came after their shard was given up.
        counts: The responses stored now.
        other_names: Wanted requests that were asked under another task name, by that name.
    """

    looked: int = 0
    in_progress: int = 0
    harvested: int = 0
    stored_before: int = 0
    left_to_runs: int = 0
    other: int = 0
    foreign: int = 0
    archived: int = 0
    unreadable: int = 0
    strays: int = 0
    counts: Counts = field(default_factory=Counts)
    other_names: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestStep:
    """Result of `harvest`: one stretch of work.

    Attributes:
        complete: Whether every batch of the list was looked at.
        pause_s: Until batches in progress are worth another look.
    """

    harvest: Harvest
    complete: bool
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverProgress:
    """Answer of the `progress` query; `note` is one sentence on what the recovery does now."""

    harvest: Harvest = field(default_factory=Harvest)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditInput:
    """Input of the audit's workflow and of its activity."""

    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedBatch:
    """A batch worth naming.

    Attributes:
        run: `r42`, None where no record knows it.
        note: What is known of it besides.
    """

    id: str
    run: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Result of the audit: the vendor's list of the last 29 days against the root's records, in batches unless said otherwise.

    Attributes:
        listed: At the vendor.
        recorded: Of runs of this root.
        recovered: Without a run, answers stored by `recover`.
        foreign: Of others, as their first result says.
        in_progress: In no record, not ended: whose they are shows at their end.
        strays: That came after their shard was given up, and are not stored.
        unstored: Of this product by their custom_ids, ended, in no record and not stored, or stored in part.
        lost: Of records, not collected, and no longer readable at the vendor: archived or deleted.
        gone: How many collected ones the vendor has no more.
        paid_twice: Requests with two usable answers that nobody asked for twice.
        twice_unknown: Requests with two usable answers, one of them from before the records were lost.
        unreadable: Whose results the vendor refuses.
        examples: Some batches of each kind, by the names above.
    """

    listed: int = 0
    recorded: int = 0
    recovered: int = 0
    foreign: int = 0
    in_progress: int = 0
    strays: int = 0
    unstored: int = 0
    lost: int = 0
    gone: int = 0
    paid_twice: int = 0
    twice_unknown: int = 0
    unreadable: int = 0
    examples: dict[str, tuple[AuditedBatch, ...]] = field(default_factory=dict)
