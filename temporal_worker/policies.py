"""Two tables: how long and how often each activity is tried, and what our errors are to Temporal."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.workflow import ActivityCancellationType

from claude_batch_dagster.core.errors import ClaudeBatchError, CredentialsError, RootError, SpendLimitError, TerminalError, TransientError

NON_RETRYABLE_TYPES = (
    "PayloadsTooLarge",
    "ArrowInvalid",
    "ArrowTypeError",
    "AssertionError",
    "AttributeError",
    "IndexError",
    "KeyError",
    "NameError",
    "NotImplementedError",
    "TypeError",
    "ValidationError",
    "ValueError",
)
"""Besides our own terminal errors: Temporal retries a result that is too large for ever, and a bug fails the same way each time."""

MENDED_BY_PEOPLE = (CredentialsError.__name__, RootError.__name__, SpendLimitError.__name__)
"""Errors that a run waits out once it has begun, with a question."""
BATCH_IN_PROGRESS = "BatchInProgress"
WORKER_BUSY = "WorkerBusy"
CALLED_OFF = "CalledOff"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityPolicy:
    """How an activity is tried.

    Attributes:
        start_to_close_s: Of one attempt.
        heartbeat_s: After so many seconds of silence an attempt counts as dead; attempts beat far more often.
        schedule_to_close_s: Of all attempts together, None for as long as the run lives.
        first_retry_s: Pause after the first failure that names no pause of its own.
        backoff: Factor of each following pause.
        longest_retry_s: The longest pause.
        attempts: At most, 0 for any number.
        waits_for_cancel: Whether the workflow waits for what a canceled attempt still did.
    """

    start_to_close_s: float
    heartbeat_s: float = 15.0
    schedule_to_close_s: float | None = None
    first_retry_s: float = 1.0
    backoff: float = 2.0
    longest_retry_s: float = 60.0
    attempts: int = 0
    waits_for_cancel: bool = False


POLICIES: dict[str, ActivityPolicy] = {
    # A new task's try may take ten minutes to answer. It submits as well.
    "open_run": ActivityPolicy(start_to_close_s=3_600, heartbeat_s=30, longest_retry_s=300, waits_for_cancel=True),
    # A canceled submit may have created its batch: what it did has to be known before anything is closed.
    "submit": ActivityPolicy(start_to_close_s=1_800, heartbeat_s=30, longest_retry_s=300, waits_for_cancel=True),
    "find_candidates": ActivityPolicy(start_to_close_s=1_800),
    "settle": ActivityPolicy(start_to_close_s=7_200, first_retry_s=5, backoff=1),
    # A person waits for it.
    "adopt_batch": ActivityPolicy(start_to_close_s=1_800, schedule_to_close_s=1_800, attempts=5),
    # The vendor keeps results for 29 days; its outages and ours are waited out. Not yet ended is a failure with a pause of its own.
    "see_through": ActivityPolicy(start_to_close_s=7_200, schedule_to_close_s=29 * 86_400, first_retry_s=5, backoff=1),
    "cancel_batches": ActivityPolicy(start_to_close_s=600),
    "close_shards": ActivityPolicy(start_to_close_s=1_800),
    "open_round": ActivityPolicy(start_to_close_s=7_200),
    "finish_run": ActivityPolicy(start_to_close_s=7_200),
    # A stretch is short, but one batch of it may be large.
    "harvest": ActivityPolicy(start_to_close_s=7_200, heartbeat_s=30),
    "audit": ActivityPolicy(start_to_close_s=7_200, heartbeat_s=30),
    # A person waits for it.
    "examine_vendor": ActivityPolicy(start_to_close_s=25, schedule_to_close_s=30, attempts=2),
}


class ActivityOptions(TypedDict):
    """Arguments of `workflow.execute_activity_method`."""

    start_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    schedule_to_close_timeout: timedelta | None
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType


def activity_options(name: str) -> ActivityOptions:
    """Return an activity's policy in Temporal's terms."""
    policy = POLICIES[name]
    return ActivityOptions(
        start_to_close_timeout=timedelta(seconds=policy.start_to_close_s),
        heartbeat_timeout=timedelta(seconds=policy.heartbeat_s),
        schedule_to_close_timeout=None if policy.schedule_to_close_s is None else timedelta(seconds=policy.schedule_to_close_s),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=policy.first_retry_s),
            backoff_coefficient=policy.backoff,
            maximum_interval=timedelta(seconds=policy.longest_retry_s),
            maximum_attempts=policy.attempts,
            non_retryable_error_types=list(NON_RETRYABLE_TYPES),
        ),
        cancellation_type=(
            ActivityCancellationType.WAIT_CANCELLATION_COMPLETED if policy.waits_for_cancel else ActivityCancellationType.TRY_CANCEL
        ),
    )


FAILURES: tuple[tuple[type[ClaudeBatchError], bool], ...] = (
    (TerminalError, False),
    (TransientError, True),
    (ClaudeBatchError, False),
)
"""Our errors and whether Temporal tries again, first match wins; a transient one's `retry_after_s` is the pause before it."""


def to_failure(error: ClaudeBatchError, *, least_retry_s: float | None = None) -> ApplicationError:
    """Return an error as Temporal's failure, of the type of its class.

    Args:
        error: Ours.
        least_retry_s: The shortest pause before the next attempt, None to leave pauses to the policy where the error names none.
    """
    retryable = next(retryable for kind, retryable in FAILURES if isinstance(error, kind))
    asked_s = error.retry_after_s if isinstance(error, TransientError) else None
    pauses_s = [pause_s for pause_s in (asked_s, least_retry_s) if pause_s is not None]
    return ApplicationError(
        str(error),
        type=type(error).__name__,
        non_retryable=not retryable,
        next_retry_delay=timedelta(seconds=max(pauses_s)) if retryable and pauses_s else None,
    )


def is_final(error: Exception) -> bool:
    """Tell whether an error ends an activity for good."""
    if isinstance(error, ClaudeBatchError):
        return bool(to_failure(error).non_retryable)
    return type(error).__name__ in NON_RETRYABLE_TYPES


def not_yet(kind: str, text: str, retry_s: float) -> ApplicationError:
    """Return the failure that is none: the activity comes again after a pause, without a trace in the history."""
    return ApplicationError(text, type=kind, next_retry_delay=timedelta(seconds=retry_s), category=ApplicationErrorCategory.BENIGN)


def tell_cause(error: BaseException) -> str:
    """Return what a workflow tells of a failed activity: the message of what failed in it."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return str(getattr(cause, "message", None) or cause or error)


def find_kind(error: BaseException) -> str | None:
    """Return the name of our error that failed an activity, None for anything else."""
    cause = error.cause if isinstance(error, ActivityError) else None
    return cause.type if isinstance(cause, ApplicationError) else None
