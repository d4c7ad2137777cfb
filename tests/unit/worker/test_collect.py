"""temporal_worker/collect.py: which answers are final for later runs, and which their own run would have asked again; over a real store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from claude_batch_dagster.core.contract import BatchInput, RoundInput
from claude_batch_dagster.core.errors import CredentialsError, RefusedError, VendorUnavailableError
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.request import parse_custom_id
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import append_submission, read_root, read_round
from claude_batch_dagster.storage.store import Store
from temporal_worker.collect import Collector
from temporal_worker.root import OpenRoot
from temporal_worker.rounds import open_round
from temporal_worker.vendor import Batch
from tests.stack import stage_plan, texts
from tests.unit.worker.vendor import Vendor, price

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
TASK = ClaudeTask(name="topics", model="claude-haiku-5-5", prompt="{text}", output=SCHEMA, max_tokens=100)


def message(text: str, stop_reason: str = "end_turn") -> dict[str, Any]:
    usage = {"input_tokens": 10, "output_tokens": 20}
    content = [{"type": "text", "text": text}]
    return {"type": "succeeded", "message": {"model": TASK.model, "content": content, "usage": usage, "stop_reason": stop_reason}}


def errored(kind: str) -> dict[str, Any]:
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": "x"}}}


RESULTS = {
    "succeeded": message('{"ok":true}'),
    "refused": message("", "refusal"),
    "cut": message('{"ok":', "max_tokens"),
    "full": message('{"ok":', "model_context_window_exceeded"),
    "invalid": message('{"ok":1}'),
    "overloaded": errored("overloaded_error"),
    "wrong": errored("invalid_request_error"),
    "expired": {"type": "expired"},
    "canceled": {"type": "canceled"},
}


@dataclass
class Run:
    """A run whose batches end as a test says."""

    store: Store
    entry: LogEntry
    vendor: Vendor = field(default_factory=Vendor)

    def end(self, number: int, *results: str) -> dict[str, int]:
        """Collect a batch of the round's only shard; return what was counted by outcome."""
        found = read_round(self.store, self.entry, number)
        assert found is not None
        ids = [line_custom_id(line) for line in iter_lines(self.store.stream(found.shards[0].path))]
        lines = zip(ids, results, strict=True)
        self.vendor.lines = [msgspec.json.encode({"custom_id": custom_id, "result": RESULTS[result]}) for custom_id, result in lines]
        append_submission(self.store, self.entry.run_id, number, 0, 0, Accepted(id=f"b{number}", created_at=NOON.isoformat()))
        batch = BatchInput(root=self.store.uri, number=1, run_id=self.entry.run_id, round=number, shard=0, batch_id=f"b{number}")
        at = NOON + timedelta(hours=number)
        ended = Batch(
            id=f"b{number}",
            processing_status="ended",
            requests=len(ids),
            created_at=at,
            ended_at=at,
            archived=False,
            age_s=60.0,
            retry_after_s=None,
        )
        collector = Collector(open_store=Store, batches=cast("Any", self.vendor), price_usage=price)
        return collector.collect(batch, ended, lambda _: None).by_outcome

    def open(self, number: int, *, empty: bool = False) -> int:
        """Open a round; return how many requests it asks."""
        record = read_root(self.store)
        assert record is not None
        root = OpenRoot(store=self.store, record=record, entry=self.entry)
        ask = RoundInput(root=self.store.uri, number=1, run_id=self.entry.run_id, round=number, empty=empty)
        open_round(root, ask, cast("Any", self.vendor), price)
        found = read_round(self.store, self.entry, number)
        return sum(shard.requests for shard in found.shards) if found else 0

    @property
    def final(self) -> list[bool]:
        """Whether the next run leaves each request of the plan alone."""
        lines = iter_lines(self.store.stream(self.entry.shards[0].path))
        keys = pack_keys([bytes.fromhex(parse_custom_id(line_custom_id(line)).request_key) for line in lines])
        return [bool(final) for final in Answers(self.store, "simulator", TASK.task_key).final(keys)]


def start(folder: Path, requests: int = 1, **options: Any) -> Run:
    store = Store(str(folder / "root"))
    return Run(store=store, entry=stage_plan(store, texts(requests), tasks=(TASK,), **options))


@pytest.mark.parametrize("ends", ["drained, canceled or failed", "the cap is spent"])
def test_what_a_run_would_have_asked_again_is_left_to_the_next_one(ends: str, tmp_path: Path) -> None:
    """Whatever ended the run before its next round."""
    run = start(tmp_path, len(RESULTS), cap=1 if "cap" in ends else None)
    counted = run.end(1, *RESULTS)
    assert run.open(2, empty="drained" in ends) == 0
    left = {result for result, final in zip(RESULTS, run.final, strict=True) if not final}
    assert left == {"cut", "invalid", "overloaded", "expired", "canceled"}
    assert (sum(counted.values()), counted["truncated"], counted["invalid"]) == (len(RESULTS), 2, 1)


def test_what_the_rounds_of_a_run_concluded_is_final(tmp_path: Path) -> None:
    """A second broken answer, and a cut one in the last round."""
    run = start(tmp_path, 2)
    run.end(1, "cut", "invalid")
    assert run.open(2) == 2
    run.end(2, "cut", "invalid")
    assert run.final == [False, True]
    assert run.open(3) == 1
    run.end(3, "cut")
    assert run.final == [True, True]
    assert run.open(4) == 0


@pytest.mark.parametrize(
    ("results", "final"),
    [
        (["cut", "invalid"], False),
        (["invalid", "cut"], False),
        (["invalid", "expired"], False),
        (["expired", "invalid"], False),
        (["invalid", "invalid"], True),
        (["cut", "full"], True),
        (["cut", "wrong"], True),
        (["cut", "succeeded"], True),
        (["invalid", "cut", "invalid"], True),
        (["cut", "cut", "expired"], False),
    ],
)
def test_the_last_answer_decides_with_those_before(results: Sequence[str], final: bool, tmp_path: Path) -> None:
    """As the same run's next round decides, which it is asked for beside."""
    run = start(tmp_path)
    for number, result in enumerate(results, start=1):
        if number > 1:
            assert run.open(number) == 1
        run.end(number, result)
    assert run.final == [final]
    if len(results) < run.entry.max_attempts:
        assert run.open(len(results) + 1) == (0 if final else 1)


def test_a_run_of_one_attempt_leaves_nothing(tmp_path: Path) -> None:
    run = start(tmp_path, 2, max_attempts=1)
    run.end(1, "cut", "invalid")
    assert run.final == [True, True]


@pytest.mark.parametrize(
    ("vendor", "final"),
    [
        (Vendor(max_tokens=100), True),
        (Vendor(max_tokens=101), False),
        (Vendor(max_tokens=None), False),
        (Vendor(failure=RefusedError("no such route", status=404)), False),
    ],
)
def test_an_answer_that_was_cut_at_the_models_own_cap_is_final(vendor: Vendor, final: bool, tmp_path: Path) -> None:
    """The vendor is asked once a batch, and only where an answer was cut."""
    run = start(tmp_path, 3)
    run.vendor = vendor
    run.end(1, "cut", "cut", "succeeded")
    assert run.final == [final, final, True]
    assert vendor.asked == [TASK.model]
    other = start(tmp_path / "other")
    other.end(1, "invalid")
    assert other.vendor.asked == []


def test_a_refused_key_leaves_the_batch_for_later(tmp_path: Path) -> None:
    """Nothing is stored half."""
    run = start(tmp_path)
    run.vendor.failure = CredentialsError("the vendor refuses this key.")
    with pytest.raises(VendorUnavailableError, match=r"how far max_tokens of claude-haiku-5-5 can be raised"):
        run.end(1, "cut")
    assert run.store.list("responses") == []
    run.vendor.failure = None
    assert run.end(1, "cut") == {"truncated": 1}
