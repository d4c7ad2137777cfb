"""Dagster runs whose work overlaps, each in a process of its own: a run beside a run, a backfill over a schedule's run, one terminated."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fault.clients import wait_until
from tests.fault.judge import answered_twice, sent
from tests.stack import Bench, Process, RunningSimulator

DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")
ROWS_A_DAY = 40
PROGRAM = """
import sys
import dagster as dg
from claude_batch_dagster import ClaudeBatchResource, ParquetDataset, Summarize, claude_batch_assets, claude_batch_resources

place, output, first, last = sys.argv[1:]

@claude_batch_assets(
    source=ParquetDataset(path=f"{place}/reviews", key="id", partition_column="day"),
    tasks=[Summarize(name="summaries", column="text", model="claude-haiku-5-5")],
    partitions_def=dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-04"),
)
def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    yield from claude_batch.run(context)

days = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
which = {"partition_key": first} if first == last else {"tags": days}
result = dg.materialize([insights], resources=claude_batch_resources(root=f"{place}/root", output=output), raise_on_error=False, **which)
sys.exit(0 if result.success else 1)
"""


def write_days(place: Path) -> None:
    for day in DAYS:
        file = place / "reviews" / f"day={day}" / "part-0.parquet"
        file.parent.mkdir(parents=True)
        texts = [text_of(day, row) for row in range(ROWS_A_DAY)]
        pq.write_table(pa.table({"id": range(ROWS_A_DAY), "text": texts}), file)


def text_of(day: str, row: int) -> str:
    return f"{day}, review {row}: the tent kept us dry, its poles are light."


def materialize(bench: Bench, simulator: RunningSimulator, place: Path, output: str, first: str, last: str) -> Process:
    """Start a Dagster run of the days from first to last."""
    (place / "program.py").write_text(PROGRAM)
    environ = {
        "TEMPORAL_ADDRESS": bench.address,
        "CLAUDE_BATCH_TASK_QUEUE": bench.task_queue,
        "ANTHROPIC_BASE_URL": simulator.url,
        "PYTHONPATH": ".",
    }
    process = Process.start([sys.executable, str(place / "program.py"), str(place), str(place / output), first, last], environ)
    bench.stack.callback(process.stop)
    return process


def assert_published(output: Path, *days: str) -> None:
    for day in days:
        rows = pq.read_table(output / "summaries" / f"day={day}" / "part-0.parquet", partitioning=None).to_pylist()
        assert [(row["id"], row["status"], row["summary"]) for row in rows] == [
            (row, "succeeded", f"[simulated] {text_of(day, row)}") for row in range(ROWS_A_DAY)
        ]


def test_two_runs_at_once_over_the_same_days(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """Both publish all days; each request is bought once."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    write_days(tmp_path)
    runs = [materialize(bench, simulator, tmp_path, output, DAYS[0], DAYS[-1]) for output in ("out-1", "out-2")]
    for run in runs:
        assert run.popen.wait(180) == 0, run.output
    assert_published(tmp_path / "out-1", *DAYS)
    assert_published(tmp_path / "out-2", *DAYS)
    assert sum(sent(simulator)) == len(DAYS) * ROWS_A_DAY
    assert answered_twice(simulator) == {}


def test_backfill_over_a_scheduled_run_waits_for_its_day(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The day that is out is not asked again: the backfill buys the others, and publishes all."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    write_days(tmp_path)
    scheduled = materialize(bench, simulator, tmp_path, "out", DAYS[1], DAYS[1])
    wait_until(lambda: len(simulator.batches()) == 1, 120)
    backfill = materialize(bench, simulator, tmp_path, "out", DAYS[0], DAYS[-1])
    wait_until(lambda: len(simulator.batches()) == 2, 120)
    simulator.clear()
    for run in (scheduled, backfill):
        assert run.popen.wait(180) == 0, run.output
    assert_published(tmp_path / "out", *DAYS)
    assert sent(simulator) == [ROWS_A_DAY, 2 * ROWS_A_DAY]
    assert answered_twice(simulator) == {}


def test_terminated_run_leaves_the_other_to_buy_what_is_missing(
    bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """The scheduled run's batch is canceled with it; the backfill asks about that day itself."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    write_days(tmp_path)
    scheduled = materialize(bench, simulator, tmp_path, "out", DAYS[1], DAYS[1])
    wait_until(lambda: len(simulator.batches()) == 1, 120)
    backfill = materialize(bench, simulator, tmp_path, "out", DAYS[0], DAYS[-1])
    wait_until(lambda: len(simulator.batches()) == 2, 120)
    scheduled.popen.send_signal(signal.SIGINT)
    scheduled.popen.wait(120)
    simulator.clear()
    assert backfill.popen.wait(180) == 0, backfill.output
    assert scheduled.popen.returncode != 0
    assert_published(tmp_path / "out", *DAYS)
    assert answered_twice(simulator) == {}
