"""What becomes of a request's outcome: final, asked again in this run, or left to the next run.

| outcome | error type | final | again in this run |
|---|---|---|---|
| succeeded, refused, truncated, invalid | any | yes | no |
| errored | invalid_request_error, request_too_large, too_large | yes | no |
| errored | api_error, overloaded_error, timeout_error, rate_limit_error | no | yes |
| errored | anything else (result_missing, unknown_result_type, ...) | no | no |
| expired | any | no | yes |
| canceled, pending | any | no | no |

Only the error's type decides, never its message.
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


FINAL_OUTCOMES = frozenset({Outcome.SUCCEEDED, Outcome.REFUSED, Outcome.TRUNCATED, Outcome.INVALID})
FINAL_ERRORS = frozenset({"invalid_request_error", "request_too_large", "too_large"})
RETRYABLE_ERRORS = frozenset({"api_error", "overloaded_error", "timeout_error", "rate_limit_error"})


def error_type(error: str | None) -> str:
    """Return the type of a `{type}: {message}` error.

    >>> error_type("api_error: Internal server error")
    'api_error'
    """
    return (error or "").partition(":")[0].strip()


def is_final(outcome: str, error: str | None) -> bool:
    """Tell whether the next run leaves the request as it is."""
    return outcome in FINAL_OUTCOMES or (outcome == Outcome.ERRORED and error_type(error) in FINAL_ERRORS)


def is_retryable(outcome: str, error: str | None) -> bool:
    """Tell whether the same run asks the request again, unchanged, in its next round."""
    return outcome == Outcome.EXPIRED or (outcome == Outcome.ERRORED and error_type(error) in RETRYABLE_ERRORS)
