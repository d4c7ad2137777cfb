"""Publish: source rows joined with their answers out of a full store. All rows, and a day's; before and after compaction."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from bench.data import FILE_ROWS, make_source, source_files
from bench.job import make_job
from bench.measure import Bench, Context, Facts, Figure, Result, main
from bench.responses import answer_source, fill_store, link_root, maintain_root
from claude_batch_dagster.verbs.plan import plan_job
from claude_batch_dagster.verbs.publish import publish_job

DAY = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the size of the store."""
    parser.add_argument("--stored", type=int, help="answers in the store; ten times the rows unless given")


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Fill a large store and one of a file a day, the latter also compacted; cut a day out of the source."""
    source = make_source(options.rows, options.work)
    full = fill_store(options.work, options.rows, int(options.stored or 10 * options.rows) - options.rows)
    daily = answer_source(options.work, options.rows, batch_requests=_day_rows(options))
    with tempfile.TemporaryDirectory(prefix="publish-", dir=options.work) as folder:
        day = Path(folder) / "day.parquet"
        pq.write_table(pq.read_table(source_files(source)[0]).slice(min(options.rows, FILE_ROWS) // 2, _day_rows(options)), day)
        roots = {"full": link_root(full, Path(folder) / "full"), "daily": link_root(daily, Path(folder) / "daily")}
        for root in roots.values():
            # A day is published right after its own plan, which keeps its keys.
            plan_job(make_job(day, root))
        roots["compacted"] = link_root(roots["daily"], Path(folder) / "compacted")
        maintain_root(roots["compacted"])
        yield {"source": str(source), "day": str(day)} | {name: str(root) for name, root in roots.items()}


def all_rows(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """All rows of the source, out of ten times as many answers."""
    return _publish(context, "source", "full", options.rows)


def day(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """One hundredth of the rows, neighbours in the store."""
    return _publish(context, "day", "full", _day_rows(options))


def daily(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """A day out of a store of one hundred days' files, as their runs left it."""
    return _publish(context, "day", "daily", _day_rows(options))


def daily_compacted(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The same after compaction."""
    return _publish(context, "day", "compacted", _day_rows(options))


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Give CPU seconds and memory, and what compaction changed."""
    found = {}
    if "all" in result:
        found["all_cpu_s"] = Figure(value=result.median("all", "cpu_s"), unit="s")
        found["all_peak_mb"] = Figure(value=result.median("all", "peak_mb"), unit="MB")
    if "day" in result:
        found["day_cpu_s"] = Figure(value=result.median("day", "cpu_s"), unit="s")
    if "daily" in result and "daily_compacted" in result:
        found["day_after_compaction"] = Figure(value=100 * result.ratio("daily_compacted", "daily", "cpu_s"), unit="%")
    return found


def _publish(context: Context, source: str, root: str, rows: int) -> Callable[[], Facts]:
    job = make_job(Path(context[source]), Path(context[root]), replace=True)

    def work() -> Facts:
        written = publish_job(job, [None], run="r1").outputs[0].written
        assert (sum(written.rows.values()), written.rows["pending"]) == (rows, 0), written.rows
        return {"rows": rows, "errored": written.rows["errored"]}

    return work


def _day_rows(options: argparse.Namespace) -> int:
    return max(1, int(options.rows) // DAY)


BENCH = Bench(
    name="publish",
    cases={"all": all_rows, "day": day, "daily": daily, "daily_compacted": daily_compacted},
    figures=figures,
    setup=setup,
    arguments=add_arguments,
)

if __name__ == "__main__":
    main(BENCH)
