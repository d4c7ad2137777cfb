"""Batches that came after their shard was settled without them: kept when they end, and in nobody's way before."""

import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.records import LogEntry, StrayRecord
from claude_batch_dagster.storage.plans import write_stray
from claude_batch_dagster.storage.recovered import list_unstored_strays
from tests.stack import Bench, Driver, RunningSimulator, texts, until


def leave_stray(bench: Bench, simulator: RunningSimulator, entry: LogEntry) -> str:
    """Send the run's first shard behind its back, as a zombie would, and write that down; return the batch."""
    body = bench.store.get(entry.shards[0].path)
    headers = {"content-type": "application/json", "x-api-key": "any", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{simulator.url}/v1/messages/batches", data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        batch_id = str(msgspec.json.decode(reply.read())["id"])
    found_at = datetime.now(UTC).isoformat()
    write_stray(bench.store, StrayRecord(batch_id=batch_id, run_id=entry.run_id, round=1, shard=0, found_at=found_at))
    return batch_id


def test_a_stray_that_does_not_end_holds_no_shard_up(bench: Bench, start_simulator: Callable[..., RunningSimulator]) -> None:
    """With a window of one, the next round is sent while it is in progress; it is kept when it ends."""
    simulator = start_simulator("expire=1", "hold=2", seconds=3)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_in_flight=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def batches(count: int) -> bool | None:
            return len(simulator.batches()) == count or None

        await until(lambda: batches(1))
        leave_stray(bench, simulator, entry)
        await until(lambda: batches(3))
        assert len(list_unstored_strays(bench.store)) == 1
        simulator.clear()
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert list_unstored_strays(bench.store) == []
    assert bench.done(entry).batches == 3
