"""Soak: all client work of many rows, plan to publish. CPU and peak memory of each process, and how memory grows with the rows."""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data import make_source
from bench.job import load_prices, make_job
from bench.measure import MB, Bench, Context, Facts, Figure, Result, main
from bench.server import run_server
from bench.stack import run_temporal, run_worker
from claude_batch_dagster.verbs.connection import Connection

PROJECTED_ROWS = 10_000_000


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Run the server and Temporal; make both sources."""
    sources = {str(rows): str(make_source(rows, options.work)) for rows in (_tenth(options), options.rows)}
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.work) as folder, run_server() as server, run_temporal() as address:
        yield {"sources": sources, "folder": folder, "url": server.url, "address": address, "server": server.pid}


def tenth(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """A tenth of the rows, by a worker of its own."""
    return _run(context, _tenth(options))


def whole(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """All rows, by a worker of its own."""
    return _run(context, options.rows)


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Give CPU minutes for ten million rows, peaks, and bytes that a row adds to the peak."""
    found = {}
    if "whole" in result:
        cpu_s = result.median("whole", "client_cpu_s") + result.median("whole", "worker_cpu_s")
        found["cpu_min_per_10m"] = Figure(value=cpu_s / 60 * PROJECTED_ROWS / options.rows, unit="min")
        found["client_peak_mb"] = Figure(value=result.median("whole", "peak_mb"), unit="MB")
        found["worker_peak_mb"] = Figure(value=result.median("whole", "worker_peak_mb"), unit="MB")
    if "whole" in result and "tenth" in result:
        for name, measure in (("client", "peak_mb"), ("worker", "worker_peak_mb")):
            grown_mb = result.median("whole", measure) - result.median("tenth", measure)
            found[f"{name}_growth"] = Figure(value=grown_mb * MB / (options.rows - _tenth(options)), unit="bytes a row")
    return found


def _run(context: Context, rows: int) -> Callable[[], Facts]:
    from claude_batch_dagster.verbs.run import run_job

    load_prices()
    folder = Path(tempfile.mkdtemp(dir=context["folder"]))
    job = make_job(Path(context["sources"][str(rows)]), folder)

    def work() -> Facts:
        with run_worker(context["address"], context["url"]) as worker:
            began_s, client_cpu_s, worker_cpu_s = time.perf_counter(), time.process_time(), worker.cpu_s()
            result = run_job(job, Connection(address=context["address"]))
            assert result.rows["succeeded"] + result.rows["errored"] == result.rows["total"] == rows, result.rows
            facts = {
                "rows": rows,
                "run_s": time.perf_counter() - began_s,
                "client_cpu_s": time.process_time() - client_cpu_s,
                "worker_cpu_s": worker.cpu_s() - worker_cpu_s,
                "worker_peak_mb": worker.memory_mb("VmHWM"),
                "batches": result.batches,
            }
        shutil.rmtree(folder)
        return facts

    return work


def _tenth(options: argparse.Namespace) -> int:
    return max(1, int(options.rows) // 10)


BENCH = Bench(name="soak", cases={"tenth": tenth, "whole": whole}, figures=figures, setup=setup, rows=1_000_000, repeat=1)

if __name__ == "__main__":
    main(BENCH)
