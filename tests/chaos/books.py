"""The judge: what the vendor's books and the written files say about a round."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.simulator.books import Books
from claude_batch_dagster.simulator.faults import is_hit
from claude_batch_dagster.storage.plans import list_submissions, read_done, read_entries
from claude_batch_dagster.storage.store import Store

USELESS = frozenset({"truncated", "invalid", "pause", "unknown-type", "missing-result"})
"""Faults after which an answer that was paid for is asked for again (DESIGN, "What becomes of a failed request")."""
FINAL_FAILURES = {"refused": {"refusal"}, "truncated": {"truncated"}, "invalid": {"invalid", "pause"}}
"""Statuses that may stay, and the faults that they need."""
TAG_CHARS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one output has to hold: the task's name, and each row's key and text, in order."""

    task: str
    output: Path
    ids: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found.

    Attributes:
        paid_twice: Requests, by name and key, that were answered again after a useful answer, with the numbers of their batches.
    """

    rows_in: int = 0
    rows_out: int = 0
    faulty_rows: int = 0
    batches: int = 0
    answers: int = 0
    paid_twice: dict[str, list[int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.errors and not self.paid_twice


def judge_round(books: Books, root: Path, expected: list[Expected]) -> Verdict:
    """Compare the books, the root's records and the outputs."""
    verdict = Verdict()
    answers = _read_answers(books, verdict)
    _check_records(books, Store(str(root)), verdict)
    for request, paid in answers.items():
        # In the order of creation: after a useful answer nothing may be asked again.
        useful = [number for number, is_useful, batch_id in paid if is_useful]
        first = min(useful, default=None)
        repeats = [number for number, _, _ in paid if first is not None and number >= first]
        if len(repeats) > 1:
            verdict.paid_twice[request] = repeats
    for one in expected:
        _judge_output(one, books, answers, verdict)
    return verdict


def _read_answers(books: Books, verdict: Verdict) -> dict[str, list[tuple[int, bool, str]]]:
    """Return, by name and key, each answer that was paid for: the batch's number, whether the answer is useful, the batch's id."""
    answers: dict[str, list[tuple[int, bool, str]]] = {}
    for batch in reversed(books.newest_first(deleted=True)):
        verdict.batches += 1
        useless = USELESS & batch.faults.keys()
        seen: set[str] = set()
        for custom_id, outcome in books.outcomes(batch.id):
            if custom_id in seen:
                verdict.errors.append(f"batch {batch.id} has {custom_id} twice")
            seen.add(custom_id)
            if outcome == "succeeded":
                verdict.answers += 1
                is_useful = not any(is_hit(batch.faults, name, custom_id) for name in useless)
                answers.setdefault(custom_id[:-TAG_CHARS], []).append((batch.number, is_useful, batch.id))
    return answers


def find_unnamed(books: Books, store: Store) -> list[str]:
    """Return the batches that no record of the root names."""
    named = {path.rpartition("/")[2].removesuffix(".json") for path in store.list("strays")}
    for entry in read_entries(store):
        for records in list_submissions(store, entry.run_id).values():
            named |= {record.id for record in records if isinstance(record, Accepted)}
    return [batch.id for batch in books.newest_first(deleted=True) if batch.id not in named]


def _check_records(books: Books, store: Store, verdict: Verdict) -> None:
    for entry in read_entries(store):
        done = read_done(store, entry.number)
        if done is None:
            verdict.errors.append(f"batch run {entry.label} is open for ever")
        elif sum(done.rows.values()) != entry.keys.count:
            verdict.errors.append(f"batch run {entry.label} counts {done.rows}, it owns {entry.keys.count}")
    if unnamed := find_unnamed(books, store):
        verdict.errors.append(f"{len(unnamed)} batches are in no record: {unnamed}")


def _judge_output(one: Expected, books: Books, answers: dict[str, list[tuple[int, bool, str]]], verdict: Verdict) -> None:
    verdict.rows_in += len(one.ids)
    path = one.output / "part-0.parquet"
    if not path.exists():
        verdict.errors.append(f"{path} was never written")
        return
    rows = pq.read_table(path).to_pylist()
    verdict.rows_out += len(rows)
    if tuple(row["id"] for row in rows) != one.ids:
        verdict.errors.append(f"{path}: {len(rows)} rows for {len(one.ids)}, or not in their order")
        return
    wrong = [row["id"] for row, text in zip(rows, one.texts, strict=True) if row["status"] == "succeeded" and not _answers(row, text)]
    if wrong:
        verdict.errors.append(f"{path}: {len(wrong)} rows have another text's answer, for instance {wrong[:3]}")
    failed = [row for row in rows if row["status"] not in ("succeeded", "skipped")]
    verdict.faulty_rows += len(failed)
    faults = {batch.id: batch.faults for batch in books.newest_first(deleted=True)}
    unfounded: Counter[str] = Counter()
    for row in failed:
        needed = FINAL_FAILURES.get(row["status"], set())
        tried = answers.get(f"{one.task}-{row['request_key']}", [])
        # The tag is not known here, so a batch that was told to spoil such answers is founded enough.
        if not any(needed & faults[batch_id].keys() for _, _, batch_id in tried):
            unfounded[row["status"]] += 1
    if unfounded:
        verdict.errors.append(f"{path}: rows without an answer and without a reason in the books: {dict(unfounded)}")


def _answers(row: dict[str, object], text: str) -> bool:
    if "summary" in row:
        return row["summary"] in (f"[simulated] {text}", f"[simulated] {text}\ufffd")
    return row["label"] in ("ok", "spam", "hate")
