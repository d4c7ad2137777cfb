"""Cancel requests: nothing more is sent, what lives at the vendor is canceled and collected, and the run is finished all the same."""

import asyncio
import time
from collections.abc import Callable

from tests.stack import Bench, Driver, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]


def test_cancel_stops_batches_at_the_vendor_and_keeps_their_answers(bench: Bench, start_simulator: StartSimulator) -> None:
    """Both live batches are canceled at once, collected, and the third shard is never sent; a second cancel changes nothing."""
    simulator = start_simulator(seconds=60)
    bench.start_worker(simulator, CLAUDE_BATCH_POLL_SECONDS="30")
    entry = bench.stage(texts(6), max_requests=2, max_in_flight=2)

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)

        async def both() -> bool | None:
            return True if (await driver.progress(handle)).in_progress == 2 else None

        await until(both)
        await asyncio.sleep(1.5)
        await handle.cancel()
        await asyncio.sleep(0.3)
        await handle.cancel()
        return await driver.closed(handle)

    begun = time.monotonic()
    assert bench.run(work) == "CANCELED"
    # Much less than the pause that the two looks had asked for.
    assert time.monotonic() - begun < 50
    assert [batch["canceled"] for batch in simulator.batches()] == [True, True]
    assert bench.kinds(entry) == {
        (1, 0): ["send", "batch", "closed:collected"],
        (1, 1): ["send", "batch", "closed:collected"],
        (1, 2): ["closed:canceled"],
    }
    done = bench.done(entry)
    assert done.outcome == "canceled"
    assert done.rows["pending"] == 2
    assert sum(done.rows.values()) == 6
    assert len(bench.responses(entry)) == 4


def test_cancel_before_anything_was_sent(bench: Bench, start_simulator: StartSimulator) -> None:
    """A run that no worker has begun is canceled as soon as one comes."""
    simulator = start_simulator()
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)
        await handle.cancel()
        await asyncio.to_thread(bench.start_worker, simulator)
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert simulator.batches() == []
    assert bench.done(entry).rows == {"pending": 2}


def test_cancel_while_a_submit_waits_for_its_turn_at_the_vendor(bench: Bench, start_simulator: StartSimulator) -> None:
    """A submit in its pause after a 429 is called off; nothing is sent."""
    simulator = start_simulator("429=all")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)

        async def refused() -> bool | None:
            return True if simulator.books()["calls"].get("create", 0) >= 1 else None

        await until(refused)
        await asyncio.sleep(0.3)
        await handle.cancel()
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert simulator.batches() == []
    kinds = bench.kinds(entry)[1, 0]
    assert kinds[:2] == ["send", "not"]
    assert kinds[-1] == "closed:canceled"
    assert bench.done(entry).error is None


def test_cancel_while_a_body_is_uploaded_cancels_the_batch_that_it_becomes(bench: Bench, start_simulator: StartSimulator) -> None:
    """A submit under way is awaited: its batch is known, canceled and collected."""
    simulator = start_simulator("slow-upload=2", seconds=60)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)

        async def posting() -> bool | None:
            return True if simulator.books()["calls"].get("create", 0) >= 1 else None

        await until(posting)
        await handle.cancel()
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert [batch["canceled"] for batch in simulator.batches()] == [True]
    assert bench.kinds(entry) == {(1, 0): ["send", "batch", "closed:collected"]}
