"""core/outcome.py: every outcome and error, row by row."""

import pytest

from claude_batch_dagster.core.outcome import Outcome, error_type, is_final, is_retryable

ROWS = [
    ("succeeded", None, True, False),
    ("refused", "refusal: cyber", True, False),
    ("truncated", "max_tokens: cut", True, False),
    ("invalid", "not_json: 3 characters", True, False),
    ("errored", "invalid_request_error: max_tokens", True, False),
    ("errored", "request_too_large: too much", True, False),
    ("errored", "too_large: too much", True, False),
    ("errored", "api_error: Internal server error", False, True),
    ("errored", "overloaded_error: Overloaded", False, True),
    ("errored", "timeout_error: late", False, True),
    ("errored", "rate_limit_error: slow down", False, True),
    ("errored", "authentication_error: key", False, False),
    ("errored", "billing_error: money", False, False),
    ("errored", "not_found_error: no such model", False, False),
    ("errored", "result_missing: never came", False, False),
    ("errored", "unknown_result_type: teleported", False, False),
    ("errored", "unreadable_result: $.type", False, False),
    ("errored", None, False, False),
    ("expired", "expired: late", False, True),
    ("canceled", "canceled: by somebody", False, False),
    ("pending", None, False, False),
]


@pytest.mark.parametrize(("outcome", "error", "final", "retryable"), ROWS)
def test_what_becomes_of_an_outcome(outcome: str, error: str | None, final: bool, retryable: bool) -> None:
    """Final ones are left alone by the next run, retryable ones are asked again by this one."""
    assert (is_final(outcome, error), is_retryable(outcome, error)) == (final, retryable)


def test_no_outcome_is_both_final_and_retryable() -> None:
    """And the table above leaves none out."""
    assert {outcome for outcome, *_ in ROWS} == set(Outcome)
    assert not any(final and retryable for *_, final, retryable in ROWS)


def test_the_message_decides_nothing() -> None:
    """A message that names another type is still a message."""
    assert error_type("api_error: invalid_request_error: x") == "api_error"
    assert not is_final("errored", "api_error: invalid_request_error")
