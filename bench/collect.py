"""Collect: an ended batch to Parquet. The product's collector against the SDK's `results()`, a pandas merge and `to_parquet`."""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data import make_source
from bench.job import load_prices, make_job, make_request
from bench.measure import Bench, Context, Facts, Figure, Result, main
from bench.responses import link_root
from bench.server import count_refused, run_server
from bench.worker import admit_run, ignore, make_collector, make_submitter, name_shard, open_batches, read_run
from claude_batch_dagster.core.contract import BatchInput
from claude_batch_dagster.storage.heap import keep_freed_memory
from claude_batch_dagster.verbs.publish import publish_job


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Run the server; submit one run of all rows by the product, and the same rows as the SDK's user does."""
    import anthropic
    import pandas as pd

    source = make_source(options.rows, options.work)
    with tempfile.TemporaryDirectory(prefix="collect-", dir=options.work) as folder, run_server() as server:
        submitted = Path(folder) / "submitted"
        entry = admit_run(options.work, options.rows, submitted)
        submitter = make_submitter(open_batches(server.url))
        ours = [submitter.submit(name_shard(submitted, entry, shard), ignore).batch_id for shard in range(len(entry.shards))]
        assert server.books()["requests"] == sum(shard.requests for shard in entry.shards), "the server missed requests"
        theirs = []
        if not options.only or "sdk" in options.only:
            requests = [make_request(row) for row in pd.read_parquet(source).to_dict("records")]  # type: ignore[arg-type]
            client = anthropic.Anthropic(api_key="bench", base_url=server.url, max_retries=0)
            for start in range(0, len(requests), 100_000):
                theirs.append(client.messages.batches.create(requests=requests[start : start + 100_000]).id)  # type: ignore[arg-type]
        yield {"source": str(source), "folder": folder, "url": server.url, "ours": ours, "theirs": theirs}


def product(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product: every batch from its results to the response store, verified and decoded."""
    return _collect(options, context, publish=False)


def product_published(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The same and the output joined with the source, in its order."""
    return _collect(options, context, publish=True)


def drain(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product's stream of the same results, and nothing done with it."""
    batches = open_batches(context["url"])
    keep_freed_memory()

    def work() -> Facts:
        size = 0
        for batch_id in context["ours"]:
            with batches.stream_results(batch_id) as chunks:
                size += sum(map(len, chunks))
        return {"mb": size / 1e6}

    return work


def sdk(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """What people write: results(), a list of dicts, a merge with the source, to_parquet."""
    import anthropic
    import pandas as pd

    client = anthropic.Anthropic(api_key="bench", base_url=context["url"], max_retries=0)
    client.messages.batches.list(limit=1)
    target = Path(tempfile.mkdtemp(dir=context["folder"])) / "out.parquet"

    def work() -> Facts:
        rows = []
        for batch_id in context["theirs"]:
            for line in client.messages.batches.results(batch_id):
                row: dict[str, object] = {"id": line.custom_id, "status": line.result.type}
                if line.result.type == "succeeded":
                    message = line.result.message
                    row |= json.loads(message.content[0].text)  # type: ignore[union-attr]
                    row |= {"input_tokens": message.usage.input_tokens, "output_tokens": message.usage.output_tokens}
                rows.append(row)
        source = pd.read_parquet(context["source"], columns=["id"])
        source.merge(pd.DataFrame(rows), on="id", how="left").to_parquet(target)
        return {"responses": len(rows)}

    return work


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Compare by CPU seconds."""
    found = {}
    if "product" in result:
        found["rows_per_s"] = Figure(value=options.rows / result.median("product", "wall_s"), unit="rows/s")
        found["over_start_mb"] = Figure(value=result.median("product", "over_start_mb"), unit="MB")
    if "product" in result and "drain" in result:
        beyond = result.median("product", "cpu_s") - result.median("drain", "cpu_s")
        found["cpu_beyond_network_s"] = Figure(value=100_000 / options.rows * beyond, unit="s per 100,000")
    for name, case in (("against_sdk", "product"), ("against_sdk_with_publish", "published")):
        if case in result and "sdk" in result:
            found[name] = Figure(value=result.ratio("sdk", case, "cpu_s"), unit="x")
    return found


def _collect(options: argparse.Namespace, context: Context, *, publish: bool) -> Callable[[], Facts]:
    folder = link_root(Path(context["folder"]) / "submitted", Path(tempfile.mkdtemp(dir=context["folder"])) / "own")
    entry = read_run(folder)
    batches = open_batches(context["url"])
    collector = make_collector(batches)
    load_prices()

    def work() -> Facts:
        outcomes: Counter[str] = Counter()
        for shard, batch_id in enumerate(context["ours"]):
            batch = BatchInput(root=str(folder / "root"), number=entry.number, run_id=entry.run_id, round=1, shard=shard, batch_id=batch_id)
            outcomes.update(collector.collect(batch, batches.get(batch_id), ignore).by_outcome)
        refused = sum(count_refused(shard.requests) for shard in entry.shards)
        assert outcomes == {"succeeded": entry.keys.count - refused, "errored": refused}, outcomes
        if publish:
            published = publish_job(make_job(Path(context["source"]), folder), [None], run="r1")
            rows = published.outputs[0].written.rows
            assert (sum(rows.values()), rows["pending"]) == (options.rows, 0), rows
        return {"responses": outcomes.total()}

    return work


BENCH = Bench(
    name="collect", cases={"product": product, "drain": drain, "sdk": sdk, "published": product_published}, figures=figures, setup=setup
)

if __name__ == "__main__":
    main(BENCH)
