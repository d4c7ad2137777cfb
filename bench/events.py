"""Events: what a run leaves in Temporal's history for each shard, and what a worker weighs while many shards wait."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from temporalio.client import Client

from bench.data import make_source
from bench.job import make_job
from bench.measure import Bench, Context, Facts, Figure, Result, UnavailableError, main
from bench.server import run_server
from bench.stack import run_temporal, run_worker
from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.run import run_job

BATCH_S = 2.0
NEVER_S = 86_400.0
WAITING_POLL_S = 5.0
PATIENCE_S = 300.0
EVENTS_A_SHARD, EVENTS_A_RUN = 19, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the largest run."""
    parser.add_argument("--shards", type=int, default=12, help="the most shards of a run; 1000 takes minutes")


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Run Temporal; make a source with a row for each shard."""
    source = make_source(max(options.shards, 12), options.work)
    with tempfile.TemporaryDirectory(prefix="events-", dir=options.work) as folder, run_temporal() as address:
        yield {"source": str(source), "folder": folder, "address": address}


def run_of(shards: int) -> Callable[[argparse.Namespace, Context], Callable[[], Facts]]:
    """Return the case of a run of so many shards, each of which is looked at several times before it ends."""

    def prepare(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
        _check_size(options, shards)
        job = make_job(
            Path(context["source"]), _folder(context), limit=shards, max_requests_per_batch=1, max_in_flight_batches=min(1_000, shards)
        )

        def work() -> Facts:
            with run_server(seconds=BATCH_S) as server, run_worker(context["address"], server.url) as worker:
                result = run_job(job, Connection(address=context["address"]))
                # Equal rows are one request, and here each request is a shard.
                asked = result.requests["asked"]
                assert result.run_id is not None
                assert result.batches == asked > 0.9 * shards, result
                looks = server.books()["calls"] / asked
                events = asyncio.run(_count_events(context["address"], result.run_id))
                return {"shards": asked, "events": events, "calls_per_shard": looks, "worker_peak_mb": worker.memory_mb("VmHWM")}

        return work

    return prepare


def waiting(shards: int) -> Callable[[argparse.Namespace, Context], Callable[[], Facts]]:
    """Return the case of so many shards that wait for batches that never end."""

    def prepare(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
        _check_size(options, shards)
        job = make_job(
            Path(context["source"]), _folder(context), limit=shards, max_requests_per_batch=1, max_in_flight_batches=min(1_000, shards)
        )

        def work() -> Facts:
            with ExitStack() as stack:
                server = stack.enter_context(run_server(seconds=NEVER_S))
                worker = stack.enter_context(run_worker(context["address"], server.url, poll_s=WAITING_POLL_S))
                idle_mb = worker.memory_mb()
                asked = run_job(job, Connection(address=context["address"]), detach=True).requests["asked"]
                deadline = time.monotonic() + PATIENCE_S
                while server.books()["batches"] < asked:
                    assert time.monotonic() < deadline, server.books()
                    time.sleep(0.1)
                time.sleep(2 * WAITING_POLL_S)
                return {"shards": asked, "idle_mb": idle_mb, "waiting_mb": worker.memory_mb()}

        return work

    return prepare


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Give the events of each run, and the worker's memory."""
    found = {}
    for case in ("shards_1", "shards_12", "shards_1000"):
        if case in result:
            found[f"{case}_events"] = Figure(value=result.median(case, "events"), unit="events")
            allowed = EVENTS_A_RUN + EVENTS_A_SHARD * result.median(case, "shards")
            found[f"{case}_of_allowed"] = Figure(value=100 * result.median(case, "events") / allowed, unit="%")
    for case in ("waiting_10", "waiting_100", "waiting_1000"):
        if case in result:
            found[f"{case}_mb"] = Figure(value=result.median(case, "waiting_mb"), unit="MB")
    return found


async def _count_events(address: str, run_id: str) -> int:
    """Count the events of a workflow, those of the runs before its last continue-as-new included."""
    client = await Client.connect(address)
    events, at = 0, ""
    while True:
        history = await client.get_workflow_handle(workflow_id(run_id), run_id=at or None).fetch_history()
        events += len(history.events)
        at = history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id
        if not at:
            return events


def _check_size(options: argparse.Namespace, shards: int) -> None:
    if shards > options.shards:
        raise UnavailableError(f"more than --shards {options.shards}")


def _folder(context: Context) -> Path:
    return Path(tempfile.mkdtemp(dir=context["folder"]))


BENCH = Bench(
    name="events",
    cases={
        "shards_1": run_of(1),
        "shards_12": run_of(12),
        "shards_1000": run_of(1_000),
        "waiting_10": waiting(10),
        "waiting_100": waiting(100),
        "waiting_1000": waiting(1_000),
    },
    figures=figures,
    setup=setup,
    arguments=add_arguments,
    rows=0,
    repeat=1,
)

if __name__ == "__main__":
    main(BENCH)
