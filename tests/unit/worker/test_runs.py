"""temporal_worker/runs.py: what a finished run counts, whatever its rounds and late batches; over a real store."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pyarrow.parquet as pq
import pytest

import temporal_worker.runs
from claude_batch_dagster.core.contract import FinishInput
from claude_batch_dagster.core.records import LogEntry, RoundRecord, ShardRef, StrayRecord
from claude_batch_dagster.core.request import parse_custom_id
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.plans import append_submission, write_round, write_stray
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store
from temporal_worker.runs import Runs
from tests.stack import stage_plan, texts
from tests.unit.worker.vendor import Vendor, price

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ONE = ClaudeTask(name="one", model="claude-haiku-5-5", prompt="{text}", max_tokens=100)
TWO = ClaudeTask(name="two", model="claude-haiku-5-5", prompt="Tell of {text}", max_tokens=70)
TASKS = {task.name: task for task in (ONE, TWO)}


class Run:
    """A run of eight requests of two tasks in shards of three, all closed; requests by their place in the plan."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder / "root"))
        self.entry: LogEntry = stage_plan(self.store, texts(4), tasks=(ONE, TWO), max_requests=3)
        lines = (line for shard in self.entry.shards for line in iter_lines(self.store.stream(shard.path)))
        self.requests = [parse_custom_id(line_custom_id(line)) for line in lines]

    def end(self, round_number: int, shard: int, batch_id: str | None, answers: dict[int, str]) -> None:
        """Close a shard, whose batch answered these requests."""
        slot = 0
        if batch_id is not None:
            append_submission(self.store, self.entry.run_id, round_number, shard, slot, Accepted(id=batch_id, created_at=NOON.isoformat()))
            self.answer(round_number, batch_id, answers)
            slot = 1
        reason = CloseReason.COLLECTED if batch_id else CloseReason.DRAINED
        append_submission(self.store, self.entry.run_id, round_number, shard, slot, Closed(reason=reason))

    def answer(self, round_number: int, batch_id: str, answers: dict[int, str]) -> None:
        for name, task in TASKS.items():
            responses = [
                Response(request_key=bytes.fromhex(self.requests[place].request_key), outcome=outcome, error=f"{outcome}: x")
                for place, outcome in answers.items()
                if self.requests[place].name == name
            ]
            write_responses(
                self.store,
                endpoint="simulator",
                task_key=task.task_key,
                batch_id=batch_id,
                round_number=round_number,
                answered_at=NOON + timedelta(hours=round_number),
                responses=responses,
            )

    def open_round(self, number: int, shards: Sequence[ShardRef] = ()) -> None:
        write_round(self.store, self.entry.run_id, RoundRecord(round=number, shards=tuple(shards)))

    def finish(self) -> dict[str, int]:
        runs = Runs(open_store=Store, batches=cast("Any", Vendor()), price_usage=price, preflights=cast("Any", None), clock=lambda: NOON)
        finish = FinishInput(root=self.store.uri, number=1, run_id=self.entry.run_id, outcome="finished")
        return dict(runs.finish_run(finish).counts.by_outcome)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Whose first round left one request of each of its first two shards to a second one, and did not send the third."""
    run = Run(tmp_path)
    run.end(1, 0, "b0", {0: "succeeded", 1: "expired", 2: "refused"})
    run.end(1, 1, "b1", {3: "expired", 4: "succeeded", 5: "errored"})
    run.end(1, 2, None, {})
    run.answer(1, "of_another_run", dict.fromkeys(range(8), "succeeded"))
    return run


@pytest.mark.parametrize("at_once", [False, True])
def test_a_run_counts_its_own_answers_over_its_rounds(at_once: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard by shard, or at once where the further rounds are large: the same."""
    if at_once:
        monkeypatch.setattr(temporal_worker.runs, "MAX_REQUESTS", 1)
    run.open_round(2, [msgspec.structs.replace(run.entry.shards[0], requests=2)])
    run.end(2, 0, "b2", {1: "succeeded", 3: "truncated"})
    run.open_round(3)
    assert run.finish() == {"succeeded": 3, "refused": 1, "truncated": 1, "errored": 1, "pending": 2}


def test_a_late_batch_counts_whichever_shard_it_was_of(run: Run) -> None:
    write_stray(run.store, StrayRecord(batch_id="late", run_id=run.entry.run_id, round=1, shard=2, found_at=NOON.isoformat()))
    run.answer(1, "late", {6: "succeeded", 7: "refused"})
    run.open_round(2)
    assert run.finish() == {"succeeded": 3, "refused": 2, "expired": 2, "errored": 1}


def test_a_plan_whose_keys_do_not_tell_their_shards_is_counted(run: Run) -> None:
    """As older versions wrote them."""
    path = Path(run.store.uri.removeprefix("file://")) / run.entry.keys.path
    pq.write_table(pq.read_table(path).drop_columns(["max_tokens"]), path)
    run.open_round(2)
    assert run.finish() == {"succeeded": 2, "refused": 1, "expired": 2, "errored": 1, "pending": 2}


def test_a_shards_answers_are_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all others in memory too, memory would grow with the shards."""
    opened: list[set[str]] = []
    answers = temporal_worker.runs.Answers

    def open_answers(*place: Any, batch_ids: Sequence[str], **more: Any) -> Any:
        opened.append(set(batch_ids))
        return answers(*place, batch_ids=batch_ids, **more)

    monkeypatch.setattr(temporal_worker.runs, "Answers", open_answers)
    run.open_round(2)
    run.finish()
    assert opened == [{"b0"}, {"b1"}, {"b1"}, set()]
