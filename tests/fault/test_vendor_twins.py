"""A lost reply, and batches in the list that look like ours: the same second, the same size, even the same rows. Only results prove whose."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.core.contract import RunReport
from claude_batch_dagster.core.submission import Accepted, Evidence, How, NotAccepted
from claude_batch_dagster.storage.store import Store
from tests.stack import Bench, Driver, RunningSimulator, stage_plan, texts, until

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]
ROWS = 3


def post(simulator: RunningSimulator, body: bytes) -> str:
    """Create a batch that the worker knows nothing of; return its id."""
    headers = {"content-type": "application/json", "x-api-key": "any", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{simulator.url}/v1/messages/batches", data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.loads(reply.read())["id"])


def somebody_elses(count: int) -> bytes:
    params = {"model": "claude-haiku-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    return json.dumps({"requests": [{"custom_id": f"theirs-{n}", "params": params} for n in range(count)]}).encode()


def of_another_root(folder: Path) -> bytes:
    """Return what a run of another root asks about the same rows: the same names and keys, another tag."""
    other = Store(str(folder / "other"))
    body = other.get(stage_plan(other, texts(ROWS)).shards[0].path)
    assert body is not None
    return body


@pytest.mark.parametrize("fault", ["accept-then-drop", "drop-before"])
def test_twins_of_a_lost_batch_are_seen_to_their_end_and_left_alone(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path, fault: str
) -> None:
    """Ours is taken where it was created; where it was not, neither of the others is, and the shard is sent once more."""
    simulator = start_simulator(fault, seconds=1)
    bench.start_worker(simulator, CLAUDE_BATCH_SETTLE_SECONDS="2")
    entry = bench.stage(texts(ROWS))
    twins: list[str] = []

    async def work(driver: Driver) -> RunReport:
        handle = await driver.start(entry)

        async def lost() -> bool | None:
            return simulator.books()["calls"].get("create", 0) == 1 or None

        await until(lost)
        twins.extend(post(simulator, body) for body in (somebody_elses(ROWS), of_another_root(tmp_path)))
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": ROWS}
    (ours,) = (batch["id"] for batch in simulator.batches() if batch["id"] not in twins)
    assert {row["batch_id"] for row in bench.responses(entry)} == {ours}
    records: list[Any] = bench.records(entry)[1, 0]
    if fault == "accept-then-drop":
        assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
        assert isinstance(records[1], Accepted)
        assert records[1].by is Evidence.PROOF
    else:
        assert bench.kinds(entry) == {(1, 0): ["send", "not", *SENT_AND_COLLECTED]}
        assert isinstance(records[1], NotAccepted)
        assert records[1].how is How.RECONCILED
