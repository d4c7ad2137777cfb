"""What fails, and what it costs: nothing is sent twice, and every request is accounted for."""

import hashlib
from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.plans import pin_workspace
from tests.stack import Bench, Driver, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


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


def test_a_refusal_in_mid_run_sees_live_batches_through_and_sends_no_more(bench: Bench, start_simulator: StartSimulator) -> None:
    """The first batch is collected, the other shards are closed, the run fails with the vendor's words."""
    simulator = start_simulator("strict-create", seconds=2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(4), max_requests=1, max_in_flight=1)
    # What nobody but the vendor can refuse: a body that is no batch.
    spoiled = b'{"requests":[]}'
    shard = replace(entry.shards[1], sha256=hashlib.sha256(spoiled).hexdigest(), body_bytes=len(spoiled))
    bench.store.put(shard.path, spoiled)
    bench.store.put("log/1.json", msgspec.json.encode(replace(entry, shards=(entry.shards[0], shard, *entry.shards[2:]))))

    report = bench.finish(entry)

    assert report.outcome == "failed"
    assert "HTTP 400" in (report.error or "")
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
