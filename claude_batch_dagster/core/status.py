"""What a row of an output is: the words of its column `status`, and what the columns beside it say."""

from collections.abc import Mapping

STATUSES = ("succeeded", "refused", "truncated", "invalid", "errored", "expired", "canceled", "skipped", "pending")
FAILED_STATUSES = ("truncated", "invalid", "errored", "expired", "canceled", "pending")
"""Of rows without a usable answer, or none yet; a refusal is an answer."""
STATUS_DESCRIPTIONS: Mapping[str, str] = {
    "status": "What became of the row: " + " | ".join(STATUSES) + ".",
    "error": "Why there is no answer, as `{type}: {message}`.",
    "stop_reason": "Why Claude stopped, as the Messages API says it.",
    "model": "The model that answered.",
    "input_tokens": "Prompt tokens less cache reads and writes.",
    "output_tokens": "Tokens of the answer, thinking included.",
    "cache_read_tokens": "Prompt tokens read from the cache.",
    "cache_write_tokens": "Prompt tokens written to the cache.",
    "cost_usd": "Cost at batch price, on the first row that shares an answer; null where the model has no known price.",
    "request_key": "First 128 bits of SHA-256 over the request's params, in hex.",
    "task_key": "First 128 bits of SHA-256 over the task's definition, in hex.",
    "batch_id": "The Message Batch that answered.",
    "answered_at": "When that batch ended.",
}
