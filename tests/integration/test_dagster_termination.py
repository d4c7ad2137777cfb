"""A Dagster run that ends early: terminated, it cancels its batches; killed, it cancels nothing and the next run goes on."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stack import Bench, Process, RunningSimulator

PROGRAM = """
import sys
from datetime import timedelta
import dagster as dg
from claude_batch_dagster import ClaudeBatchResource, ParquetDataset, Summarize, claude_batch_assets, claude_batch_resources

place = sys.argv[1]

@claude_batch_assets(
    source=ParquetDataset(path=f"{place}/reviews.parquet", key="id"), tasks=[Summarize(name="summaries", column="text", model="claude-haiku-5-5")],
    wait_for=timedelta(minutes=int(sys.argv[2])) if sys.argv[2:] else None,
    retry_policy=dg.RetryPolicy(max_retries=2) if sys.argv[3:] else None,
)
def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    yield from claude_batch.run(context)

result = dg.materialize([insights], resources=claude_batch_resources(root=f"{place}/root", output=f"{place}/out"), raise_on_error=False)
sys.exit(0 if result.success else 1)
"""


def start_run(bench: Bench, simulator: RunningSimulator, place: Path, *arguments: str) -> Process:
    if not (place / "reviews.parquet").exists():
        pq.write_table(pa.table({"id": [1, 2], "text": ["The tent leaks.", "The tent is dry."]}), place / "reviews.parquet")
    (place / "program.py").write_text(PROGRAM)
    environ = {
        "TEMPORAL_ADDRESS": bench.address,
        "CLAUDE_BATCH_TASK_QUEUE": bench.task_queue,
        "ANTHROPIC_BASE_URL": simulator.url,
        "PYTHONPATH": ".",
    }
    process = Process.start([sys.executable, str(place / "program.py"), str(place), *arguments], environ)
    bench.stack.callback(process.stop)
    return process


def wait_until(true: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("arguments", [(), ("60",), ("60", "retries")], ids=["to_the_end", "before_it_is_deferred", "with_a_retry_policy"])
def test_terminating_the_run_cancels_its_batch_at_the_vendor(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The run ends within the minute, its batch is canceled, nothing is published, and nothing is asked again."""
    simulator = start_simulator(seconds=600)
    bench.start_worker(simulator)
    run = start_run(bench, simulator, tmp_path, *arguments)
    wait_until(lambda: len(simulator.batches()) == 1)
    run.popen.send_signal(signal.SIGINT)
    run.popen.wait(60)
    (batch,) = simulator.batches()
    assert batch["canceled"], run.output
    assert "batch run r1 is being canceled" in run.output
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_killed_process_cancels_nothing_and_the_next_run_publishes_without_asking_again(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Two Dagster runs, one batch, every row answered."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    run = start_run(bench, simulator, tmp_path)
    wait_until(lambda: len(simulator.batches()) == 1)
    run.kill()
    simulator.clear()
    again = start_run(bench, simulator, tmp_path)
    assert again.popen.wait(60) == 0, again.output
    (batch,) = simulator.batches()
    assert not batch["canceled"]
    assert pq.read_table(tmp_path / "out" / "summaries")["status"].to_pylist() == ["succeeded"] * 2
