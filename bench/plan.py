"""Plan: Parquet to request bodies. The product against pandas, and against the same work without keys (p0)."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bench.data import make_source, source_files
from bench.job import BEFORE, BETWEEN, MAX_TOKENS, MODEL, SCHEMA, SYSTEM, TASK, load_prices, make_job, make_request, static_params
from bench.measure import Bench, Context, Facts, Figure, Result, main
from bench.responses import answer_source, link_root
from claude_batch_dagster import ClaudeTask
from claude_batch_dagster.verbs.plan import plan_job

BODY_REQUESTS = 100_000
PIECE_ROWS = 2_048


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Make the source, a copy of it that was written anew, and a root in which all of it is answered."""
    source = make_source(options.rows, options.work)
    with tempfile.TemporaryDirectory(prefix="plan-", dir=options.work) as folder:
        context = {"source": str(source), "folder": folder}
        if not options.only or {"unchanged", "rewritten"} & set(options.only):
            answered = link_root(answer_source(options.work, options.rows), Path(folder) / "answered")
            context |= {"answered": str(answered), "rewritten": str(_rewrite(source, Path(folder) / "rewritten"))}
        yield context


def product(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product on a fresh root."""
    return _plan(context, TASK, options.rows)


def product_callable(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product with a prompt that is a function of the row."""
    task = ClaudeTask(
        name="bench",
        model=MODEL,
        prompt=ask_about,
        version=1,
        prompt_columns=("category", "text"),
        system=SYSTEM,
        output=SCHEMA,
        max_tokens=MAX_TOKENS,
    )
    return _plan(context, task, options.rows)


def ask_about(row: Mapping[str, object]) -> str:
    """Return the prompt of a row: the template's text, with logic."""
    return f"{BEFORE}{row['category']}{BETWEEN}{row['text']}" if row["text"] else ""


def unchanged(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The product on a root in which every row is answered, the source untouched."""
    return _plan_answered(context, Path(context["source"]))


def rewritten(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The same, the source written anew with equal content: no digest of it is known."""
    return _plan_answered(context, Path(context["rewritten"]))


def iterrows(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """What people write: pandas iterrows, the SDK's types, json.dumps."""
    import pandas as pd
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
    from anthropic.types.messages.batch_create_params import Request

    def work() -> Facts:
        table = pd.read_parquet(context["source"], columns=["id", "category", "text"])
        for start in range(0, len(table), BODY_REQUESTS):
            requests = []
            for _, row in table.iloc[start : start + BODY_REQUESTS].iterrows():
                content = f"{BEFORE}{row['category']}{BETWEEN}{row['text']}"
                params = MessageCreateParamsNonStreaming(**static_params(), messages=[{"role": "user", "content": content}])  # type: ignore[typeddict-item]
                requests.append(Request(custom_id=row["id"], params=params))
            _write(context, start, json.dumps({"requests": requests}).encode())
        return None

    return work


def to_dict(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The better version of it: to_dict("records"), plain dicts, json.dumps."""
    import pandas as pd

    def work() -> Facts:
        table = pd.read_parquet(context["source"], columns=["id", "category", "text"])
        for start in range(0, len(table), BODY_REQUESTS):
            requests = [make_request(row) for row in table.iloc[start : start + BODY_REQUESTS].to_dict("records")]  # type: ignore[arg-type]
            _write(context, start, json.dumps({"requests": requests}).encode())
        return None

    return work


def p0(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """The prototype without keys: static parts escaped once, orjson for each value, pieces joined, bodies spooled."""
    import orjson

    def escape(text: str) -> bytes:
        return orjson.dumps(text)[1:-1]

    head = orjson.dumps(static_params())[:-1] + b',"messages":[{"role":"user","content":"' + escape(BEFORE)
    between, tail = escape(BETWEEN), b'"}]}}'

    def work() -> Facts:
        body = 0
        rows = 0
        spool = _open(context, body)
        for file in source_files(Path(context["source"])):
            opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            for batch in opened.iter_batches(PIECE_ROWS, columns=["id", "category", "text"], use_threads=False):
                parts: list[bytes] = []
                for number, category, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    parts += (b',\n{"custom_id":"', number.encode(), b'","params":', head, escape(category), between, escape(text), tail)
                if rows + batch.num_rows > BODY_REQUESTS:
                    spool.close()
                    body, rows = body + 1, 0
                    spool = _open(context, body)
                spool.write(b"".join(parts))
                rows += batch.num_rows
        spool.close()
        return None

    return work


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Compare by CPU seconds, the steadier figure; with p0 also by time, since the product hashes and writes on the second core."""
    found = {"rows_per_s": Figure(value=options.rows / result.median("product", "wall_s"), unit="rows/s")} if "product" in result else {}
    for name, case, against, measure, unit, scale in (
        ("against_iterrows", "iterrows", "product", "cpu_s", "x", 1),
        ("against_to_dict", "to_dict", "product", "cpu_s", "x", 1),
        ("share_of_p0", "p0", "product", "wall_s", "%", 100),
        ("share_of_p0_cpu", "p0", "product", "cpu_s", "%", 100),
        ("callable_of_simple", "product", "callable", "cpu_s", "%", 100),
        ("unchanged", "unchanged", "product", "cpu_s", "%", 100),
        ("rewritten", "rewritten", "product", "cpu_s", "%", 100),
    ):
        if case in result and against in result:
            found[name] = Figure(value=scale * result.ratio(case, against, measure), unit=unit)
    return found


def _plan(context: Context, task: ClaudeTask, rows: int) -> Callable[[], Facts]:
    folder = Path(tempfile.mkdtemp(dir=context["folder"]))
    job = make_job(Path(context["source"]), folder, task)
    load_prices()

    def work() -> Facts:
        plan = plan_job(job)
        assert plan.total.rows == rows, plan.total
        return {"requests": plan.total.asked, "shards": len(plan.shards)}

    return work


def _plan_answered(context: Context, source: Path) -> Callable[[], Facts]:
    folder = Path(context["answered"])
    job = make_job(source, folder)
    load_prices()
    keys = folder / "root" / "keys"
    kept = set(keys.iterdir())

    def work() -> Facts:
        plan = plan_job(job)
        # What the rewritten file's rendering kept must not make the next round faster.
        for path in set(keys.iterdir()) - kept:
            path.unlink()
        assert (plan.total.asked, plan.shards) == (0, ()), plan.total
        return {"requests": plan.total.asked}

    return work


def _rewrite(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source_files(source):
        opened = pq.ParquetFile(file)
        with pq.ParquetWriter(target / file.name, opened.schema_arrow, compression="snappy") as writer:
            for batch in opened.iter_batches(50_000):
                writer.write_batch(batch)
    return target


def _open(context: Context, number: int) -> Any:
    file = (Path(context["folder"]) / f"body-{number}").open("wb", buffering=0)
    file.write(b'{"requests":[')
    return file


def _write(context: Context, number: int, body: bytes) -> None:
    (Path(context["folder"]) / f"body-{number}").write_bytes(body)


BENCH = Bench(
    name="plan",
    cases={
        "product": product,
        "p0": p0,
        "to_dict": to_dict,
        "iterrows": iterrows,
        "callable": product_callable,
        "unchanged": unchanged,
        "rewritten": rewritten,
    },
    figures=figures,
    setup=setup,
)

if __name__ == "__main__":
    main(BENCH)
