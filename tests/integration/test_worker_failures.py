"""What fails, and what it costs: nothing is sent twice, and every request is accounted for."""

import asyncio
from collections.abc import Callable

import pytest
from temporalio.client import WorkflowHandle

from claude_batch_dagster.core.contract import Progress, RunReport
from claude_batch_dagster.core.submission import NotAccepted, Send
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.plans import append_submission, pin_workspace
from tests.stack import Bench, Driver, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


async def parked(driver: Driver, handle: "WorkflowHandle[object, RunReport]") -> Progress:
    async def asks() -> Progress | None:
        progress = await driver.progress(handle)
        return progress if progress.parked else None

    return await until(asks)


def test_a_wrong_key_fails_the_run_and_sends_nothing(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run's first call finds out; its requests stay pending and free for the next run."""
    simulator = start_simulator()
    bench.start_worker(simulator, key="wrong")
    entry = bench.stage(texts(2))

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "ANTHROPIC_API_KEY" in (report.error or "")
    assert "create" not in simulator.books()["calls"]
    assert bench.done(entry).rows == {"pending": 2}
    assert bench.kinds(entry) == {(1, 0): ["closed:drained"]}


def test_an_unknown_model_fails_the_run_and_sends_nothing(bench: Bench, start_simulator: StartSimulator) -> None:
    """The vendor is asked for each model before anything is sent."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(1), tasks=(ClaudeTask(name="a", model="claude-nonesuch-9", prompt="{text}", max_tokens=10),))

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "claude-nonesuch-9" in (report.error or "")
    assert simulator.batches() == []


def test_a_worker_of_another_vendor_refuses_the_root(bench: Bench, start_simulator: StartSimulator) -> None:
    """Simulated answers never enter a real root."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(1), endpoint="anthropic")

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "'simulator'" in (report.error or "")
    assert simulator.batches() == []


def test_a_rate_limit_is_waited_out(bench: Bench, start_simulator: StartSimulator) -> None:
    """A 429 created nothing, says its record, and the shard is sent again after the pause that was asked for."""
    simulator = start_simulator("429=1")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}
    assert len(simulator.batches()) == 1


@pytest.mark.parametrize(("fault", "batches"), [("accept-then-drop", 1), ("garbled-after", 1), ("error-500-after", 1), ("drop-before", 0)])
def test_a_post_without_an_answer_parks_and_only_cancel_ends_it(
    bench: Bench, start_simulator: StartSimulator, fault: str, batches: int
) -> None:
    """Nobody knows whether the batch exists, so it is never sent again; a person ends the run."""
    simulator = start_simulator(fault)
    bench.start_worker(simulator)
    entry = bench.stage(texts(3))

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)
        question = (await parked(driver, handle)).parked[0].question
        assert "3 requests" in question
        assert "claude-batch cancel r1" in question
        send = bench.records(entry)[1, 0][0]
        assert isinstance(send, Send)
        assert send.sent_at in question
        await handle.cancel()
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    assert len(simulator.batches()) == batches
    assert bench.kinds(entry) == {(1, 0): ["send", "closed:abandoned"]}
    assert bench.done(entry).rows == {"pending": 3}


def test_a_parked_shard_does_not_hold_the_others_up(bench: Bench, start_simulator: StartSimulator) -> None:
    """With a window of one, the second shard is sent and collected beside the question."""
    simulator = start_simulator("accept-then-drop")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_requests=1, max_in_flight=1)

    async def work(driver: Driver) -> None:
        handle = await driver.start(entry)

        async def collected() -> bool | None:
            return True if (await driver.progress(handle)).collected == 1 else None

        await until(collected)
        assert len((await parked(driver, handle)).parked) == 1
        await handle.cancel()
        await driver.closed(handle)

    bench.run(work)
    assert bench.kinds(entry) == {(1, 0): ["send", "closed:abandoned"], (1, 1): SENT_AND_COLLECTED}


def test_a_refusal_in_mid_run_sees_live_batches_through_and_sends_no_more(bench: Bench, start_simulator: StartSimulator) -> None:
    """The own spend limit: the first batch is collected, the other shards are closed, the run fails with the vendor's words."""
    simulator = start_simulator(seconds=2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(4), max_requests=1, max_in_flight=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def sent() -> bool | None:
            return True if (await driver.progress(handle)).submitted == 1 else None

        await until(sent)
        simulator.switch_on("spend-limit", "all")
        return await driver.result(handle)

    report = bench.run(work)
    assert report.outcome == "failed"
    assert "API usage limits" in (report.error or "")
    assert report.counts.by_outcome == {"succeeded": 1, "pending": 3}
    kinds = bench.kinds(entry)
    assert kinds[1, 0] == SENT_AND_COLLECTED
    assert kinds[1, 1] == ["send", "not", "closed:drained"]
    assert kinds[1, 3] == ["closed:drained"]


def test_cut_results_are_fetched_again(bench: Bench, start_simulator: StartSimulator) -> None:
    """A download that stops in mid-line is no answer."""
    simulator = start_simulator("cut-results=2")
    bench.start_worker(simulator)
    entry = bench.stage(texts(3))

    assert bench.finish(entry).counts.by_outcome == {"succeeded": 3}
    assert simulator.books()["calls"]["results"] == 3


def test_odd_results_are_counted_said_and_not_stored(bench: Bench, start_simulator: StartSimulator) -> None:
    """A missing result is an error of its row; foreign and repeated ones are never stored."""
    simulator = start_simulator("missing-result=1", "foreign-result=1", "duplicate-result=1")
    worker = bench.start_worker(simulator)
    entry = bench.stage(texts(5))

    report = bench.finish(entry)

    assert sum(report.counts.by_outcome.values()) == 5
    assert report.counts.by_outcome["errored"] == 1
    assert len(bench.responses(entry)) == 5
    assert [row["error"].partition(":")[0] for row in bench.responses(entry) if row["outcome"] == "errored"] == ["result_missing"]
    assert "1 have no result" in worker.output
    assert len(simulator.batches()) == 1


def test_a_staged_body_that_changed_is_not_sent(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its hash is checked while it streams, and its last chunk is withheld."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))
    body = bench.store.get(entry.shards[0].path)
    assert body is not None
    bench.store.put(entry.shards[0].path, body.replace(b"tent", b"bent"))

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert simulator.batches() == []
    records = bench.records(entry)[1, 0]
    assert isinstance(records[1], NotAccepted)
    assert "SHA-256" in records[1].why


@pytest.mark.parametrize(
    ("point", "batches"),
    [("put:submissions.after=kill@1", 0), ("post.before=kill", 0), ("post.after=kill", 1)],
)
def test_killed_between_intent_and_record_does_not_submit_twice(
    bench: Bench, start_simulator: StartSimulator, point: str, batches: int
) -> None:
    """The next attempt finds the intent of a dead sender, and asks."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=point)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> None:
        handle = await driver.start(entry)
        worker.popen.wait(30)
        bench.start_worker(simulator)
        await parked(driver, handle)
        await handle.cancel()
        await driver.closed(handle)

    bench.run(work)
    assert len(simulator.batches()) == batches
    assert bench.kinds(entry) == {(1, 0): ["send", "closed:abandoned"]}


@pytest.mark.parametrize(
    "point", ["put:submissions.after=kill@2", "put:responses.before=kill", "put:responses.after=kill", "put:done.before=kill"]
)
def test_killed_after_the_batch_is_recorded_goes_on_where_it_was(bench: Bench, start_simulator: StartSimulator, point: str) -> None:
    """What is recorded is never sent again, what is stored is stored again as it was."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=point)
    entry = bench.stage(texts(3))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        worker.popen.wait(30)
        bench.start_worker(simulator)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 3}
    assert len(simulator.batches()) == 1
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}


def test_killed_between_two_batches_and_restarted(bench: Bench, start_simulator: StartSimulator) -> None:
    """A worker that dies while nothing is under way loses nothing, and the next one sends the rest."""
    simulator = start_simulator(seconds=3)
    worker = bench.start_worker(simulator, CLAUDE_BATCH_POLL_SECONDS="1")
    entry = bench.stage(texts(2), max_requests=1, max_in_flight=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def sent() -> bool | None:
            return True if (await driver.progress(handle)).submitted == 1 else None

        await until(sent)
        worker.kill()
        bench.start_worker(simulator)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 2


def test_a_parked_shard_goes_on_once_its_log_says_what_happened(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run looks again by itself: here somebody found out that nothing was created, so the shard is sent."""
    simulator = start_simulator("drop-before")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await parked(driver, handle)
        assert append_submission(bench.store, entry.run_id, 1, 0, 1, NotAccepted(why="the vendor's list has no such batch"))
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}
    assert len(simulator.batches()) == 1


def test_key_of_another_workspace_is_refused_and_nothing_is_sent(bench: Bench, start_simulator: Callable[..., RunningSimulator]) -> None:
    """The first reply pins the workspace; a worker whose key belongs to another one fails the run."""
    simulator = start_simulator()
    assert pin_workspace(bench.store, "wrkspc_of_somebody_else") == "wrkspc_of_somebody_else"
    entry = bench.stage(texts(2))
    bench.start_worker(simulator)

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "wrkspc_of_somebody_else" in (report.error or "")
    assert simulator.batches() == []
    assert bench.done(entry).rows == {"pending": 2}


def test_key_revoked_in_mid_run_loses_no_answer(bench: Bench, start_simulator: Callable[..., RunningSimulator]) -> None:
    """A batch that is paid for is polled until the key works again."""
    simulator = start_simulator(seconds=1.0)
    entry = bench.stage(texts(3))
    bench.start_worker(simulator)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def submitted() -> bool | None:
            return (await driver.progress(handle)).submitted == 1 or None

        await until(submitted)
        simulator.switch_on("401-from")
        await asyncio.sleep(2.0)
        simulator.clear()
        return await driver.result(handle)

    report = bench.run(work)

    assert report.counts.by_outcome == {"succeeded": 3}
    assert len(simulator.batches()) == 1
