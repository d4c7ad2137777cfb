"""A POST whose end nobody saw: waited out, looked for in the list, proved by its results. Nothing is sent twice, nothing is guessed."""

import asyncio
import json
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from claude_batch_dagster.core.contract import DoubtInput, RunReport, ShardInput, Submitted
from claude_batch_dagster.core.errors import RunError, UsageError
from claude_batch_dagster.core.submission import Accepted, Evidence, How, NotAccepted, Send
from claude_batch_dagster.storage.plans import append_submission, list_strays
from claude_batch_dagster.storage.recovered import list_unstored_strays
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.answer import Choice, _answer
from claude_batch_dagster.verbs.connection import Connection
from temporal_worker.batches import Batches
from temporal_worker.settle import Settler
from temporal_worker.submit import Submitter
from temporal_worker.vendor import Batch
from tests.stack import Bench, Driver, Process, RunningSimulator, asked, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


def now() -> datetime:
    return datetime.now(UTC)


def replace_sender(sent: Any) -> Send:
    """Return the same intent of another process."""
    assert isinstance(sent, Send)
    return msgspec.structs.replace(sent, sender="another")


def post_foreign(simulator: RunningSimulator, count: int) -> str:
    """Create somebody else's batch; return its id."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({"requests": [{"custom_id": f"theirs-{n}", "params": params} for n in range(count)]}).encode()
    headers = {"content-type": "application/json", "x-api-key": "any", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{simulator.url}/v1/messages/batches", data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.loads(reply.read())["id"])


async def answer(bench: Bench, entry: Any, choice: Choice, shard: int | None = None, batch_id: str | None = None) -> str:
    connection = Connection(address=bench.address, task_queue=bench.task_queue)
    return await _answer(connection, bench.store, entry, choice, shard, batch_id)


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


def test_what_was_never_listed_is_asked_after_three_times_and_sent_on_an_answer(bench: Bench, start_simulator: StartSimulator) -> None:
    """Three lost POSTs in a row are no chance any more."""
    simulator = start_simulator("drop-before=3")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        question = (await asked(driver, handle)).questions[0]
        assert "sent 3 times" in question
        assert "claude-batch answer r1 0 resend" in question
        assert (await answer(bench, entry, Choice.RESEND)) == "Shard 0 of batch run r1 is sent again."
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): [*["send", "not"] * 3, "not", *SENT_AND_COLLECTED]}
    assert len(simulator.batches()) == 1


def lose_for_good(simulator: RunningSimulator) -> None:
    """Let the results of every batch be gone: thirty days pass."""
    simulator.switch_on("clock-skew", 30 * 86_400)


@pytest.mark.parametrize(
    ("choice", "kinds", "batches"),
    [
        (Choice.ABANDON, ["send", "closed:abandoned"], 1),
        (Choice.RESEND, ["send", "not", "send", "batch", "closed:collected"], 2),
    ],
)
def test_a_candidate_whose_results_are_gone_is_asked_about(
    bench: Bench, start_simulator: StartSimulator, choice: Choice, kinds: list[str], batches: int
) -> None:
    """It may be the shard's, and nothing proves it: only a person may say so, and not before the run asks."""
    simulator = start_simulator("accept-then-drop", seconds=0.2)
    bench.start_worker(simulator, CLAUDE_BATCH_SETTLE_SECONDS="4")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def lost() -> bool | None:
            return bool(simulator.batches()) or None

        await until(lost)
        lose_for_good(simulator)
        with pytest.raises(UsageError, match="still being settled"):
            await answer(bench, entry, Choice.RESEND)
        question = (await asked(driver, handle)).questions[0]
        (batch,) = simulator.batches()
        assert batch["id"] in question
        with pytest.raises(RunError, match="nothing proves"):
            await answer(bench, entry, Choice.ADOPT, 0, batch["id"])
        with pytest.raises(UsageError, match="Shard 7"):
            await answer(bench, entry, Choice.ABANDON, 7)
        simulator.clear()
        await answer(bench, entry, choice, 0)
        return await driver.result(handle)

    report = bench.run(work)
    assert report.counts.by_outcome == ({"succeeded": 2} if choice is Choice.RESEND else {"pending": 2})
    assert bench.kinds(entry) == {(1, 0): kinds}
    assert len(simulator.batches()) == batches


def test_a_shard_that_waits_for_a_key_is_not_sent_again_on_an_answer(bench: Bench, start_simulator: StartSimulator) -> None:
    """The run asks for a key and nobody has looked for the batch: to send again could pay twice."""
    simulator = start_simulator("accept-then-drop")
    bench.start_worker(simulator, CLAUDE_BATCH_SETTLE_SECONDS="4")
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def lost() -> bool | None:
            return bool(simulator.batches()) or None

        await until(lost)
        simulator.switch_on("401-from")
        assert "ANTHROPIC_API_KEY" in (await asked(driver, handle)).questions[0]
        with pytest.raises(UsageError, match="still being settled"):
            await answer(bench, entry, Choice.RESEND, 0)
        simulator.clear()
        await answer(bench, entry, Choice.RESUME)
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    assert len(simulator.batches()) == 1


def test_nobody_is_asked_while_a_candidate_may_still_prove_itself(bench: Bench, start_simulator: StartSimulator) -> None:
    """Somebody else's batch was deleted after it was listed; ours is in progress, and whoever were asked now could have it sent again."""
    simulator = start_simulator("accept-then-drop", "hold")
    entry = bench.stage(texts(2))
    batches = Batches("any", simulator.url)
    submitter = Submitter(open_store=Store, batches=batches, clock=now, boot_s=time.monotonic, send_s=15, settle_s=1)
    settler = Settler(open_store=Store, batches=batches, clock=now)
    shard = ShardInput(root=bench.store.uri, number=entry.number, run_id=entry.run_id, round=1, shard=0)
    doubt = submitter.submit(shard, lambda _: None).doubt
    assert doubt is not None
    place = DoubtInput(root=shard.root, number=shard.number, run_id=shard.run_id, round=1, shard=0, slot=doubt.slot)
    (ours,) = settler.find_candidates(place).batch_ids
    found = replace(place, candidates=("msgbatch_deleted", ours))

    waits_for = settler.settle(found, lambda _: None)

    assert isinstance(waits_for, Batch)
    assert waits_for.id == ours
    simulator.clear()
    while not batches.get(ours).ended:
        time.sleep(0.05)
    assert settler.settle(found, lambda _: None) == Submitted(again=True)
    assert bench.kinds(entry) == {(1, 0): ["send", "batch"]}
    batches.close()


def test_a_person_adopts_only_what_its_results_prove(bench: Bench, start_simulator: StartSimulator) -> None:
    """The list lags longer than the run waits, three times; then somebody finds a batch in the Console."""
    simulator = start_simulator("accept-then-drop=3", "list-lag=600", seconds=0.2)
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)
        await asked(driver, handle)
        foreign = post_foreign(simulator, 2)
        await asyncio.sleep(0.5)
        with pytest.raises(RunError, match="does not hold the requests"):
            await answer(bench, entry, Choice.ADOPT, 0, foreign)
        with pytest.raises(RunError, match="msgbatch_nonesuch"):
            await answer(bench, entry, Choice.ADOPT, 0, "msgbatch_nonesuch")
        ours = [batch["id"] for batch in simulator.batches() if batch["id"] != foreign]
        assert "is taken for shard 0" in await answer(bench, entry, Choice.ADOPT, None, ours[0])
        return await driver.result(handle)

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): [*["send", "not"] * 3, "batch", "closed:collected"]}
    with pytest.raises(UsageError, match="has ended"):
        bench.run(lambda _: answer(bench, entry, Choice.RESUME))


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
