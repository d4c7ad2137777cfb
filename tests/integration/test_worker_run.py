"""A run from its plan to its report: workflow, worker process, Temporal server and simulator are real."""

from collections import Counter
from collections.abc import Callable

import pytest

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.presets import Moderate
from claude_batch_dagster.core.submission import Mode, Send
from tests.stack import MODEL, SUMMARIZE, Bench, Driver, RunningSimulator, kind_of, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


def test_two_shards_are_sent_once_collected_and_reported(bench: Bench, start_simulator: StartSimulator) -> None:
    """Every request ends with one response, in plan order, and the counts add up."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(5), max_requests=3)

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 5}
    assert report.batches == 2
    assert sorted(batch["count"] for batch in simulator.batches()) == [2, 3]
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED, (1, 1): SENT_AND_COLLECTED}
    done = bench.done(entry)
    assert sum(done.rows.values()) == entry.keys.count
    assert done.cost_nano_usd == sum(row["cost_nano_usd"] for row in bench.responses(entry))
    assert done.cost_nano_usd
    assert Counter(row["outcome"] for row in bench.responses(entry)) == {"succeeded": 5}


def test_two_tasks_share_a_batch_and_are_stored_apart(bench: Bench, start_simulator: StartSimulator) -> None:
    """One batch with requests of two tasks leaves one file a task."""
    simulator = start_simulator("enum-case=all")
    bench.start_worker(simulator)
    moderate = Moderate(name="labels", column="text", model=MODEL, labels=("ok", "spam"))
    entry = bench.stage(texts(3), tasks=(SUMMARIZE, moderate))

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 6}
    assert len(simulator.batches()) == 1
    stored = bench.store.list("responses/simulator")
    assert sorted(path.split("/")[2] for path in stored) == sorted(task.task_key for task in entry.tasks)


def test_what_failed_on_the_way_is_asked_again_in_the_next_round(bench: Bench, start_simulator: StartSimulator) -> None:
    """An api_error comes again under a new tag; the rounds end with an empty one."""
    simulator = start_simulator("errored-api=2")
    bench.start_worker(simulator)
    entry = bench.stage(texts(4))

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 4}
    assert [batch["count"] for batch in simulator.batches()] == [2, 4]
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED, (2, 0): SENT_AND_COLLECTED}
    assert bench.store.list(f"rounds/{entry.run_id}") == [f"rounds/{entry.run_id}/2.json", f"rounds/{entry.run_id}/3.json"]


def test_rounds_end_at_max_attempts(bench: Bench, start_simulator: StartSimulator) -> None:
    """A request that expires each time is asked max_attempts times, and its row says so."""
    simulator = start_simulator("expire=all", seconds=0.1)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_attempts=2)

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"expired": 2}
    assert len(simulator.batches()) == 2


def test_a_round_that_exceeds_the_rest_of_the_cap_is_not_opened(bench: Bench, start_simulator: StartSimulator) -> None:
    """The cap holds over all rounds, against the worst case."""
    simulator = start_simulator("errored-api=1")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), cap=2_000)

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 1, "errored": 1}
    assert len(simulator.batches()) == 1


def test_no_more_than_max_in_flight_batches_at_once(bench: Bench, start_simulator: StartSimulator) -> None:
    """With a window of one, a batch is created after the one before it was collected."""
    simulator = start_simulator(seconds=0.2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(3), max_requests=1, max_in_flight=1)

    async def work(driver: Driver) -> int:
        handle = await driver.start(entry)
        most = 0

        async def ended() -> bool | None:
            nonlocal most
            most = max(most, (await driver.progress(handle)).in_progress)
            status = (await driver.client.get_workflow_handle(handle.id).describe()).status
            return None if status is not None and status.name == "RUNNING" else True

        await until(ended)
        return most

    assert bench.run(work) == 1
    assert len(simulator.batches()) == 3


def test_a_finished_run_started_again_returns_its_report(bench: Bench, start_simulator: StartSimulator) -> None:
    """`done` is looked for first, so a late start sends nothing."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))
    first = bench.finish(entry)

    assert bench.finish(entry) == first
    assert len(simulator.batches()) == 1


def test_drain_buys_nothing_and_finishes_the_run(bench: Bench, start_simulator: StartSimulator) -> None:
    """What was never sent ends pending."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = bench.stage(texts(3), max_requests=2)

    report = bench.finish(entry, mode=Mode.DRAIN)

    assert report.counts.by_outcome == {"pending": 3}
    assert simulator.batches() == []
    assert bench.kinds(entry) == {(1, 0): ["closed:drained"], (1, 1): ["closed:drained"]}


def test_drain_after_a_terminated_workflow_collects_what_lives(bench: Bench, start_simulator: StartSimulator) -> None:
    """A driver that is gone leaves its batch to whoever drains."""
    simulator = start_simulator(seconds=2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(4), max_requests=2, max_in_flight=1)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def sent() -> bool | None:
            return True if (await driver.progress(handle)).submitted == 1 else None

        await until(sent)
        await handle.terminate("test")
        return await driver.result(await driver.start(entry, mode=Mode.DRAIN))

    report = bench.run(work)
    assert report.counts.by_outcome == {"succeeded": 2, "pending": 2}
    assert len(simulator.batches()) == 1
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED, (1, 1): ["closed:drained"]}


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_continues_as_new_with_its_live_batches(bench: Bench, start_simulator: StartSimulator, max_in_flight: int) -> None:
    """Pollers are dropped and taken up again; nothing is sent twice, nothing is counted twice."""
    simulator = start_simulator(seconds=0.5)
    bench.start_worker(simulator)
    entry = bench.stage(texts(6), max_requests=1, max_in_flight=max_in_flight)

    async def work(driver: Driver) -> tuple[RunReport, bool]:
        handle = await driver.start(entry, events_before_continue=25)
        report = await driver.result(handle)
        return report, (await driver.client.get_workflow_handle(handle.id).describe()).run_id != handle.first_execution_run_id

    report, continued = bench.run(work)
    assert continued
    assert report.counts.by_outcome == {"succeeded": 6}
    assert len(simulator.batches()) == 6


def test_waiting_writes_no_history(bench: Bench, start_simulator: StartSimulator) -> None:
    """A batch of two seconds and one of eight leave the same events, and a run of one shard leaves few."""

    async def work(driver: Driver) -> int:
        handle = await driver.start(entry)
        await driver.result(handle)
        return len((await driver.history(handle)).events)

    events = []
    for number, seconds in ((1, 2), (2, 8)):
        simulator = start_simulator(seconds=seconds)
        worker = bench.start_worker(simulator)
        entry = bench.stage([f"{number}: {text}" for text in texts(1)], number=number)
        events.append(bench.run(work))
        worker.stop()
    assert events[0] == events[1]

    # Start, first workflow task and end are 5; opening, which submits, seeing through and the round that finishes are 6 each.
    assert events[0] == 5 + 3 * 6


def test_progress_and_details_say_where_the_run_stands(bench: Bench, start_simulator: StartSimulator) -> None:
    """A query answers with counts; the interface shows the same in words."""
    simulator = start_simulator(seconds=2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2), max_requests=1)

    async def work(driver: Driver) -> None:
        handle = await driver.start(entry)

        async def both() -> bool | None:
            return True if (await driver.progress(handle)).in_progress == 2 else None

        await until(both)
        progress = await driver.progress(handle)
        assert (progress.submitted, progress.collected, progress.shards) == (2, 0, 2)
        assert "2 batches in progress" in progress.note
        await driver.result(handle)
        assert (await driver.progress(handle)).collected == 2

    bench.run(work)
    assert [kind_of(record) for record in bench.records(entry)[1, 1]] == SENT_AND_COLLECTED


def test_several_workers_share_one_run(bench: Bench, start_simulator: Callable[..., RunningSimulator]) -> None:
    """Each shard is sent once, whoever takes it, and more than one worker takes some."""
    simulator = start_simulator(seconds=0.5)
    for _ in range(3):
        bench.start_worker(simulator)
    entry = bench.stage(texts(24), max_requests=1, max_in_flight=12)

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 24}
    assert len(simulator.batches()) == 24
    senders = {
        record.sender.rpartition("-")[0] for records in bench.records(entry).values() for record in records if isinstance(record, Send)
    }
    assert len(senders) > 1
