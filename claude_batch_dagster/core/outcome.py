"""What becomes of a request's outcome: final, asked again in this run, or left to the next run.

| outcome | error type | final for later runs | again in this run |
|---|---|---|---|
| succeeded, refused | any | yes | no |
| truncated | max_tokens | yes | with a doubled max_tokens, up to the model's own |
| truncated | model_context_window_exceeded | yes | no |
| invalid | any | yes | unchanged, once |
| errored | invalid_request_error, request_too_large, too_large | yes | no |
| errored | api_error, overloaded_error, timeout_error, rate_limit_error | no | unchanged |
| errored | anything else (result_missing, unknown_result_type, ...) | no | no |
| expired | any | no | unchanged |
| canceled, pending | any | no | no |

Final is what its run would not ask again: where a run ended before the round that it grants (drained, canceled, failed, or the cap had no
money for it), the next run asks the request, whatever its outcome. Only the error's type decides, never its message.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """What became of one request; `pending` is a request without any answer."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    INVALID = "invalid"
    ERRORED = "errored"
    EXPIRED = "expired"
    CANCELED = "canceled"
    PENDING = "pending"


class Again(StrEnum):
    """How a request is asked in the next round of its run."""

    UNCHANGED = "unchanged"
    LARGER = "larger"
    ONCE = "once"


FINAL_OUTCOMES = frozenset({Outcome.SUCCEEDED, Outcome.REFUSED, Outcome.TRUNCATED, Outcome.INVALID})
FINAL_ERRORS = frozenset({"invalid_request_error", "request_too_large", "too_large"})
RETRYABLE_ERRORS = frozenset({"api_error", "overloaded_error", "timeout_error", "rate_limit_error"})
CUT_BY_MAX_TOKENS = "max_tokens"
UNKNOWN_MODEL_MAX_TOKENS = 64_000
"""How far `max_tokens` is raised where the vendor does not say what the model allows: the least of any model that is not retired."""


def error_type(error: str | None) -> str:
    """Return the type of a `{type}: {message}` error.

    >>> error_type("api_error: Internal server error")
    'api_error'
    """
    return (error or "").partition(":")[0].strip()


def is_final(outcome: str, error: str | None) -> bool:
    """Tell whether the next run leaves the request as it is, once its own run grants it no further round."""
    return outcome in FINAL_OUTCOMES or (outcome == Outcome.ERRORED and error_type(error) in FINAL_ERRORS)


def choose_again(outcome: str, error: str | None) -> Again | None:
    """Return how the same run asks the request again in its next round, None where it does not.

    `once` is unchanged, unless the run asked it again for the same reason before; `larger` is with `raise_max_tokens`.
    """
    match outcome:
        case Outcome.EXPIRED:
            return Again.UNCHANGED
        case Outcome.ERRORED if error_type(error) in RETRYABLE_ERRORS:
            return Again.UNCHANGED
        case Outcome.TRUNCATED if error_type(error) == CUT_BY_MAX_TOKENS:
            return Again.LARGER
        case Outcome.INVALID:
            return Again.ONCE
        case _:
            return None


def raise_max_tokens(max_tokens: int, model_max_tokens: int | None) -> int | None:
    """Return what a request that was cut is asked with next: twice as much, or what its model allows; None where it had that already.

    >>> raise_max_tokens(300, 64_000), raise_max_tokens(40_000, 64_000), raise_max_tokens(64_000, 64_000)
    (600, 64000, None)
    """
    most = UNKNOWN_MODEL_MAX_TOKENS if model_max_tokens is None else model_max_tokens
    return min(2 * max_tokens, most) if max_tokens < most else None
