"""What only people can mend: the run asks, looks again by itself, and goes on at once when they say so. Nothing is given up."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.submission import NotAccepted
from claude_batch_dagster.verbs.answer import Choice
from tests.lost_posts import answer
from tests.stack import Bench, Driver, RunningSimulator, asked, texts, until

StartSimulator = Callable[..., RunningSimulator]


def begin(bench: Bench, simulator: RunningSimulator, rows: int) -> LogEntry:
    """Start a worker, and stage a run that sends one request a batch, one after another."""
    bench.start_worker(simulator)
    return bench.stage(texts(rows), max_requests=1, max_in_flight=1)


async def start(driver: Driver, entry: LogEntry) -> "WorkflowHandle[Any, RunReport]":
    """Start the run, and wait for its first batch."""
    handle = await driver.start(entry)

    async def sent() -> bool | None:
        return (await driver.progress(handle)).submitted >= 1 or None

    await until(sent)
    return handle


@pytest.mark.parametrize("fault", ["spend-limit", "spend-cap", "402"])
def test_a_limit_that_is_reached_pauses_the_run_until_somebody_says_resume(
    bench: Bench, start_simulator: StartSimulator, fault: str
) -> None:
    """What was sent is collected meanwhile; one shard asks, the others are not even tried."""
    simulator = start_simulator(seconds=1.5)
    entry = begin(bench, simulator, 4)

    async def work(driver: Driver) -> RunReport:
        handle = await start(driver, entry)
        simulator.switch_on(fault, "all")
        progress = await asked(driver, handle)
        assert len(progress.questions) == 1
        assert "claude-batch answer r1 resume" in progress.questions[0]
        assert progress.collected == 1
        calls = simulator.books()["calls"]["create"]
        await asyncio.sleep(1.0)
        assert simulator.books()["calls"]["create"] == calls
        simulator.clear()
        assert (await answer(bench, entry, Choice.RESUME)) == "Batch run r1 looks again now."
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 4}
    assert len(simulator.batches()) == 4


def test_a_key_that_is_revoked_in_mid_run_is_asked_for_and_loses_no_answer(bench: Bench, start_simulator: StartSimulator) -> None:
    """A batch that is paid for waits for a key that works; so does what was not sent yet."""
    simulator = start_simulator(seconds=1.0)
    entry = begin(bench, simulator, 3)

    async def work(driver: Driver) -> RunReport:
        handle = await start(driver, entry)
        simulator.switch_on("401-from")
        assert "ANTHROPIC_API_KEY" in (await asked(driver, handle)).questions[0]
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 3}
    assert len(simulator.batches()) == 3


def test_what_is_mended_without_a_word_is_noticed(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run looks again after 15 s, then less and less often."""
    simulator = start_simulator(seconds=0.5)
    entry = begin(bench, simulator, 2)

    async def work(driver: Driver) -> RunReport:
        handle = await start(driver, entry)
        simulator.switch_on("402", "all")
        await asked(driver, handle)
        simulator.clear()
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}


def test_a_staged_body_that_changed_is_not_sent_until_it_is_restored(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its hash is checked while it streams, and its last byte is withheld."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))
    body = bench.store.get(entry.shards[0].path)
    assert body is not None
    bench.store.put(entry.shards[0].path, body.replace(b"tent", b"bent"))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        assert "SHA-256" in (await asked(driver, handle)).questions[0]
        assert simulator.batches() == []
        bench.store.put(entry.shards[0].path, body)
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    records = bench.records(entry)[1, 0]
    assert isinstance(records[1], NotAccepted)
    assert "SHA-256" in records[1].why


def test_a_root_that_is_gone_in_mid_run_is_asked_for_and_gone_on_with(bench: Bench, start_simulator: StartSimulator) -> None:
    """Nothing is sent without the records; once they are back, the paid batch is collected."""
    simulator = start_simulator(seconds=1.0)
    entry = begin(bench, simulator, 2)
    root = Path(bench.store.uri)

    async def work(driver: Driver) -> RunReport:
        handle = await start(driver, entry)
        shutil.move(root, root.with_name("elsewhere"))
        question = (await asked(driver, handle)).questions[0]
        assert "the root lost its records" in question
        assert "claude-batch recover" in question
        shutil.move(root.with_name("elsewhere"), root)
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 2


def test_a_cancel_that_needs_a_key_stops_the_batch_once_there_is_one(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its batch would go on, and be paid for, though somebody canceled the run."""
    simulator = start_simulator(seconds=30)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> str:
        handle = await start(driver, entry)
        simulator.switch_on("401-from")
        await handle.cancel()
        assert "ANTHROPIC_API_KEY" in (await asked(driver, handle)).questions[0]
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert "canceled" in bench.done(entry).rows


def test_a_run_that_asks_can_still_be_canceled(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its rows are free again."""
    simulator = start_simulator(seconds=0.5)
    entry = begin(bench, simulator, 2)

    async def work(driver: Driver) -> str:
        handle = await start(driver, entry)
        simulator.switch_on("402", "all")
        await asked(driver, handle)
        await handle.cancel()
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert bench.done(entry).rows == {"succeeded": 1, "pending": 1}
