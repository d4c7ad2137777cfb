"""What the vendor cannot prove is asked: nobody guesses, and a person's word counts only where it can be true."""

import asyncio
import time
from dataclasses import replace

import pytest

from claude_batch_dagster.core.contract import DoubtInput, RunReport, ShardInput, Submitted
from claude_batch_dagster.core.errors import RunError, UsageError
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.answer import Choice
from temporal_worker.batches import Batches
from temporal_worker.settle import Settler
from temporal_worker.submit import Submitter
from temporal_worker.vendor import Batch
from tests.lost_posts import SENT_AND_COLLECTED, StartSimulator, answer, now, post_foreign
from tests.stack import Bench, Driver, RunningSimulator, asked, texts, until


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
