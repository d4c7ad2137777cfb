"""temporal_worker/policies.py: both tables, row by row."""

import inspect
from datetime import timedelta

import pytest
from temporalio.exceptions import ApplicationErrorCategory
from temporalio.workflow import ActivityCancellationType

from claude_batch_dagster.core import errors
from claude_batch_dagster.core.errors import ClaudeBatchError, TransientError
from temporal_worker.activities import BatchActivities
from temporal_worker.policies import NON_RETRYABLE_TYPES, POLICIES, activity_options, not_yet, to_failure
from temporal_worker.recovery import RecoveryActivities

RETRYABLE = {"TransientError", "VendorUnavailableError", "TemporalUnavailableError"}
ALL_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ClaudeBatchError)]


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.__name__)
def test_each_of_our_errors_as_a_failure(kind: type[ClaudeBatchError]) -> None:
    """Terminal ones are never retried; the type is the class's name and the message is kept."""
    failure = to_failure(kind("what failed"))
    assert (failure.type, failure.message) == (kind.__name__, "what failed")
    assert failure.non_retryable == (kind.__name__ not in RETRYABLE)
    assert failure.next_retry_delay is None


@pytest.mark.parametrize(
    ("asked_s", "least_s", "pause_s"), [(None, None, None), (7.0, None, 7.0), (None, 3.0, 3.0), (7.0, 3.0, 7.0), (1.0, 3.0, 3.0)]
)
def test_the_longer_pause_counts(asked_s: float | None, least_s: float | None, pause_s: float | None) -> None:
    """What the vendor asks for, and what we want at least."""
    failure = to_failure(TransientError("x", retry_after_s=asked_s), least_retry_s=least_s)
    assert failure.next_retry_delay == (None if pause_s is None else timedelta(seconds=pause_s))


def test_every_activity_has_a_policy_and_every_policy_an_activity() -> None:
    """Names that differ would be found in production only."""
    defined = {
        name: inspect.getdoc(member) or ""
        for kind in (BatchActivities, RecoveryActivities)
        for name, member in inspect.getmembers(kind)
        if hasattr(member, "__temporal_activity_definition")
    }
    assert set(defined) == set(POLICIES)
    assert [name for name, told in defined.items() if "Idempotent" not in told] == []


@pytest.mark.parametrize("name", POLICIES)
def test_policies_in_temporals_terms(name: str) -> None:
    """Every activity ends some time, beats, and never repeats an oversize result."""
    options = activity_options(name)
    assert timedelta(0) < options["heartbeat_timeout"] < options["start_to_close_timeout"]
    assert options["retry_policy"].non_retryable_error_types == list(NON_RETRYABLE_TYPES)
    assert "PayloadsTooLarge" in NON_RETRYABLE_TYPES
    waits = options["cancellation_type"] is ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
    # A canceled attempt that sends may have created a batch.
    assert waits == (name in ("open_run", "submit"))


def test_only_what_the_vendor_forgets_and_what_a_person_waits_for_is_given_up() -> None:
    """After the 29 days for which the vendor keeps results; and where a person waits."""
    limited = {name: policy.schedule_to_close_s for name, policy in POLICIES.items() if policy.schedule_to_close_s is not None}
    assert limited == {"see_through": 29 * 86_400, "adopt_batch": 1_800, "examine_vendor": 30}


def test_not_yet_is_benign_and_names_its_pause() -> None:
    """No error is logged and no metric counts it."""
    failure = not_yet("BatchInProgress", "Batch x in progress", 12.5)
    assert failure.category is ApplicationErrorCategory.BENIGN
    assert failure.next_retry_delay == timedelta(seconds=12.5)
    assert not failure.non_retryable
