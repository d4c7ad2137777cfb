"""A source that changes while its batch is out is planned again: what is paid for by then is written, whatever becomes of the second plan."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.plan import Plan, plan_job
from claude_batch_dagster.verbs.progress import JobProgress, OnProgress
from claude_batch_dagster.verbs.run import JobResult, run_job
from tests.stack import SUMMARIZE, Bench, RunningSimulator, texts

StartSimulator = Callable[..., RunningSimulator]


def write_rows(path: Path, rows: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.parent / ".new"
    every = texts(max(rows) + 1)
    pq.write_table(pa.table({"id": list(rows), "text": [every[row] for row in rows]}), new)
    new.replace(path)


def make_job(bench: Bench, folder: Path, **more: object) -> Job:
    fixed: dict[str, object] = {
        "root": bench.store.uri,
        "endpoint": "simulator",
        "temporal_namespace": "default",
        "source": ParquetDataset(path=str(folder / "in"), key="id"),
        "targets": (Target(task=SUMMARIZE, output=str(folder / "out")),),
    }
    return Job(**fixed | more)  # type: ignore[arg-type]


def run_while(
    bench: Bench,
    simulator: RunningSimulator,
    job: Job,
    change: Callable[[], object],
    confirm: Callable[[Plan], bool] | None = None,
    on_progress: OnProgress | None = None,
) -> JobResult:
    """Run a job; change its source while the first batch is held."""
    batches = len(simulator.batches())

    def meanwhile() -> None:
        deadline = time.monotonic() + 60
        while len(simulator.batches()) == batches and time.monotonic() < deadline:
            time.sleep(0.05)
        change()
        simulator.clear()

    thread = threading.Thread(target=meanwhile)
    thread.start()
    try:
        return run_job(job, Connection(address=bench.address, task_queue=bench.task_queue), on_progress, confirm=confirm)
    finally:
        thread.join()


def test_a_row_that_was_asked_again_may_go_meanwhile(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """It was found, asked and paid for: that it is gone now is no misspelt key."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    source = tmp_path / "in" / "part-0.parquet"
    write_rows(source, [0, 1, 2])
    connection = Connection(address=bench.address, task_queue=bench.task_queue)
    run_job(make_job(bench, tmp_path), connection)
    simulator.switch_on("hold")

    result = run_while(bench, simulator, make_job(bench, tmp_path, ask_again=("1",)), lambda: write_rows(source, [0, 2]))

    assert (result.rows["total"], result.rows["succeeded"]) == (2, 2)
    assert len(simulator.batches()) == 2


def test_who_says_no_to_what_came_in_meanwhile_gets_what_is_paid_for(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    source = tmp_path / "in" / "part-0.parquet"
    write_rows(source, [0, 1])
    answers = [True, False]

    result = run_while(bench, simulator, make_job(bench, tmp_path), lambda: write_rows(source, [0, 1, 2]), lambda _: answers.pop(0))

    assert answers == []
    assert (result.rows["succeeded"], result.rows["pending"]) == (2, 1)
    assert result.warnings[0].startswith("Not confirmed: 1 request more")
    assert len(simulator.batches()) == 1


def test_a_partition_that_came_in_meanwhile_is_written_with_the_others(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """Its rows are asked and paid for in this command."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    write_rows(tmp_path / "in" / "day=1" / "part-0.parquet", [0, 1])
    job = make_job(bench, tmp_path, source=ParquetDataset(path=str(tmp_path / "in"), key="id", partition_column="day"))

    result = run_while(bench, simulator, job, lambda: write_rows(tmp_path / "in" / "day=2" / "part-0.parquet", [2, 3]))

    assert result.rows["succeeded"] == 4
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.parquet")) == ["day=1", "day=2"]


@pytest.mark.parametrize(("changed", "plans_again"), [("day=1", True), ("day=2", False)])
def test_only_a_change_of_the_asked_partitions_is_planned_for(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path, changed: str, plans_again: bool
) -> None:
    """A day that nobody asked about may be written meanwhile."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    for day, rows in (("day=1", [0, 1]), ("day=2", [2])):
        write_rows(tmp_path / "in" / day / "part-0.parquet", rows)
    source = ParquetDataset(path=str(tmp_path / "in"), key="id", partition_column="day")
    told: list[JobProgress] = []

    job = make_job(bench, tmp_path, source=source, partitions=("1",))
    result = run_while(
        bench, simulator, job, lambda: write_rows(tmp_path / "in" / changed / "part-0.parquet", [0, 1, 3]), on_progress=told.append
    )

    assert any("The source changed meanwhile" in (progress.message or "") for progress in told) == plans_again
    assert result.rows["succeeded"] == (3 if plans_again else 2)
    assert [path.parent.name for path in (tmp_path / "out").rglob("*.parquet")] == ["day=1"]


def test_a_cap_that_what_came_in_meanwhile_exceeds_does_not_say_that_nothing_was_sent(
    bench: Bench, start_simulator: StartSimulator, tmp_path: Path
) -> None:
    """The first batch is paid, and published."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    source = tmp_path / "in" / "part-0.parquet"
    write_rows(source, [0, 1])
    worst = plan_job(make_job(bench, tmp_path), preview=True).worst_nano_usd
    assert worst is not None

    job = make_job(bench, tmp_path, max_cost_usd=1.01 * worst / 1e9)
    result = run_while(bench, simulator, job, lambda: write_rows(source, range(20)))

    assert (result.rows["succeeded"], result.rows["pending"]) == (2, 18)
    assert "which is over the cap of" in result.warnings[0]
    assert "Nothing more was sent." in result.warnings[0]
    assert "Nothing was sent" not in result.warnings[0]


def test_a_source_that_breaks_meanwhile_says_what_is_kept(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Once it is mended the same job pays for nothing again."""
    simulator = start_simulator("hold")
    bench.start_worker(simulator)
    source = tmp_path / "in" / "part-0.parquet"
    write_rows(source, [0, 1])

    with pytest.raises(SourceError) as raised:
        run_while(bench, simulator, make_job(bench, tmp_path), lambda: source.write_bytes(b"PAR1 no more PAR1"))

    assert "is not a Parquet file" in str(raised.value)
    assert "Nothing more was sent." in str(raised.value)
    assert "Nothing was sent" not in str(raised.value)
    assert str(raised.value).endswith("What batch run r1 was answered is kept: the same command again asks only for the rest.")

    write_rows(source, [0, 1])
    result = run_job(make_job(bench, tmp_path), Connection(address=bench.address, task_queue=bench.task_queue))
    assert (result.rows["succeeded"], result.requests["asked"]) == (2, 0)
