"""End to end on loopback, waiting taken out: Parquet to batch to Parquet. The product against what people write and Airflow's path."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import make_source
from bench.job import load_prices, make_job, make_request
from bench.measure import Bench, Context, Facts, Figure, Result, main, memory_mb, process_cpu_s
from bench.server import run_server
from bench.stack import run_temporal, run_worker
from claude_batch_dagster.verbs.connection import Connection

if TYPE_CHECKING:
    import pandas as pd

BODY_REQUESTS = 100_000


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Run the server, Temporal and the worker: all three stand before anything is measured."""
    source = make_source(options.rows, options.work)
    with (
        tempfile.TemporaryDirectory(prefix="end_to_end-", dir=options.work) as folder,
        run_server() as server,
        run_temporal() as address,
        run_worker(address, server.url) as worker,
    ):
        yield {"source": str(source), "folder": folder, "url": server.url, "address": address, "worker": worker.pid, "server": server.pid}


def product(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product: its verbs, a real Temporal server, its worker. CPU is this process' and the worker's."""
    from claude_batch_dagster.verbs.run import run_job

    load_prices()
    job = make_job(Path(context["source"]), _folder(context))
    worker = context["worker"]

    def work() -> Facts:
        worker_cpu_s = process_cpu_s(worker)
        result = run_job(job, Connection(address=context["address"]))
        assert result.rows["succeeded"] + result.rows["errored"] == result.rows["total"] == options.rows, result.rows
        return {"worker_cpu_s": process_cpu_s(worker) - worker_cpu_s, "worker_peak_mb": memory_mb("VmHWM", worker)}

    return work


def naive(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """What people write: iterrows, the SDK's create and results, a merge."""

    def make(part: "pd.DataFrame") -> Iterator[dict[str, Any]]:
        return (make_request(row) for _, row in part.iterrows())  # type: ignore[arg-type]

    return _ask(options, context, make, lambda line: line.model_dump())


def airflow(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The calls that Airflow's Anthropic hook makes (create_batch, stream_batch_results), rebuilt; Airflow itself does not run."""

    def make(part: "pd.DataFrame") -> Iterator[dict[str, Any]]:
        return (make_request({"id": row.id, "category": row.category, "text": row.text}) for row in part.itertuples())

    return _ask(options, context, make, lambda line: line.to_dict())


def _ask(
    options: argparse.Namespace,
    context: Context,
    make: Callable[["pd.DataFrame"], Iterator[dict[str, Any]]],
    read: Callable[[Any], Any],
) -> Callable[[], Facts]:
    """Ask with the SDK alone: requests and results as somebody makes and reads them."""
    import anthropic
    import pandas as pd

    client = anthropic.Anthropic(api_key="bench", base_url=context["url"], max_retries=0)
    client.messages.batches.list(limit=1)
    target = _folder(context) / "out.parquet"

    def work() -> Facts:
        source = pd.read_parquet(context["source"])
        rows: list[dict[str, Any]] = []
        for start in range(0, len(source), BODY_REQUESTS):
            batch = client.messages.batches.create(requests=list(make(source.iloc[start : start + BODY_REQUESTS])))  # type: ignore[arg-type]
            while client.messages.batches.retrieve(batch.id).processing_status != "ended":
                pass
            rows += [read_line(read(line)) for line in client.messages.batches.results(batch.id)]
        source[["id"]].merge(pd.DataFrame(rows), on="id", how="left").to_parquet(target)
        assert len(rows) == options.rows, len(rows)
        return None

    return work


def read_line(line: dict[str, Any]) -> dict[str, Any]:
    """Return a result as a row of the output."""
    row = {"id": line["custom_id"], "status": line["result"]["type"]}
    if row["status"] == "succeeded":
        message = line["result"]["message"]
        row |= json.loads(message["content"][0]["text"])
        row |= {"input_tokens": message["usage"]["input_tokens"], "output_tokens": message["usage"]["output_tokens"]}
    return row


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Compare by wall time: how long a person waits. CPU beside it, the worker's included."""
    found = {}
    for run in (run for runs in result.runs.values() for run in runs):
        run["all_cpu_s"] = run["cpu_s"] + run.get("worker_cpu_s", 0.0)
    if "product" in result:
        found["rows_per_s"] = Figure(value=options.rows / result.median("product", "wall_s"), unit="rows/s")
    for case in ("naive", "airflow"):
        if case in result and "product" in result:
            found[f"against_{case}"] = Figure(value=result.ratio(case, "product", "wall_s"), unit="x")
            found[f"against_{case}_cpu"] = Figure(value=result.ratio(case, "product", "all_cpu_s"), unit="x")
    return found


def _folder(context: Context) -> Path:
    return Path(tempfile.mkdtemp(dir=context["folder"]))


BENCH = Bench(name="end_to_end", cases={"product": product, "naive": naive, "airflow": airflow}, figures=figures, setup=setup)

if __name__ == "__main__":
    main(BENCH)
