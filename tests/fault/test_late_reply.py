"""The reply of a POST comes after its shard was settled without it, and the batch cannot be canceled: it is said, kept and counted."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.submission import How, NotAccepted
from claude_batch_dagster.storage.plans import append_submission, list_strays
from tests.stack import Bench, Driver, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]


def test_a_late_batch_that_cannot_be_canceled_is_kept_and_counted(bench: Bench, start_simulator: StartSimulator) -> None:
    """The sender sleeps between POST and record; meanwhile somebody settles the shard. Its batch goes on, and its answers are stored."""
    simulator = start_simulator("403@cancel=all", seconds=1)
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS="post.after=stop")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def accepted() -> bool | None:
            return bool(simulator.batches()) or None

        await until(accepted)
        # The settling writes what the sleeping sender cannot see.
        await asyncio.sleep(0.5)
        assert append_submission(bench.store, entry.run_id, 1, 0, 1, NotAccepted(why="not in the list", how=How.RECONCILED))
        worker.popen.send_signal(signal.SIGCONT)
        return await driver.result(handle)

    report: Any = bench.run(work)

    worker.wait_for_line("came after its shard was settled without it", 60)
    worker.wait_for_line(f"canceling batch {simulator.batches()[-1]['id']}: ", 60)
    first, second = sorted(simulator.batches(), key=lambda batch: batch["created_at"])
    (stray,) = list_strays(bench.store)
    assert (stray.batch_id, first["canceled"], second["canceled"]) == (first["id"], False, False)
    assert bench.kinds(entry) == {(1, 0): ["send", "not", "send", "batch", "closed:collected"]}
    assert report.counts.by_outcome == {"succeeded": 2}
    assert bench.done(entry).batches == 2
    assert sum(usage.requests for usage in bench.done(entry).usage) == 4, "what was paid for twice is counted twice"
    assert {row["batch_id"] for row in bench.responses(entry)} == {first["id"], second["id"]}
