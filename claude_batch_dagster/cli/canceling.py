"""Cancels a run and shows how far that is."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from claude_batch_dagster.cli.wording import NANO, batches, duration, usd
from claude_batch_dagster.core.submission import Accepted, Closed, Record

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import DoneRecord, LogEntry
    from claude_batch_dagster.storage.store import Store
    from claude_batch_dagster.verbs.connection import Connection

LOOK_EVERY_S = 1.0


def cancel_showing(store: "Store", entry: "LogEntry", connection: "Connection") -> "DoneRecord":
    """Cancel a run, wait until it is settled, and show how many of its batches have ended."""
    with _shown() as show:
        return asyncio.run(_cancel(store, entry, connection, show))


def describe_canceled(entry: "LogEntry", done: "DoneRecord") -> str:
    """Return what became of a canceled run, in one sentence."""
    answered = ", ".join(f"{number:,} {outcome}" for outcome, number in done.rows.items() if number) or "none"
    cost = usd(None if done.cost_nano_usd is None else done.cost_nano_usd / NANO)
    how = "is canceled" if done.outcome == "canceled" else f"is settled ({done.outcome})"
    return f"Batch run {entry.label} {how}: {batches(done.batches)}, requests: {answered}, cost {cost}."


async def _cancel(store: "Store", entry: "LogEntry", connection: "Connection", show: Callable[[str, str], None]) -> "DoneRecord":
    from claude_batch_dagster.storage.plans import list_submissions
    from claude_batch_dagster.verbs.execute import cancel_run

    began_s = time.monotonic()
    notes: list[str] = []
    canceling = asyncio.ensure_future(cancel_run(connection, store, entry, on_note=notes.append))
    try:
        while not canceling.done():
            submitted, ended = _count_batches(await asyncio.to_thread(list_submissions, store, entry.run_id))
            show(
                f"{entry.label}: canceling, {ended:,} of {batches(submitted)} ended. What was answered is collected; this can take minutes.",
                duration(time.monotonic() - began_s),
            )
            await asyncio.wait({canceling}, timeout=LOOK_EVERY_S)
            for note in notes:
                show(note, "")
            notes.clear()
        done = canceling.result()
    finally:
        canceling.cancel()
    assert done is not None, "without a timeout it waits to the end"
    return done


def _count_batches(submissions: dict[tuple[int, int], list[Record]]) -> tuple[int, int]:
    created = [records for records in submissions.values() if any(isinstance(record, Accepted) for record in records)]
    return len(created), sum(isinstance(records[-1], Closed) for records in created)


@contextmanager
def _shown() -> "Iterator[Callable[[str, str], None]]":
    """Give what shows a state and the time it has lasted: one moving line on a terminal, a line a change elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True, highlight=False).status("") as status:
            yield lambda text, elapsed: status.update(f"{text} {elapsed}")
        return
    said: set[str] = set()

    def say(text: str, elapsed: str) -> None:
        if text not in said:
            said.add(text)
            click.echo(text, err=True)

    yield say
