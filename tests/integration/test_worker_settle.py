"""A POST whose end nobody saw: waited out, looked for in the list, proved by its results. Nothing is sent twice, nothing is guessed."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.submission import Accepted, Evidence, How, NotAccepted, Send
from claude_batch_dagster.storage.plans import append_submission, list_strays
from claude_batch_dagster.storage.recovered import list_unstored_strays
from temporal_worker.batches import Batches
from tests.lost_posts import SENT_AND_COLLECTED, StartSimulator, post_foreign, replace_sender
from tests.stack import Bench, Driver, Process, RunningSimulator, texts, until


@pytest.mark.parametrize("fault", ["accept-then-drop", "garbled-after", "error-500-after", "error-504-after"])
def test_a_batch_whose_reply_got_lost_is_found_and_proved(bench: Bench, start_simulator: StartSimulator, fault: str) -> None:
    """It was created, so it is taken up; a foreign batch of its size and second is not."""
    simulator = start_simulator(fault, seconds=1)
    bench.start_worker(simulator)
    entry = bench.stage(texts(3))
    simulator.switch_on("list-lag", 0.5)

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 3}
    assert len(simulator.batches()) == 1
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    batch = bench.records(entry)[1, 0][1]
    assert isinstance(batch, Accepted)
    assert batch.by is Evidence.PROOF


@pytest.mark.parametrize("fault", ["drop-before", "error-500-before", "408", "409", "307"])
def test_what_was_never_created_is_sent_again(bench: Bench, start_simulator: StartSimulator, fault: str) -> None:
    """A foreign batch of the same size is seen to its end first, and is not taken."""
    simulator = start_simulator(seconds=0.5)
    foreign = post_foreign(simulator, 2)
    simulator.switch_on(fault)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}
    end = bench.records(entry)[1, 0][1]
    assert isinstance(end, NotAccepted)
    assert end.how is How.RECONCILED
    assert len([batch for batch in simulator.batches() if batch["id"] != foreign]) == 1


def test_what_was_proved_foreign_is_not_read_again(bench: Bench, start_simulator: StartSimulator) -> None:
    """Two batches of the shard's size have ended, and the shard's own is polled on: the results of each are read once."""
    simulator = start_simulator(seconds=0.2)
    foreign = [post_foreign(simulator, 2) for _ in range(2)]
    batches = Batches("any", simulator.url)
    while not all(batches.get(batch_id).ended for batch_id in foreign):
        time.sleep(0.05)
    batches.close()
    simulator.switch_on("hold", len(foreign) + 1)
    simulator.switch_on("accept-then-drop")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        looked = simulator.books()["calls"].get("get", 0)

        async def polled() -> bool | None:
            return simulator.books()["calls"].get("get", 0) >= looked + 8 or None

        await until(polled)
        assert simulator.books()["calls"]["results"] == len(foreign)
        simulator.clear()
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    # One each; the shard's own is read as proof, and collected.
    assert simulator.books()["calls"]["results"] == len(foreign) + 2


@pytest.mark.parametrize(
    ("point", "kinds"),
    [
        ("put:submissions.after=kill@1", ["send", "not", *SENT_AND_COLLECTED]),
        ("post.before=kill", ["send", "not", *SENT_AND_COLLECTED]),
        ("post.last_byte=kill", ["send", "not", *SENT_AND_COLLECTED]),
        ("post.after=kill", SENT_AND_COLLECTED),
    ],
)
def test_killed_between_intent_and_record_does_not_submit_twice(
    bench: Bench, start_simulator: StartSimulator, point: str, kinds: list[str]
) -> None:
    """The next attempt finds the intent of a dead sender, waits its time out, and finds out."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=point)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        worker.popen.wait(30)
        bench.start_worker(simulator)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): kinds}
    assert len(simulator.batches()) == 1


def test_a_shard_that_is_settled_does_not_hold_the_others_up(bench: Bench, start_simulator: StartSimulator) -> None:
    """With a window of two, the second shard is sent and collected meanwhile."""
    simulator = start_simulator("accept-then-drop")
    bench.start_worker(simulator, CLAUDE_BATCH_SETTLE_SECONDS="6")
    entry = bench.stage(texts(2), max_requests=1, max_in_flight=2)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def collected() -> bool | None:
            return (await driver.progress(handle)).collected == 1 or None

        await until(collected)
        assert sorted(bench.kinds(entry).values(), key=len)[0] == ["send"]
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 2


SENDER = """
import sys, time
from datetime import UTC, datetime
from claude_batch_dagster.core.contract import ShardInput
from claude_batch_dagster.storage.store import Store
from temporal_worker.batches import Batches
from temporal_worker.submit import Submitter
root, run_id, url, send_s = sys.argv[1:]
submitter = Submitter(
    open_store=Store, batches=Batches("any", url), clock=lambda: datetime.now(UTC), boot_s=time.monotonic, send_s=float(send_s), settle_s=1.0
)
print(submitter.submit(ShardInput(root=root, number=1, run_id=run_id, round=1, shard=0), print), flush=True)
"""
"""An attempt that Temporal believes dead, as a process: it sends the first shard of run r1."""


def start_zombie(bench: Bench, simulator: RunningSimulator, run_id: str, point: str, send_s: float = 2.0) -> Process:
    """Start the sender, and wait until it has fallen asleep at its fault point."""
    arguments = [sys.executable, "-c", SENDER, bench.store.uri, run_id, simulator.url, str(send_s)]
    zombie = Process.start(arguments, {"CLAUDE_BATCH_FAULT_POINTS": f"{point}=stop"})
    bench.stack.callback(zombie.stop)
    deadline = time.monotonic() + 30
    while "T (stopped)" not in Path(f"/proc/{zombie.popen.pid}/status").read_text():
        assert time.monotonic() < deadline, zombie.output
        time.sleep(0.05)
    return zombie


def test_a_sender_that_slept_past_its_time_withholds_its_last_byte(bench: Bench, start_simulator: StartSimulator) -> None:
    """It wakes after another worker has settled its intent and sent the shard anew: nothing of its body is accepted."""
    simulator = start_simulator()
    entry = bench.stage(texts(2))
    zombie = start_zombie(bench, simulator, entry.run_id, "post.last_byte")
    bench.start_worker(simulator)

    report = bench.finish(entry)
    zombie.popen.send_signal(signal.SIGCONT)

    assert zombie.popen.wait(30) != 0
    assert "longer than its 2 s" in zombie.output
    assert report.counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 1
    assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}


def test_an_upload_that_took_too_long_gets_twice_the_time(bench: Bench, start_simulator: StartSimulator) -> None:
    """Nothing was accepted for certain, so it is sent again at once."""
    simulator = start_simulator()
    entry = bench.stage(texts(2))
    zombie = start_zombie(bench, simulator, entry.run_id, "post.last_byte", send_s=0.1)
    time.sleep(0.1)
    zombie.popen.send_signal(signal.SIGCONT)
    assert zombie.popen.wait(30) != 0
    bench.start_worker(simulator)

    assert bench.finish(entry).counts.by_outcome == {"succeeded": 2}

    first, late, second, *_ = bench.records(entry)[1, 0]
    assert isinstance(late, NotAccepted)
    assert late.how is How.LATE
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert second.send_s > 1.9 * 3 > first.send_s
    assert len(simulator.batches()) == 1


def test_a_cancel_settles_what_is_not_known_before_it_lets_the_rows_go(bench: Bench, start_simulator: StartSimulator) -> None:
    """A batch whose reply got lost is found, stopped and collected: nobody else buys its rows while it lives."""
    simulator = start_simulator("accept-then-drop", "hold", seconds=1)
    bench.start_worker(simulator)
    entry = bench.stage(texts(3), max_requests=1)

    async def work(driver: Driver) -> str:
        handle = await driver.start(entry)

        async def lost() -> bool | None:
            return len(simulator.batches()) >= 2 or None

        await until(lost)
        await handle.cancel()

        async def settling() -> bool | None:
            return simulator.books()["calls"].get("get", 0) >= 2 or None

        await until(settling)
        simulator.clear()
        return await driver.closed(handle)

    assert bench.run(work) == "CANCELED"
    kinds = bench.kinds(entry)
    assert kinds[1, 0] == kinds[1, 1] == SENT_AND_COLLECTED
    assert kinds[1, 2] == ["closed:canceled"]
    assert bench.done(entry).rows["pending"] == 1
    assert sum(bench.done(entry).rows.values()) == 3


def test_a_batch_that_was_proved_before_its_late_reply_is_no_stray(bench: Bench, start_simulator: StartSimulator) -> None:
    """It was taken for a later submission of its shard: nobody stops it."""
    simulator = start_simulator("hold")
    entry = bench.stage(texts(2))
    zombie = start_zombie(bench, simulator, entry.run_id, "post.after", send_s=8.0)
    deadline = time.monotonic() + 30
    while not simulator.batches():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ours = simulator.batches()[0]["id"]
    (sent,) = bench.records(entry)[1, 0]
    later = (
        NotAccepted(why="not listed", how=How.RECONCILED),
        replace_sender(sent),
        Accepted(id=ours, created_at="2026-11-22T12:00:00+00:00", by=Evidence.PROOF),
    )
    for slot, record in enumerate(later, start=1):
        assert append_submission(bench.store, entry.run_id, 1, 0, slot, record)
    zombie.popen.send_signal(signal.SIGCONT)
    zombie.popen.wait(30)

    assert list_strays(bench.store) == []
    assert simulator.books()["calls"].get("cancel", 0) == 0
    assert "again=True" in zombie.output


def test_a_late_reply_becomes_a_stray_that_is_stopped_and_kept(bench: Bench, start_simulator: StartSimulator) -> None:
    """An assumption broke: the list lags longer than the settle time, so the shard is bought twice. That is said, and nothing is lost."""
    simulator = start_simulator("list-lag=3600", "hold")
    entry = bench.stage(texts(2))
    zombie = start_zombie(bench, simulator, entry.run_id, "post.after", send_s=8.0)
    bench.start_worker(simulator)

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def sent_again() -> bool | None:
            return len(simulator.batches()) == 2 or None

        await until(sent_again)
        zombie.popen.send_signal(signal.SIGCONT)
        await asyncio.to_thread(zombie.popen.wait, 30)
        simulator.clear()
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert "came after its shard was settled without it" in zombie.output
    (stray,) = list_strays(bench.store)
    assert list_unstored_strays(bench.store) == []
    assert {batch["id"]: batch["canceled"] for batch in simulator.batches()}[stray.batch_id]
    assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}
    assert {row["batch_id"] for row in bench.responses(entry)} == {batch["id"] for batch in simulator.batches()}
