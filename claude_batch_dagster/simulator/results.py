"""The lines of a batch's results: made when they are downloaded, the same every time."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import orjson

from claude_batch_dagster.simulator.answers import SURROGATE_MARK, UNSPOILT, Spoiling, answer_message, spoil
from claude_batch_dagster.simulator.batch import Batch
from claude_batch_dagster.simulator.books import Books, Entry
from claude_batch_dagster.simulator.faults import is_hit
from claude_batch_dagster.simulator.question import Refusal, read_question
from claude_batch_dagster.simulator.wire import derived_id, error_object

_CHUNK_LINES = 500
_ERRORS = {
    "errored-api": ("api_error", "Internal server error"),
    "errored-overloaded": ("overloaded_error", "Overloaded"),
    "errored-timeout": ("timeout_error", "The request timed out"),
}
_VISIBLE = {"error_visibility": "user_facing"}


def judge_request(version: str, betas: frozenset[str], faults: Mapping[str, float], custom_id: str, params: memoryview) -> str:
    """How a request ends that nobody cancels."""
    if is_hit(faults, "expire", custom_id):
        return "expired"
    if any(is_hit(faults, name, custom_id) for name in _ERRORS):
        return "errored"
    return "errored" if isinstance(read_question(params, version, betas, batch=True), Refusal) else "succeeded"


def results_chunks(books: Books, batch: Batch) -> Iterator[bytes]:
    """The body of a download, in pieces; lines are separated, so the last one has no newline."""
    lines: list[bytes] = []
    first = True
    for entry in books.shuffled_entries(batch.id):
        lines += entry_lines(batch, entry)
        if len(lines) >= _CHUNK_LINES:
            yield (b"" if first else b"\n") + b"\n".join(lines)
            first, lines = False, []
    if lines:
        yield (b"" if first else b"\n") + b"\n".join(lines)


def entry_lines(batch: Batch, entry: Entry) -> list[bytes]:
    """The lines of one request: one, or what faults make of it."""
    faults = batch.faults
    if not faults:
        return [orjson.dumps({"custom_id": entry.custom_id, "result": _result(batch, entry, UNSPOILT)})]
    hit = {name for name in faults if is_hit(faults, name, entry.custom_id)}
    if "missing-result" in hit:
        return []
    result = _result(batch, entry, spoil(hit))
    if "unknown-type" in hit:
        result = {"type": "postponed", "postponed": {"reason": "[simulated] a type that nobody knows"}}
    line = orjson.dumps({"custom_id": entry.custom_id, "result": result}).replace(SURROGATE_MARK.encode(), b"\\ud83d")
    lines = [line, line] if "duplicate-result" in hit else [line]
    if "foreign-result" in hit:
        lines.append(orjson.dumps({"custom_id": derived_id("foreign-", batch.id, entry.custom_id), "result": result}))
    return lines


def _result(batch: Batch, entry: Entry, spoiling: Spoiling) -> dict[str, object]:
    if entry.outcome in ("canceled", "expired"):
        return {"type": entry.outcome}
    if entry.outcome == "errored":
        return _errored(batch, entry)
    question = read_question(entry.params, batch.version, frozenset(batch.betas), batch=True)
    if isinstance(question, Refusal):
        return _errored(batch, entry)
    if question.shape.max_tokens < batch.faults.get("long-answers", 0):
        spoiling = replace(spoiling, truncated=True)
    message_id = derived_id("msg_01", batch.id, entry.custom_id)
    return {"type": "succeeded", "message": answer_message(question, message_id, spoiling=spoiling)}


def _errored(batch: Batch, entry: Entry) -> dict[str, object]:
    for name, (error_type, message) in _ERRORS.items():
        if is_hit(batch.faults, name, entry.custom_id):
            return {"type": "errored", "error": error_object(error_type, message, None)}
    refusal = read_question(entry.params, batch.version, frozenset(batch.betas), batch=True)
    if not isinstance(refusal, Refusal):
        raise RuntimeError(f"Batch {batch.id}, request {entry.custom_id}: judged errored at create, accepted now.")
    return {"type": "errored", "error": error_object(_error_type(batch, refusal), refusal.message, None, _VISIBLE)}


def _error_type(batch: Batch, refusal: Refusal) -> str:
    # Undocumented: batches name an unknown model invalid_request_error here, unless switched.
    if refusal.error_type == "not_found_error" and "model-not-found" not in batch.faults:
        return "invalid_request_error"
    return refusal.error_type
