"""A key revoked while it matters most, and a limit that is still reached when somebody says resume."""

from collections.abc import Callable

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.verbs.answer import Choice
from tests.fault.judge import sent
from tests.lost_posts import answer
from tests.stack import Bench, Driver, RunningSimulator, asked, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


def test_a_key_revoked_while_a_lost_batch_is_looked_for_is_waited_for(bench: Bench, start_simulator: StartSimulator) -> None:
    """Nobody can look for it, so nothing is sent anew; a key that works finds it and proves it."""
    simulator = start_simulator("accept-then-drop")
    bench.start_worker(simulator, CLAUDE_BATCH_SETTLE_SECONDS="2")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def lost() -> bool | None:
            return bool(simulator.batches()) or None

        await until(lost)
        simulator.switch_on("401-from")
        assert "ANTHROPIC_API_KEY" in (await asked(driver, handle)).questions[0]
        assert bench.kinds(entry) == {(1, 0): ["send"]}
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    assert sent(simulator) == [2]


def test_a_limit_that_is_still_reached_is_asked_about_again(bench: Bench, start_simulator: StartSimulator) -> None:
    """Resume before it was raised costs nothing and gives nothing up."""
    simulator = start_simulator("spend-cap=all")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_requests=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await asked(driver, handle)
        refused = simulator.books()["calls"]["create"]
        await answer(bench, entry, Choice.RESUME)

        async def tried_again() -> bool | None:
            return simulator.books()["calls"]["create"] > refused or None

        await until(tried_again)
        await asked(driver, handle)
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 2}
    assert sent(simulator) == [1, 1]
