"""Lookup: which of so many keys are answered already, among the answers of a full store. Opened as the product's plan opens it."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.job import ENDPOINT, TASK
from bench.measure import Bench, Context, Facts, Figure, Result, main
from bench.responses import fill_store, other_keys

# From where the plan has it, wherever that is.
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.store import Store

FEW = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the size of the store."""
    parser.add_argument("--stored", type=int, help="answers in the store; ten times the rows unless given")


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Fill the store: a tenth of it answers the source."""
    yield {"folder": str(fill_store(options.work, options.rows, _stored(options) - options.rows))}


def all_keys(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """As many keys as the source has rows, half of them answered."""
    return _look_up(options, Path(context["folder"]), options.rows)


def few_keys(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """One hundredth of them: a day's rows."""
    return _look_up(options, Path(context["folder"]), max(2, options.rows // FEW))


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Give seconds of CPU: the store is opened, the keys are found, the process ends."""
    found = {}
    for case in ("all", "few"):
        if case in result:
            found[f"{case}_cpu_s"] = Figure(value=result.median(case, "cpu_s"), unit="s")
    if "all" in result:
        if result.median("all", "index_bytes"):
            found["disk_per_key"] = Figure(value=result.median("all", "index_bytes") / _stored(options), unit="bytes")
        found["memory_per_key"] = Figure(value=result.median("all", "over_start_mb") * (1 << 20) / _stored(options), unit="bytes")
    return found


def _look_up(options: argparse.Namespace, folder: Path, count: int) -> Callable[[], Facts]:
    store = Store(str(folder / "root"))
    answered = np.load(folder / "keys.npy")[: count // 2]
    keys = np.concatenate([answered, other_keys(count - len(answered), 1 << 40)])
    keys = keys[np.random.default_rng(0).permutation(len(keys))]
    index = folder / "root" / "index"

    def work() -> Facts:
        final = int(Answers(store, ENDPOINT, TASK.task_key).final(keys).sum())
        assert final == len(answered), (final, len(answered))
        return {"keys": count, "index_bytes": sum(file.stat().st_size for file in index.rglob("*") if file.is_file())}

    return work


def _stored(options: argparse.Namespace) -> int:
    return int(options.stored or 10 * options.rows)


BENCH = Bench(name="lookup", cases={"all": all_keys, "few": few_keys}, figures=figures, setup=setup, arguments=add_arguments)

if __name__ == "__main__":
    main(BENCH)
