"""Ctrl-C, a closed terminal, SIGTERM: the first one stops the waiting, never the work; a second Ctrl-C ends the process at once.

working ─▶ interrupted ─▶ asking (a terminal, Ctrl-C) ─▶ detaching | canceling ─▶ left
"""

import asyncio
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Self

import click

from claude_batch_dagster.cli.canceling import cancel_showing, describe_canceled
from claude_batch_dagster.cli.progress import ProgressView
from claude_batch_dagster.cli.reach import Reach
from claude_batch_dagster.cli.report import Known, follow_up
from claude_batch_dagster.cli.wording import batches, command, count
from claude_batch_dagster.core.errors import ClaudeBatchError

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import LogEntry
    from claude_batch_dagster.storage.store import Store
    from claude_batch_dagster.verbs.connection import Connection

INTERRUPTED = 130
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Wrappers (make, a package manager) hand on the Ctrl-C that the terminal has sent already.
SAME_PRESS_S = 0.3
START_TIMEOUT_S = 5.0


class Signals:
    """Turns the first signal into KeyboardInterrupt; a second Ctrl-C ends the process. Use as a context manager.

    Args:
        last_words: Returns what standard error and standard output are told by a second Ctrl-C.
    """

    def __init__(self, last_words: Callable[[], tuple[str, str]]) -> None:
        self.number: int | None = None
        self._last_words = last_words
        self._asking = False
        self._came_s = 0.0
        self._former: dict[int, object] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        """Take the signals over, but those that `nohup` or a background shell has silenced."""
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
        for number in NUMBERS:
            former = signal.getsignal(number)
            if former != signal.SIG_IGN:
                self._former[number] = former
                signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ask(self, question: str) -> str:
        """Return what a person types, empty where the input ends or another signal comes."""
        self._asking = True
        try:
            return ask_line(question)
        except (KeyboardInterrupt, OSError):
            return ""
        finally:
            self._asking = False

    def has_lost_terminal(self, error: OSError) -> bool:
        """Tell whether a write failed because the terminal was closed; then nothing is written to it any more."""
        if error.errno != errno.EIO or not self._terminals:
            return False
        self.number = self.number or signal.SIGHUP
        let_go_of(self._terminals)
        return True

    def _take(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            let_go_of(self._terminals)
        now_s = time.monotonic()
        if self.number is None:
            self.number, self._came_s = number, now_s
            raise KeyboardInterrupt
        if number == signal.SIGINT and now_s - self._came_s >= SAME_PRESS_S:
            told, answered = self._last_words()
            os.write(2, told.encode())
            os.write(1, answered.encode())
            os._exit(INTERRUPTED)
        if self._asking and number != signal.SIGINT:
            raise KeyboardInterrupt


def ask_line(question: str) -> str:
    """Return the line that a person types, in lower case; empty where the input ends.

    Not input() nor click's prompts: their line editor swallows Ctrl-C while it waits, and leaves the terminal in disorder when killed.
    """
    click.echo(question, err=True, nl=False)
    return sys.stdin.readline().strip().lower()


def let_go_of(terminals: Sequence[int]) -> None:
    """Let writes to a terminal that was closed end nowhere, instead of in an error each."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)


def leave_run(signals: Signals, view: ProgressView, reach: Reach, connection: "Connection", known: Known) -> None:
    """Say, and do, what becomes of the work of an interrupted `run`: detach, or cancel where a person at a terminal wants that."""
    from claude_batch_dagster.storage.plans import read_done
    from claude_batch_dagster.storage.store import Store

    entry, latest = known.entry, view.latest
    waited_for = latest.run if entry is None and latest is not None and latest.phase == "wait" else None
    if reach.stack is not None and (entry is not None or waited_for is not None):
        # Before anything else: from here on even a second Ctrl-C leaves the worker at its work.
        reach.stack.stay()
    view.close()
    known.interruption_told = True
    _say("")
    store = Store(known.root or "")
    if waited_for is not None:
        _say(_leaves_others_run(store, waited_for))
        return
    if entry is None:
        _say(_nothing_sent(latest.phase if latest else "plan"))
        return
    if read_done(store, entry.number) is not None:
        _say(f"Interrupted. Batch run {entry.label} has ended; its output was not written yet.")
        _say("The same command again writes it, and asks nothing twice.")
    elif _wants_to_cancel(signals, entry):
        _say(f"Canceling batch run {entry.label}. A second Ctrl-C leaves; the cancellation goes on if it was sent.")
        done = cancel_showing(store, entry, connection)
        _say(f"{describe_canceled(entry, done)} The output was not written; the same command again asks what is missing.")
    else:
        _detach(store, entry, reach, connection)


def last_words(known: Known) -> str:
    """Return what a person is told who does not wait: no IO is done for it."""
    if known.entry is None:
        return "\nLeft at once. Nothing was sent.\n"
    label = known.entry.label
    where = command("status", known.root or "", label)
    return f"\nLeft at once. Batch run {label} loses nothing: {where}. The same command again waits for it and writes the output.\n"


def _nothing_sent(phase: str) -> str:
    if phase == "publish":
        return "Interrupted while the output was written. The same command again writes it, and asks nothing twice."
    return "Interrupted. Nothing was sent."


def _leaves_others_run(store: "Store", run: str) -> str:
    from claude_batch_dagster.storage.plans import find_entry

    entry = find_entry(store, run)
    whose = f"the process {entry.owner.pid} on {entry.owner.host}" if entry else "another command"
    lines = [
        f"Interrupted. This command sent nothing: it waited for batch run {run}, which {whose} began. That run goes on and is not canceled.",
        "The same command again waits for it and writes this output.",
        *follow_up(run, store.uri),
    ]
    return "\n".join(lines)


def _wants_to_cancel(signals: Signals, entry: "LogEntry") -> bool:
    if signals.number != signal.SIGINT or not _sits_at_terminal():
        return False
    _say(f"Interrupted. Batch run {entry.label} is out: {count(entry.keys.count, 'request')} in {batches(len(entry.shards))}.")
    _say("  d  detach: it goes on in the background; the same command again waits for it and writes the output")
    _say("  c  cancel: its batches are canceled; what they answered until then is kept, and paid for")
    while True:
        answer = signals.ask("Detach or cancel? [d/c, Enter = d; Ctrl-C leaves at once] ")
        if answer in ("", "d", "detach"):
            return False
        if answer in ("c", "cancel"):
            return True


def _sits_at_terminal() -> bool:
    """Tell whether a person can be asked: a process in the background that reads from its terminal would be stopped."""
    return sys.stdin.isatty() and sys.stderr.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


def _detach(store: "Store", entry: "LogEntry", reach: Reach, connection: "Connection") -> None:
    from claude_batch_dagster.core.submission import Mode
    from claude_batch_dagster.verbs.connection import connect
    from claude_batch_dagster.verbs.execute import start_run

    async def start() -> None:
        # The interruption may have come between the admission and the start; a run that goes already is left alone.
        await start_run(await connect(connection, START_TIMEOUT_S), connection, store, entry, Mode.RUN)

    try:
        asyncio.run(start())
    except ClaudeBatchError as error:
        _say(f"Detached, but whether batch run {entry.label} goes on is not known: {error} The same command again settles it.")
        return
    _say(f"Detached. Batch run {entry.label} goes on in the background; the same command again waits for it and writes the output.")
    if reach.stack is not None:
        _say("The local Temporal server and worker stay until it has ended.")
    for line in follow_up(entry.label, store.uri):
        _say(line)


def _say(line: str) -> None:
    click.echo(line, err=True)
