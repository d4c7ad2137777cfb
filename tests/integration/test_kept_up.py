"""A job that runs day after day: its answers are indexed and joined before they are published, and none is bought again."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.records import DoneRecord
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.plans import list_submissions, read_done, read_entries
from claude_batch_dagster.storage.stored import read_stored_files
from claude_batch_dagster.verbs import upkeep
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.paid import read_paid
from claude_batch_dagster.verbs.run import run_job
from tests.stack import SUMMARIZE, Bench, RunningSimulator, texts
from tests.unit.storage.responses_of import ALWAYS


def test_each_run_buys_what_is_new_and_publishes_all(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = start_simulator()
    bench.start_worker(simulator)
    monkeypatch.setattr(upkeep, "maintain_responses", partial(maintain_responses, limits=ALWAYS))
    connection = Connection(address=bench.address, task_queue=bench.task_queue)
    job = Job(
        root=bench.store.uri,
        endpoint="simulator",
        temporal_namespace="default",
        source=ParquetDataset(path=str(tmp_path / "in.parquet"), key="id"),
        targets=(Target(task=SUMMARIZE, output=str(tmp_path / "out")),),
    )
    for day in range(1, 4):
        rows = 4 * day
        pq.write_table(pa.table({"id": list(range(rows)), "text": texts(rows)}), tmp_path / "in.parquet")
        result = run_job(job, connection)
        assert result.requests["asked"] == 4
        assert result.rows["succeeded"] == rows
        stored = read_stored_files(bench.store, "simulator", SUMMARIZE.task_key)
        assert stored.newest.generation == day
        assert all(file.is_covered for file in stored.files)
        assert len(stored.files) == 1
    published = pq.read_table(tmp_path / "out" / "part-0.parquet")
    assert published["id"].to_pylist() == list(range(12))
    assert Counter(published["status"].to_pylist()) == {"succeeded": 12}
    assert len(set(published["batch_id"].to_pylist())) == 3
    done = [read_done(bench.store, entry.number) for entry in read_entries(bench.store)]
    assert all(isinstance(one, DoneRecord) and one.rows == {"succeeded": 4} for one in done)
    assert len([entry for entry in read_entries(bench.store) if list_submissions(bench.store, entry.run_id)]) == 3
    assert all(read_paid(bench.store.uri, entry).tokens["output"] > 0 for entry in read_entries(bench.store))
    assert run_job(job, connection).requests["asked"] == 0
    assert len(simulator.batches()) == 3
