"""A run that is admitted and whose workflow cannot be started: its keys are taken, so the start is tried again, and said if it stays so."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.operatorservice.v1 import DeleteNamespaceRequest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.plans import read_done
from claude_batch_dagster.verbs import run
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.run import run_job
from tests.stack import SUMMARIZE, Bench, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]
ROWS = 3
SAME_LOOKS = 20


@pytest.fixture
def namespace() -> str:
    return f"test-{time.monotonic_ns()}"


@pytest.fixture
def job(bench: Bench, tmp_path: Path, namespace: str) -> Job:
    pq.write_table(pa.table({"id": range(ROWS), "text": texts(ROWS)}), tmp_path / "in.parquet")
    return Job(
        root=bench.store.uri,
        endpoint="simulator",
        temporal_namespace=namespace,
        source=ParquetDataset(path=str(tmp_path / "in.parquet"), key="id"),
        targets=(Target(task=SUMMARIZE, output=str(tmp_path / "out")),),
    )


@pytest.fixture
def connection(bench: Bench, namespace: str) -> Connection:
    found = Connection(address=bench.address, namespace=namespace, task_queue=bench.task_queue)
    register(found)
    return found


def register(connection: Connection) -> None:
    """Make the namespace, and wait until the server's front end knows it."""

    async def call() -> None:
        client = await Client.connect(connection.address, namespace=connection.namespace)
        retention = Duration(seconds=86_400)
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace=connection.namespace, workflow_execution_retention_period=retention)
        )
        await wait_until(client, known=True)

    asyncio.run(call())


def remove(connection: Connection) -> None:
    """Delete the namespace: the server answers, lists nothing and starts nothing."""

    async def call() -> None:
        client = await Client.connect(connection.address, namespace=connection.namespace)
        await client.operator_service.delete_namespace(DeleteNamespaceRequest(namespace=connection.namespace))
        await wait_until(client, known=False)

    asyncio.run(call())


async def wait_until(client: Client, *, known: bool) -> None:
    """Wait until the server says the same many times: its caches are refreshed one after the other, and go back and forth meanwhile."""
    same = 0

    async def look() -> bool | None:
        nonlocal same
        try:
            await client.count_workflows()
            found: bool | None = True
        except RPCError as error:
            found = False if error.status is RPCStatusCode.NOT_FOUND else None
        same = same + 1 if found is known else 0
        return same >= SAME_LOOKS or None

    await until(look)


def test_a_server_that_cannot_start_it_now_is_asked_again(
    bench: Bench, start_simulator: StartSimulator, job: Job, connection: Connection
) -> None:
    """The namespace is gone right after admission and comes back; the run then goes its way, and nothing is admitted twice."""
    simulator = start_simulator()
    later: list[threading.Thread] = []

    def begin() -> None:
        time.sleep(2)
        register(connection)
        bench.start_worker(simulator, TEMPORAL_NAMESPACE=connection.namespace)

    def on_admitted(_: LogEntry) -> None:
        remove(connection)
        later.append(threading.Thread(target=begin))
        later[0].start()

    result = run_job(job, connection, on_admitted=on_admitted)

    later[0].join()
    assert (result.run, result.rows["succeeded"]) == ("r1", ROWS)
    assert len(simulator.batches()) == 1


def test_a_run_that_cannot_be_started_is_named_and_settled_by_the_same_command(
    bench: Bench, start_simulator: StartSimulator, job: Job, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = start_simulator()
    with monkeypatch.context() as patched:
        patched.setattr(run, "START_TRIES", 2)
        patched.setattr(run, "START_EVERY_S", 0.1)
        with pytest.raises(TemporalUnavailableError) as raised:
            run_job(job, connection, on_admitted=lambda _: remove(connection))
    text = str(raised.value)
    assert text.startswith("Batch run r1 was admitted, and Temporal does not confirm the start of its workflow: ")
    assert connection.namespace in text
    # A start whose reply was lost would read the same.
    assert "Nothing was sent" not in text
    assert "It may have begun and sent its batches." in text
    assert text.endswith("Type the same command again: it goes on with the run, or settles it and asks anew.")
    assert raised.value.context["run"] == "r1"
    assert simulator.books()["calls"] == {}
    assert read_done(bench.store, 1) is None, "its keys stay its own until somebody settles it"

    register(connection)
    bench.start_worker(simulator, TEMPORAL_NAMESPACE=connection.namespace)
    result = run_job(job, connection)

    assert (result.run, result.rows["succeeded"]) == ("r2", ROWS)
    settled = read_done(bench.store, 1)
    assert settled is not None
    assert (settled.rows, settled.batches) == ({"pending": ROWS}, 0)
    assert len(simulator.batches()) == 1
