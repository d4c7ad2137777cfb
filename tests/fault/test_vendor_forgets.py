"""Batches that the vendor does not have any more: archived in mid-run, deleted from the Console."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.verbs.answer import Choice
from tests.fault.judge import sent
from tests.lost_posts import answer
from tests.stack import Bench, Driver, RunningSimulator, asked, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]
NO_BATCH_FROM = 99
HURRIED_WORKER = """
import runpy
import temporal_worker.activities as activities
activities.KEY_RETRY_S = 0.5
activities.BatchActivities.__init__.__kwdefaults__["forgotten_after_s"] = 2.0
runpy.run_module("temporal_worker", run_name="__main__")
"""
"""The worker with seconds for its minutes: how long a batch counts as not found yet, and how often it is looked for."""


def delete_at_vendor(simulator: RunningSimulator, batch_id: str) -> None:
    """Delete a batch as somebody does it in the Console, as soon as it has ended."""
    headers = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
    address = f"{simulator.url}/v1/messages/batches/{batch_id}"
    for _ in range(200):
        with (
            suppress(urllib.error.HTTPError),
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE", headers=headers), timeout=10),
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"{batch_id} does not end")


async def submitted(driver: Driver, handle: Any, batches: int) -> None:
    async def look() -> bool | None:
        return (await driver.progress(handle)).submitted == batches or None

    await until(look)


def errors(bench: Bench, entry: Any) -> list[str]:
    return [row["error"].partition(":")[0] for row in bench.responses(entry) if row["outcome"] == "errored"]


def test_a_batch_that_is_archived_in_mid_run_costs_its_own_rows(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its rows end without a result; the other batch's answers stand, and the run sends nothing again."""
    simulator = start_simulator("hold=2")
    bench.start_worker(simulator)
    entry = bench.stage(texts(4), max_requests=2, max_in_flight=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await submitted(driver, handle, 2)
        simulator.switch_on("archive")
        simulator.switch_on("hold", NO_BATCH_FROM)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 2, "errored": 2}
    assert errors(bench, entry) == ["result_missing"] * 2
    assert list(bench.kinds(entry).values()) == [SENT_AND_COLLECTED] * 2
    assert sent(simulator) == [2] * 2


def test_a_batch_that_is_deleted_before_it_is_collected_lets_its_rows_go(bench: Bench, start_simulator: StartSimulator) -> None:
    """It is looked for until it is certain that it is gone, over many attempts; it is said, and never sent again by its run."""
    simulator = start_simulator("hold")
    worker = bench.start_worker(simulator, program=("-c", HURRIED_WORKER), CLAUDE_BATCH_POLL_SECONDS="2")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await submitted(driver, handle, 1)
        simulator.clear()
        delete_at_vendor(simulator, simulator.batches()[0]["id"])
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"errored": 2}
    assert errors(bench, entry) == ["result_missing"] * 2
    assert "was deleted" in worker.output
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    assert sent(simulator) == [2]


def test_a_candidate_that_is_deleted_while_it_is_watched_is_asked_about(bench: Bench, start_simulator: StartSimulator) -> None:
    """A reply got lost, the batch that may be ours was seen in progress, then somebody deletes it: nothing proves that it was not ours."""
    simulator = start_simulator("accept-then-drop", "hold")
    bench.start_worker(simulator, CLAUDE_BATCH_POLL_SECONDS="2")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def watched() -> bool | None:
            return simulator.books()["calls"].get("get", 0) >= 1 or None

        await until(watched)
        simulator.clear()
        batch_id = simulator.batches()[0]["id"]
        delete_at_vendor(simulator, batch_id)
        assert batch_id in (await asked(driver, handle)).questions[0]
        assert sent(simulator) == [2]
        await answer(bench, entry, Choice.ABANDON)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"pending": 2}
    assert bench.kinds(entry) == {(1, 0): ["send", "closed:abandoned"]}
    assert sent(simulator) == [2]
