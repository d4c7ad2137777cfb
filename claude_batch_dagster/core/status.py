"""What a row of an output is: the words of its column `status`."""

STATUSES = ("succeeded", "refused", "truncated", "invalid", "errored", "expired", "canceled", "skipped", "pending")
FAILED_STATUSES = ("truncated", "invalid", "errored", "expired", "canceled", "pending")
"""Of rows without a usable answer, or none yet; a refusal is an answer."""
