"""Response files as the tests of this folder write them."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.compaction import Limits
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LONG_AGO = timedelta(days=2)
# Whatever is there is indexed, and every file is small.
ALWAYS = Limits(fresh_rows=0, fresh_share=0.0, fresh_files=0, compacted_files=1)
NEVER_JOINED = Limits(fresh_rows=0, fresh_share=0.0, fresh_files=0, small_rows=0)
# (outcome, error) -> whether it is asked again by the next run.
OUTCOMES = {
    ("succeeded", None): True,
    ("refused", "refusal: no category given"): True,
    ("truncated", "max_tokens: cut"): True,
    ("invalid", "not_json: x"): True,
    ("errored", "invalid_request_error: x"): True,
    ("errored", "too_large: x"): True,
    ("errored", "api_error: x"): False,
    ("errored", "result_missing: x"): False,
    ("expired", "expired: x"): False,
    ("canceled", "canceled: x"): False,
}
# Keys that share halves with each other.
HARD = [bytes(15) + bytes([i]) for i in range(1, 5)] + [b"\xff" * 8 + bytes(7) + bytes([i]) for i in range(3)] + [bytes(8) + b"\x01" * 8]


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


def write(store: Store, batch_id: str, responses: Sequence[Response], minutes: int = 0, number: int = 1, task_key: str = "t") -> None:
    write_responses(
        store,
        endpoint="simulator",
        task_key=task_key,
        batch_id=batch_id,
        round_number=number,
        answered_at=NOON + timedelta(minutes=minutes),
        responses=responses,
    )


def answer(number: int, text: str | None = None) -> Response:
    return Response(request_key=key(number), outcome="succeeded", answer=str(number) if text is None else text, output_tokens=number)
