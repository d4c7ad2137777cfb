"""The reply to the try of a new task is lost, or its worker dies with it: it is paid twice at most, and the run goes on."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.errors import VendorUnavailableError
from claude_batch_dagster.storage.plans import read_root
from temporal_worker.batches import Batches
from temporal_worker.preflight import Preflights
from temporal_worker.root import OpenRoot
from tests.integration.test_worker_preflight import messages, record, stage
from tests.stack import SUMMARIZE, Bench, Driver, Process, RunningSimulator, free_port, until

StartSimulator = Callable[..., RunningSimulator]


@pytest.mark.parametrize("fault", ["accept-then-drop@message=all", "garbled-after@message=all", "error-500-after@message=all"])
def test_replies_that_are_lost_again_and_again_are_paid_twice_at_most(bench: Bench, start_simulator: StartSimulator, fault: str) -> None:
    """After the second the run goes on untried and says so; its batch is sent once."""
    simulator = start_simulator(fault)
    worker = bench.start_worker(simulator)

    report = bench.finish(stage(bench, SUMMARIZE))

    assert report.counts.by_outcome == {"succeeded": 2}
    assert len(messages(simulator)) == 2
    assert len(simulator.batches()) == 1
    assert record(bench, SUMMARIZE) is None
    assert "whether task 'summaries' works is not known: its sample text was sent 2 times" in worker.output
    assert "the run goes on, and its first batch shows" in worker.output


def test_a_reply_lost_once_is_asked_for_once_more(bench: Bench, start_simulator: StartSimulator) -> None:
    """The second answer is the task's record: no later run tries it again."""
    simulator = start_simulator("accept-then-drop@message")
    bench.start_worker(simulator)

    assert bench.finish(stage(bench, SUMMARIZE)).counts.by_outcome == {"succeeded": 2}
    assert bench.finish(stage(bench, SUMMARIZE, number=2)).outcome == "finished"

    assert len(messages(simulator)) == 2
    assert record(bench, SUMMARIZE) is not None


def test_workers_that_die_with_the_reply_pay_twice_at_most(bench: Bench, start_simulator: StartSimulator) -> None:
    """Each between the POST and its record; the third goes on without a try."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS="preflight.after=kill")
    entry = stage(bench, SUMMARIZE)

    async def die(worker: Process) -> None:
        async def dead() -> bool | None:
            return worker.popen.poll() is not None or None

        await until(dead)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await die(worker)
        await die(bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS="preflight.after=kill"))
        bench.start_worker(simulator)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.counts.by_outcome == {"succeeded": 2}
    assert len(messages(simulator)) == 2
    assert len(simulator.batches()) == 1


def test_what_was_surely_not_asked_does_not_count(bench: Bench, start_simulator: StartSimulator) -> None:
    """Overloaded, over the rate limit, never connected: a task is tried however often that happens before."""
    entry = stage(bench, SUMMARIZE)
    root_record = read_root(bench.store)
    assert root_record is not None
    root = OpenRoot(store=bench.store, record=root_record, entry=entry)
    nobody = f"http://127.0.0.1:{free_port()}"
    simulator = start_simulator("529@message=3", "429@message=3")
    for url, times in ((nobody, 3), (simulator.url, 6)):
        preflights = Preflights(batches=Batches("any", url), price_usage=lambda *_, **__: 1, clock=lambda: datetime.now(UTC))
        for _ in range(times):
            with pytest.raises(VendorUnavailableError):
                preflights.find_failure(root)
    assert not [path for path in bench.store.list(f"plans/{entry.run_id}") if "/try-" in path]
    assert messages(simulator) == []

    assert preflights.find_failure(root) is None
    assert len(messages(simulator)) == 1
