"""A run is canceled while no worker is there: the request waits for one, and nothing is bought."""

import asyncio
from collections.abc import Callable

import pytest

from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.execute import cancel_run
from tests.stack import Bench, Driver, RunningSimulator, texts, until


@pytest.mark.parametrize("killed_after_s", [None, 0.0, 0.5], ids=["no worker", "in an attempt", "between attempts"])
def test_cancel_is_delivered_though_the_client_gave_up_waiting(
    killed_after_s: float | None, bench: Bench, start_simulator: Callable[..., RunningSimulator]
) -> None:
    simulator = start_simulator("429=1000")
    entry = bench.stage(texts(2))
    connection = Connection(address=bench.address, task_queue=bench.task_queue)

    async def work(driver: Driver) -> None:
        handle = await driver.start(entry)
        if killed_after_s is not None:
            worker = bench.start_worker(simulator)

            async def tried() -> bool | None:
                return simulator.books()["calls"].get("create", 0) > 0 or None

            await until(tried)
            await asyncio.sleep(killed_after_s)
            worker.kill()
        assert await cancel_run(connection, bench.store, entry, timeout_s=3) is None
        simulator.clear()
        bench.start_worker(simulator)
        await driver.closed(handle)
        # A workflow that was canceled before its first task left the run open: whoever needs it drains it.
        assert (await cancel_run(connection, bench.store, entry, timeout_s=40)) is not None
        await asyncio.sleep(0)

    bench.run(work)
    assert simulator.batches() == []
    assert bench.done(entry).rows == {"pending": 2}
