"""`status`, `cancel`, `stop`: what a root's records say of its runs, and how to end what goes on."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from claude_batch_dagster.cli.canceling import cancel_showing, describe_canceled
from claude_batch_dagster.cli.interruption import Signals
from claude_batch_dagster.cli.options import GroupedCommand, root_option, simulate_option
from claude_batch_dagster.cli.reach import Place, Reach, find_place
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.cli.runs import Records, RunView, describe_run, run_rows
from claude_batch_dagster.cli.wording import SIMULATED, command, count
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.verbs.endpoint import SIMULATED_FOLDER, SIMULATOR, default_root, is_simulated, name_root, root_for

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import LogEntry

SHOWN_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run and the root that it is in."""

    root: str
    entry: "LogEntry"


@click.command(
    cls=GroupedCommand,
    short_help="Show the runs of a root, or one run.",
    examples=(("all runs", "claude-batch status"), ("one of them", "claude-batch status r42")),
)
@click.argument("run", required=False, help="r42, or a run_id; without it all runs are listed.")
@root_option
@simulate_option
def status(run: str | None, root: str | None, simulate: bool) -> None:
    """Show the runs of a root, or one RUN (r42, or its run_id) with its batches and what it waits for.

    Reads the root's records, so it works without Temporal; where a worker answers, progress is live. Starts nothing.
    """
    if run is not None:
        found = find_run(root, run, simulate=simulate)
        click.echo("\n".join(describe_run(Records(found.root).view(found.entry))))
        return
    shown = False
    for candidate in candidate_roots(root, simulate=simulate):
        views = view_runs(candidate)
        if views:
            shown = True
            show_runs(candidate, views)
    if not shown:
        click.echo(f"Root {absolute_uri(root or default_root(os.environ))}\nNo run yet. Start one: claude-batch run --help")


@click.command(
    cls=GroupedCommand, short_help="Cancel a run and keep what it answered.", examples=(("cancel a run", "claude-batch cancel r42"),)
)
@click.argument("run", help="r42, or its run_id.")
@root_option
@simulate_option
@click.pass_obj
def cancel(known: Known, /, run: str, root: str | None, simulate: bool) -> int:
    """Cancel RUN (r42, or its run_id) and wait until it is settled.

    Its batches are canceled; what they answered until then is collected, kept and paid for. Nothing more is sent.
    """
    from claude_batch_dagster.storage.plans import read_done
    from claude_batch_dagster.storage.store import Store

    found = find_run(root, run, simulate=simulate)
    label = found.entry.label
    if (over := read_done(Store(found.root), found.entry.number)) is not None:
        click.echo(f"Batch run {label} had ended before ({over.outcome}): there is nothing to cancel.")
        return 0
    reach = Reach(place_of(found), lambda line: click.echo(line, err=True))
    where = command("status", found.root, label)
    with Signals(lambda: (f"\nLeft at once. What becomes of it: {where}\n", "")), reach as connection:
        try:
            done = cancel_showing(Store(found.root), found.entry, connection)
        except KeyboardInterrupt:
            if reach.stack is not None:
                reach.stack.stay()
            known.interruption_told = True
            click.echo(f"\nInterrupted. What was begun goes on in the background: {where}. The same command again makes sure.", err=True)
            raise
    click.echo(describe_canceled(found.entry, done))
    return 0


@click.command(cls=GroupedCommand, short_help="End the embedded stack of a root.")
@root_option
@simulate_option
def stop(root: str | None, simulate: bool) -> None:
    """End a root's embedded stack: its Temporal server, worker and simulator.

    Open runs stay open and lose nothing: the next command that needs the stack goes on with them.
    """
    from claude_batch_dagster.embedded import stop_stack

    ended = 0
    for candidate in candidate_roots(root, simulate=simulate):
        clients = stop_stack(candidate)
        if clients is not None:
            ended += 1
            used = f"; {count(clients, 'client')} used it" if clients else ""
            click.echo(f"The embedded stack of {candidate} is ended{used}.")
    if not ended:
        click.echo(f"No embedded stack runs for {absolute_uri(root or default_root(os.environ))}.")


def candidate_roots(root: str | None, *, simulate: bool) -> list[str]:
    """Return where a person's runs may be: the real root and, below it, the simulated one; only that where simulation was asked for."""
    base = absolute_uri(root or default_root(os.environ))
    simulated = root_for(base, SIMULATOR)
    return [simulated] if simulate or is_simulated(os.environ) or base == simulated else [base, simulated]


def find_run(root: str | None, run: str, *, simulate: bool) -> FoundRun:
    """Find a run by what a person types; the real root goes first.

    Raises:
        UsageError: Terminal. There is no such run.
    """
    from claude_batch_dagster.storage.plans import find_entry
    from claude_batch_dagster.storage.store import Store

    roots = candidate_roots(root, simulate=simulate)
    for candidate in roots:
        entry = find_entry(Store(candidate), run)
        if entry is not None:
            return FoundRun(root=candidate, entry=entry)
    raise UsageError(f"There is no batch run {run} in {' or '.join(roots)}. List the runs: {command('status', roots[0])}")


def place_of(found: FoundRun) -> Place:
    """Return where a known run works: its own endpoint decides, a simulated one needs no key."""
    base = found.root.removesuffix(f"/{SIMULATED_FOLDER}")
    if found.entry.endpoint == SIMULATOR:
        simulate = is_simulated(os.environ) or not os.environ.get("ANTHROPIC_BASE_URL")
        return Place(base=base, root=found.root, endpoint=SIMULATOR, simulate=simulate)
    place = find_place(base, simulate=False, needs_key=True)
    return Place(base=base, root=found.root, endpoint=place.endpoint, simulate=False)


def view_runs(root: str) -> list[RunView]:
    """Return the newest runs of a root, newest first."""
    from claude_batch_dagster.storage.plans import read_entries
    from claude_batch_dagster.storage.store import Store

    records = Records(root)
    return [records.view(entry, in_detail=False) for entry in read_entries(Store(root), newest=SHOWN_RUNS)]


def show_runs(root: str, views: list[RunView]) -> None:
    """Write a table of runs."""
    click.echo(f"Root {root}" + (f"   {SIMULATED}" if any(view.entry.endpoint == SIMULATOR for view in views) else ""))
    rows = run_rows(views)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for view in views:
        for question in view.questions:
            click.echo(f"{view.entry.label} waits for an answer: {name_root(question, root)}")
    for warning in root_warnings(root):
        click.echo(warning)
    click.echo("")


def root_warnings(root: str) -> list[str]:
    """Return what a person should know of a root besides its runs: results that are about to go, batches that came too late."""
    from claude_batch_dagster.storage.recovered import list_unstored_strays
    from claude_batch_dagster.storage.store import Store
    from claude_batch_dagster.verbs.aging import warn_of_aging

    store = Store(root)
    lines = warn_of_aging(store)
    if strays := list_unstored_strays(store):
        shown = ", ".join(stray.batch_id for stray in strays[:3]) + (", ..." if len(strays) > 3 else "")
        what = "A batch" if len(strays) == 1 else f"{len(strays):,} batches"
        lines.append(
            f"{what} came after its shard was given up, and is paid for ({shown}). Harvest with the run's options: claude-batch recover"
        )
    return lines
