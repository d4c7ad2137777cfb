"""What a run reports is its own doing: answers of its own batches, and nothing that an earlier run bought."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from claude_batch_dagster.core.errors import RunError
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.plans import read_done
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.execute import cancel_run
from tests.stack import Bench, RunningSimulator, texts

StartSimulator = Callable[..., RunningSimulator]


def test_what_an_earlier_run_answered_does_not_count_as_this_runs(bench: Bench, start_simulator: StartSimulator) -> None:
    """Rows that are asked again, in a run that sends nothing, are pending though the store has an answer."""
    bench.start_worker(start_simulator())
    assert bench.finish(bench.stage(texts(3))).counts.by_outcome == {"succeeded": 3}
    again = bench.stage(texts(3), number=2)

    report = bench.finish(again, mode=Mode.DRAIN)

    assert report.counts.by_outcome == {"pending": 3}
    done = bench.done(again)
    assert (done.rows, done.batches, done.usage, done.cost_nano_usd) == ({"pending": 3}, 0, (), 0)


def test_a_run_that_asks_again_is_counted_by_its_new_answers(bench: Bench, start_simulator: StartSimulator) -> None:
    """The new batch failed: the run says so, though the store has a usable answer of before."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    bench.finish(bench.stage(texts(3)))
    simulator.switch_on("invalid", "all")
    again = bench.stage(texts(3), number=2, max_attempts=1)

    report = bench.finish(again)

    assert report.counts.by_outcome == {"invalid": 3}
    assert bench.done(again).batches == 1
    assert bench.done(again).usage[0].requests == 3


def test_a_run_that_cannot_be_settled_says_why_and_keeps_its_keys(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its plan speaks of more requests than it has: nobody may say that it is over."""
    bench.start_worker(start_simulator())
    entry = bench.stage(texts(2))
    entry = msgspec.structs.replace(entry, keys=msgspec.structs.replace(entry.keys, count=3))
    bench.store.put("log/1.json", msgspec.json.encode(entry))
    connection = Connection(address=bench.address, task_queue=bench.task_queue)

    with pytest.raises(RunError) as raised:
        asyncio.run(cancel_run(connection, bench.store, entry))

    text = str(raised.value)
    assert text.startswith("Batch run r1 cannot be settled: ")
    assert "its plan owns 3 requests, 2 were counted" in text
    assert text.endswith("Its batches and keys stay as they are. Mend the cause, then run again, or: claude-batch cancel r1")
    assert read_done(bench.store, 1) is None
