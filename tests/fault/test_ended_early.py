"""A run ends before the round that its failed rows would have had: they are not final, the next run asks them on."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from temporalio.client import Client

from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.storage.plans import read_done, read_entry, read_log
from claude_batch_dagster.storage.store import Store
from tests.fault.clients import wait_until
from tests.fault.judge import ROWS, CommandLine, answered_twice, last_object, rows_by_status, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def begin(bench: Bench, simulator: RunningSimulator, folder: Path, *options: str) -> CommandLine:
    """Start a run and leave it to its workflow."""
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    command.write_source()
    assert command.run("--detach", *options).returncode == 0
    return command


def root(command: CommandLine) -> Store:
    return Store(str(Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated"))


def responses(command: CommandLine) -> list[dict[str, Any]]:
    store = root(command)
    columns = ["outcome", "round", "max_tokens"]
    return [row for path in store.list("responses") for row in pq.read_table(store.open(path), columns=columns).to_pylist()]


def caps(command: CommandLine, outcome: str) -> set[int]:
    """Return what the requests with this outcome were allowed."""
    return {row["max_tokens"] for row in responses(command) if row["outcome"] == outcome}


@pytest.mark.parametrize(("fault", "outcome", "failed"), [("long-answers=300", "truncated", ROWS), ("invalid=3", "invalid", 3)])
def test_a_drained_run_leaves_its_next_round_to_the_next_run(
    fault: str, outcome: str, failed: int, bench: Bench, start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """Its workflow and its client are gone: what is out is collected, and what it would have asked again is asked once, by the drainer."""
    simulator = start_simulator(fault, seconds=6)
    command = begin(bench, simulator, tmp_path / "work")
    wait_until(lambda: len(simulator.batches()) == 1)
    run_id = read_entry(root(command), 1).run_id

    async def terminate() -> None:
        await (await Client.connect(bench.address)).get_workflow_handle(workflow_id(run_id)).terminate("test")

    asyncio.run(terminate())
    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert rows_by_status(finished) == {"total": ROWS, "succeeded": ROWS}
    assert last_object(finished)["requests"] == {"asked": failed, "already_answered": 0, "in_flight": ROWS}
    assert sent(simulator) == [ROWS, failed]
    drained = read_done(root(command), 1)
    assert drained is not None
    assert {name: count for name, count in drained.rows.items() if count} == {outcome: failed} | (
        {"succeeded": ROWS - failed} if failed < ROWS else {}
    )
    assert sorted(answered_twice(simulator).values()) == [2] * failed
    # One round each.
    assert {row["round"] for row in responses(command)} == {1}
    if outcome == "truncated":
        [cut], [whole] = caps(command, "truncated"), caps(command, "succeeded")
        assert whole == 2 * cut
    assert last_object(command.run())["requests"]["asked"] == 0
    assert sent(simulator) == [ROWS, failed]


def test_answers_that_stay_invalid_are_bought_twice_however_often_the_cap_keeps_the_second_round_away(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """The second run is the retry that the first one had no money for; the third asks nothing."""
    simulator = start_simulator("invalid=all", seconds=0.2)
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    task = ("--task", "summarize", "--column", "text", "--key", "id")
    planned = command.call("plan", "--source", "source.parquet", "--output", "out", *task, "--json")
    worst_usd = last_object(planned)["cost_usd"]["worst"]

    runs = [command.run("--max-cost-usd", str(worst_usd * 1.05)) for _ in range(3)]

    assert [last_object(run)["requests"]["asked"] for run in runs] == [ROWS, ROWS, 0]
    assert sent(simulator) == [ROWS, ROWS]
    assert rows_by_status(runs[-1]) == {"total": ROWS, "invalid": ROWS}


def test_a_canceled_run_leaves_its_next_round_to_the_next_run(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """The cut answers of its first shard are asked on with twice the room, those of the canceled one as they were."""
    simulator = start_simulator("long-answers=300", "hold=2", seconds=0.3)
    command = begin(bench, simulator, tmp_path / "work", "--max-requests-per-batch", str(ROWS // 2), "--max-in-flight-batches", "1")
    wait_until(lambda: len(simulator.batches()) == 2 and len(responses(command)) == ROWS // 2)

    canceled = command.call("cancel", "r1")
    assert canceled.returncode == 0, canceled.stderr
    assert read_log(root(command)).open == ()
    before = Counter(row["outcome"] for row in responses(command))
    assert before["truncated"] + before["canceled"] == ROWS
    assert before["canceled"]
    simulator.clear()
    simulator.switch_on("long-answers", 300)
    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert rows_by_status(finished) == {"total": ROWS, "succeeded": ROWS}
    assert last_object(finished)["requests"] == {"asked": ROWS, "already_answered": 0, "in_flight": 0}
    # All in one batch: only those that were never cut before are cut now.
    assert sent(simulator) == [ROWS // 2, ROWS // 2, ROWS, before["canceled"]]
    assert set(answered_twice(simulator).values()) == {2}
    assert last_object(command.run())["requests"]["asked"] == 0
