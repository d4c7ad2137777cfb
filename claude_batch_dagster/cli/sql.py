"""`sql`: outputs, answers, failures, costs and runs, asked in SQL."""

import csv
import json
import math
import os
import sys
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

import click

from claude_batch_dagster.cli.options import GroupedCommand, option, root_option, simulate_option
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.core.errors import ClaudeBatchError, RootError, UsageError
from claude_batch_dagster.verbs.endpoint import SIMULATOR, default_root, is_simulated, root_for

if TYPE_CHECKING:
    from rich.table import Table

    from claude_batch_dagster.verbs.views import Found, Views

SHOWN_ROWS = 200
WIDE = 100_000
PROMPT, MORE = "sql> ", "...> "
HELP = "End a statement with `;`. `.views` lists the views with their columns, `.exit` or Ctrl-D leaves."


@click.command(
    cls=GroupedCommand,
    short_help="Ask outputs, answers, costs and runs in SQL.",
    examples=(
        ("what is there", "claude-batch sql --views"),
        ("why rows failed", 'claude-batch sql "FROM failures"'),
        ("what each day cost", 'claude-batch sql "SELECT day, sum(cost_usd) FROM cost_by_day GROUP BY day ORDER BY day"'),
        ("an output of `run --output`", "claude-batch sql --output out/ 'SELECT status, count(*) FROM out GROUP BY status'"),
        ("for a spreadsheet", "claude-batch sql --csv 'FROM review_labels' > labels.csv"),
    ),
)
@click.argument("query", required=False, help="One statement that reads. Without it: a prompt at a terminal, else standard input.")
@root_option
@option(
    "Where",
    "--output",
    "outputs",
    multiple=True,
    metavar="URI",
    help="Folder of an output, or of several, beside those below the root; repeat it for several.",
)
@simulate_option
@option("How", "--views", "list_views", is_flag=True, help="List the views with their columns and what they mean.")
@option("How", "--csv", "as_csv", is_flag=True, help="Print all rows as CSV.")
@option("How", "--json", "as_json", is_flag=True, help="Print one JSON object, also on failure.")
@click.pass_obj
def sql(
    known: Known,
    /,
    query: str | None,
    root: str | None,
    outputs: tuple[str, ...],
    *,
    simulate: bool,
    list_views: bool,
    as_csv: bool,
    as_json: bool,
) -> int:
    """Ask about what is in a root and its outputs, in DuckDB's SQL.

    Views: one for each output, `answers`, `responses`, `failures`, `cost_by_day`, `batches` and `runs`. Reads only: nothing can be written
    through it. Needs DuckDB: pip install 'claude-batch-dagster[duckdb]'.
    """
    from claude_batch_dagster.verbs.views import open_views

    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other. Nothing was read. Choose one.")
    known.root = _find_root(root, simulate=simulate)
    if not outputs:
        _refuse_no_root(known.root)
    with open_views(known.root, outputs) as views:
        if list_views:
            _list_views(views, as_json=as_json)
            return 0
        if query is None and sys.stdin.isatty():
            return _prompt(views)
        text = sys.stdin.read() if query is None else query
        if not text.strip().rstrip(";"):
            raise UsageError(
                "There is no statement. Nothing was read. Give one: claude-batch sql 'FROM failures'. --views lists what there is."
            )
        found = views.query(text)
        if as_csv:
            _print_csv(found)
        elif as_json:
            rows = [[_jsonable(value) for value in row] for row in found.rows]
            click.echo(json.dumps({"columns": found.columns, "rows": rows, "exit_code": 0, "error": None}, ensure_ascii=False))
        else:
            _print_table(found)
    return 0


def _find_root(root: str | None, *, simulate: bool) -> str:
    """Return the root with the records: where there are only simulated ones, they are meant."""
    from claude_batch_dagster.storage.plans import read_root
    from claude_batch_dagster.storage.store import Store, absolute_uri

    base = absolute_uri(root or default_root(os.environ))
    simulated = root_for(base, SIMULATOR)
    if simulate or is_simulated(os.environ) or base == simulated:
        return simulated
    if read_root(Store(base)) is None and read_root(Store(simulated)) is not None:
        click.echo(f"Simulated answers, of {simulated}: {base} holds no others.", err=True)
        return simulated
    return base


def _refuse_no_root(root: str) -> None:
    from claude_batch_dagster.storage.plans import read_root
    from claude_batch_dagster.storage.store import Store

    if read_root(Store(root)) is None:
        raise RootError(
            f"There is no root at {root}: it has no root.json, so nothing was ever asked there. Nothing was read. Name another one with --root, or an "
            "output with --output."
        )


def _print_csv(found: "Found") -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(found.columns)
    writer.writerows([_shown(value) for value in row] for row in found.rows)


def _print_table(found: "Found") -> None:
    rows = list(islice(found.rows, SHOWN_ROWS + 1))
    table = _open_table(*found.columns)
    for row in rows[:SHOWN_ROWS]:
        table.add_row(*(_escape(_rounded(value)) for value in row))
    _print(table)
    if len(rows) > SHOWN_ROWS:
        click.echo(f"The first {SHOWN_ROWS} rows; --csv prints all of them.", err=True)


def _list_views(views: "Views", *, as_json: bool = False) -> None:
    listed = views.list()
    if as_json:
        found = [
            {
                "name": view.name,
                "description": view.description,
                "columns": [{"name": name, "type": kind, "description": text} for name, kind, text in view.columns],
            }
            for view in listed
        ]
        click.echo(json.dumps({"views": found, "exit_code": 0, "error": None}, ensure_ascii=False))
        return
    for view in listed:
        click.echo(f"{click.style(view.name, bold=True)}: {view.description}")
        width = max(len(name) for name, _, _ in view.columns)
        for name, kind, text in view.columns:
            click.echo(f"  {name:<{width}}  {kind.lower()}{'  ' + text if text else ''}")


def _prompt(views: "Views") -> int:
    """Carry out what is typed, until the end of input; a mistake ends the statement, not the prompt."""
    with suppress(ImportError):
        # Arrows and history in `input`.
        import readline  # noqa: F401
    click.echo(f"{', '.join(view.name for view in views.list())}\n{HELP}")
    held: list[str] = []
    while True:
        try:
            line = input(MORE if held else PROMPT)
        except EOFError:
            click.echo()
            return 0
        except KeyboardInterrupt:
            click.echo()
            held.clear()
            continue
        if not held and line.strip() in (".exit", ".quit", "exit", "quit"):
            return 0
        if not held and line.strip() == ".views":
            _list_views(views)
        elif not held and line.strip().startswith("."):
            click.echo(HELP)
        elif line.strip() or held:
            held.append(line)
            if line.rstrip().endswith(";"):
                _answer(views, "\n".join(held))
                held.clear()


def _answer(views: "Views", text: str) -> None:
    try:
        _print_table(views.query(text))
    except ClaudeBatchError as error:
        click.echo(str(error), err=True)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)


def _open_table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(_escape(column), overflow="fold")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    # Elsewhere than at a terminal nothing is wrapped: programs read lines.
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(_jsonable(value), ensure_ascii=False)
    return value.isoformat(sep=" ") if isinstance(value, datetime) else value.hex() if isinstance(value, bytes) else str(value)


def _rounded(value: object) -> str:
    # A sum of floats has digits that mean nothing; --csv and --json have them.
    return f"{value:.12g}" if isinstance(value, float) else _shown(value)


def _jsonable(value: object) -> object:
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        # JSON has no other.
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_jsonable(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _jsonable(one) for name, one in value.items()}
    return str(value) if isinstance(value, (UUID, timedelta)) else value
