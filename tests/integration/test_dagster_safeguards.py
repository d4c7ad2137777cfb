"""`dg.materialize` on a root whose paid answers are about to go, and on one that lost its records."""

import asyncio
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from temporalio.client import Client

from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.plans import append_submission
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.run import run_job
from tests.dagster_house import SUMMARIES, OpenHouse, asked, define, failure_of, write_reviews
from tests.stack import RunningSimulator, stage_plan, texts


def simulated_root(place: Path) -> Store:
    return Store(str(place / "root" / "simulated"))


async def terminate(address: str, workflow_id: str) -> None:
    await (await Client.connect(address)).get_workflow_handle(workflow_id).terminate()


def test_a_batch_near_its_29_days_is_warned_of_in_the_run(place: Path, open_house: OpenHouse, capfd: pytest.CaptureFixture[str]) -> None:
    """Another run of the root left it 26 days ago; this one goes its way."""
    created_at = datetime.now(UTC) - timedelta(days=26)
    store = simulated_root(place)
    entry = stage_plan(store, texts(1))
    store.put("log/1.json", msgspec.json.encode(msgspec.structs.replace(entry, admitted_at=created_at.isoformat())))
    append_submission(store, entry.run_id, 1, 0, 0, Accepted(id="msgbatch_old", created_at=created_at.isoformat()))
    write_reviews(place)

    assert open_house().materialize(define(place, SUMMARIES)).success

    warnings = [line for line in capfd.readouterr().err.splitlines() if " - WARNING - " in line]
    (warned,) = [line for line in warnings if "msgbatch_old" in line]
    assert "Batch run r1: batch msgbatch_old is not collected, 26 days after creation. Results can be read for 29 days" in warned
    assert warned.endswith(f"claude-batch status r1 --root {place / 'root'} --simulate")


def test_a_root_that_lost_its_records_is_refused_before_anything_is_sent(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, temporal_server: str, task_queue: str
) -> None:
    """The workflow of the lost run lives on: what its batch answers would be paid for again."""
    write_reviews(place)
    simulator.switch_on("hold")
    house, insights = open_house(), define(place, SUMMARIES)
    store = simulated_root(place)
    job = Job(
        root=store.uri,
        endpoint="simulator",
        temporal_namespace="default",
        source=ParquetDataset(path=str(place / "reviews"), key="review_id"),
        targets=(Target(task=SUMMARIES, output=str(place / "elsewhere")),),
    )
    lost = run_job(job, Connection(address=temporal_server, task_queue=task_queue), detach=True)
    assert lost.workflow_id is not None
    deadline = time.monotonic() + 60
    while not list(place.glob("root/simulated/submissions/*/1-0/1.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shutil.rmtree(place / "root")
    simulator.clear()
    before = asked(simulator)
    try:
        description = failure_of(house.materialize(insights))
    finally:
        asyncio.run(terminate(temporal_server, lost.workflow_id))

    assert description.startswith(f"The root {store.uri} lost its records: Temporal runs a workflow of it that its log does not know")
    assert lost.workflow_id in description
    assert "claude-batch recover" in description
    assert asked(simulator) == before
