"""A run's first shard is submitted as the run is opened: what stops it stops it as any other, and it is not sent once more for that."""

from collections.abc import Callable

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.verbs.answer import Choice
from tests.lost_posts import answer
from tests.stack import Bench, Driver, RunningSimulator, asked, texts

StartSimulator = Callable[..., RunningSimulator]


def test_a_first_shard_that_is_refused_is_sent_once(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run fails with the vendor's words, and the other shards are closed."""
    simulator = start_simulator("413=all")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_requests=1)

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "A body of this size does not pass: lower max_requests_per_batch." in (report.error or "")
    assert simulator.books()["calls"]["create"] == 1
    assert bench.kinds(entry) == {(1, 0): ["send", "not", "closed:drained"], (1, 1): ["closed:drained"]}


def test_a_first_shard_that_people_have_to_mend_is_sent_once_before_they_do(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run is open, and asks."""
    simulator = start_simulator("402=all")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_requests=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        progress = await asked(driver, handle)
        assert progress.shards == 2
        assert [parked.shard for parked in progress.parked] == [0]
        assert not progress.parked[0].undecided
        assert "claude-batch answer r1 resume" in progress.questions[0]
        assert simulator.books()["calls"]["create"] == 1
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 2
