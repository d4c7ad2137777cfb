"""core/outcome.py: every outcome and error, row by row."""

import pytest

from claude_batch_dagster.core.outcome import UNKNOWN_MODEL_MAX_TOKENS, Again, Outcome, choose_again, error_type, is_final, raise_max_tokens

ROWS = [
    ("succeeded", None, True, None),
    ("refused", "refusal: cyber", True, None),
    ("truncated", "max_tokens: cut", True, Again.LARGER),
    ("truncated", "model_context_window_exceeded: cut", True, None),
    ("invalid", "not_json: 3 characters", True, Again.ONCE),
    ("invalid", "schema_violation: /label", True, Again.ONCE),
    ("errored", "invalid_request_error: max_tokens", True, None),
    ("errored", "request_too_large: too much", True, None),
    ("errored", "too_large: too much", True, None),
    ("errored", "api_error: Internal server error", False, Again.UNCHANGED),
    ("errored", "overloaded_error: Overloaded", False, Again.UNCHANGED),
    ("errored", "timeout_error: late", False, Again.UNCHANGED),
    ("errored", "rate_limit_error: slow down", False, Again.UNCHANGED),
    ("errored", "authentication_error: key", False, None),
    ("errored", "billing_error: money", False, None),
    ("errored", "not_found_error: no such model", False, None),
    ("errored", "result_missing: never came", False, None),
    ("errored", "unknown_result_type: teleported", False, None),
    ("errored", "unreadable_result: $.type", False, None),
    ("errored", None, False, None),
    ("expired", "expired: late", False, Again.UNCHANGED),
    ("canceled", "canceled: by somebody", False, None),
    ("pending", None, False, None),
]


@pytest.mark.parametrize(("outcome", "error", "final", "again"), ROWS)
def test_what_becomes_of_an_outcome(outcome: str, error: str | None, final: bool, again: Again | None) -> None:
    """Final ones are left alone by the next run; this one asks again what may end differently."""
    assert (is_final(outcome, error), choose_again(outcome, error)) == (final, again)


def test_no_outcome_is_left_out() -> None:
    """The table above has a row for each."""
    assert {outcome for outcome, *_ in ROWS} == set(Outcome)


def test_what_is_asked_again_unchanged_is_what_the_next_run_asks_too() -> None:
    """Where a run ended before its last round, its requests are not given up."""
    assert not any(final for *_, final, again in ROWS if again is Again.UNCHANGED)


@pytest.mark.parametrize(
    ("max_tokens", "model_max_tokens", "raised"),
    [
        (1, 64_000, 2),
        (300, 64_000, 600),
        (40_000, 64_000, 64_000),
        (63_999, 64_000, 64_000),
        (64_000, 64_000, None),
        (100_000, 64_000, None),
        (300, None, 600),
        (40_000, None, UNKNOWN_MODEL_MAX_TOKENS),
        (64_000, None, None),
        (64_000, 128_000, 128_000),
    ],
)
def test_a_cut_answer_gets_twice_the_room_up_to_what_the_model_allows(
    max_tokens: int, model_max_tokens: int | None, raised: int | None
) -> None:
    """Where the vendor does not say what the model allows, what every current model allows is the limit."""
    assert raise_max_tokens(max_tokens, model_max_tokens) == raised


def test_the_message_decides_nothing() -> None:
    """A message that names another type is still a message."""
    assert error_type("api_error: invalid_request_error: x") == "api_error"
    assert not is_final("errored", "api_error: invalid_request_error")
    assert choose_again("errored", "invalid_request_error: api_error") is None
