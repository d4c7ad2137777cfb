"""The worker's parts without Temporal, and a root with one admitted run, for benches of one step."""

import time
from datetime import UTC, datetime
from pathlib import Path

from bench.data import make_source
from bench.job import make_job
from claude_batch_dagster.core.contract import ShardInput
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.plans import read_entry
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.estimate import price_usage, price_usages
from claude_batch_dagster.verbs.plan import plan_job
from temporal_worker.batches import Batches
from temporal_worker.collect import Collector
from temporal_worker.submit import Submitter


def admit_run(work: Path, rows: int, folder: Path) -> LogEntry:
    """Plan a source of so many rows into a root in a folder, and admit it."""
    job = make_job(make_source(rows, work), folder)
    admission = admit_plan(job, plan_job(job))
    assert admission.own is not None, "a fresh root asks everything"
    return admission.own


def read_run(folder: Path) -> LogEntry:
    """Return the run of a root in which there is one."""
    return read_entry(Store(str(folder / "root")), 1)


def name_shard(folder: Path, entry: LogEntry, shard: int) -> ShardInput:
    """Return a shard as the workflow names it."""
    return ShardInput(root=str(folder / "root"), number=entry.number, run_id=entry.run_id, round=1, shard=shard, mode=Mode.RUN)


def open_batches(url: str) -> Batches:
    """Return the product's client of the API, its libraries loaded and its connection open."""
    batches = Batches("bench", url)
    batches.check_key_and_list()
    return batches


def make_submitter(batches: Batches) -> Submitter:
    """Return the product's submitter, as its worker wires it."""
    return Submitter(open_store=Store, batches=batches, clock=lambda: datetime.now(UTC), boot_s=time.monotonic, send_s=15.0, settle_s=60.0)


def make_collector(batches: Batches) -> Collector:
    """Return the product's collector, as its worker wires it."""
    return Collector(open_store=Store, batches=batches, price_usage=price_usage, price_usages=price_usages)


def ignore(text: str) -> None:
    """Hear what is being done."""
