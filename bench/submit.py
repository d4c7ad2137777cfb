"""Submit: staged requests to a created batch. The product's submitter against the SDK's `batches.create(requests=dicts)`."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data import make_source
from bench.job import make_request
from bench.measure import Bench, Context, Facts, Figure, Result, main
from bench.responses import link_root
from bench.server import run_server
from bench.worker import admit_run, ignore, make_submitter, name_shard, open_batches, read_run


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Run the server; admit one run of all rows, whose root each process copies."""
    source = make_source(options.rows, options.work)
    with tempfile.TemporaryDirectory(prefix="submit-", dir=options.work) as folder, run_server() as server:
        admit_run(options.work, options.rows, Path(folder) / "admitted")
        yield {"source": str(source), "folder": folder, "url": server.url}


def product(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product: every shard from its file to the record of its batch."""
    folder = link_root(Path(context["folder"]) / "admitted", Path(tempfile.mkdtemp(dir=context["folder"])) / "own")
    entry = read_run(folder)
    submitter = make_submitter(open_batches(context["url"]))

    def work() -> Facts:
        for shard in range(len(entry.shards)):
            assert submitter.submit(name_shard(folder, entry, shard), ignore).batch_id
        return {"requests": sum(shard.requests for shard in entry.shards)}

    return work


def sdk(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The SDK, the dicts made before; at most 100,000 requests a batch."""
    import anthropic
    import pandas as pd

    client = anthropic.Anthropic(api_key="bench", base_url=context["url"], max_retries=0)
    client.messages.batches.list(limit=1)
    requests = [make_request(row) for row in pd.read_parquet(context["source"]).to_dict("records")]  # type: ignore[arg-type]

    def work() -> Facts:
        for start in range(0, len(requests), 100_000):
            client.messages.batches.create(requests=requests[start : start + 100_000])  # type: ignore[arg-type]
        return {"requests": len(requests)}

    return work


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Compare by wall time: what a person waits for; client CPU beside it."""
    found = {}
    if "product" in result:
        found["over_idle_mb"] = Figure(value=result.median("product", "over_start_mb"), unit="MB")
        found["cpu_s"] = Figure(value=result.median("product", "cpu_s"), unit="s")
    if "product" in result and "sdk" in result:
        found["against_sdk"] = Figure(value=result.ratio("sdk", "product", "wall_s"), unit="x")
        found["against_sdk_cpu"] = Figure(value=result.ratio("sdk", "product", "cpu_s"), unit="x")
    return found


BENCH = Bench(name="submit", cases={"product": product, "sdk": sdk}, figures=figures, setup=setup)

if __name__ == "__main__":
    main(BENCH)
