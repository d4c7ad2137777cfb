"""A client that waits is told by Temporal that its run is over: it does not come upon it at its next look."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.verbs import run
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.run import run_job
from tests.stack import SUMMARIZE, Bench, RunningSimulator, texts

ROWS = 3
NEVER_S = 100_000.0


@pytest.mark.timeout(120)
def test_a_client_hears_that_its_run_is_over(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next look would be tomorrow."""
    monkeypatch.setattr(run, "LOOK_EVERY_S", NEVER_S)
    bench.start_worker(start_simulator())
    pq.write_table(pa.table({"id": list(range(ROWS)), "text": texts(ROWS)}), tmp_path / "in.parquet")
    job = Job(
        root=bench.store.uri,
        endpoint="simulator",
        temporal_namespace="default",
        source=ParquetDataset(path=str(tmp_path / "in.parquet"), key="id"),
        targets=(Target(task=SUMMARIZE, output=str(tmp_path / "out")),),
    )
    result = run_job(job, Connection(address=bench.address, task_queue=bench.task_queue))
    assert (result.run, result.rows["succeeded"]) == ("r1", ROWS)
