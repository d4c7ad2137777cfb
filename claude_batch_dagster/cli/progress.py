"""What a run shows while it goes: a live block on a terminal, a line per change elsewhere. Always on standard error."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from claude_batch_dagster.cli.wording import USUAL_DURATION, count, duration, usd

if TYPE_CHECKING:
    from rich.console import RenderableType

    from claude_batch_dagster.verbs.progress import JobProgress

LINE_EVERY_S = 5.0


class ProgressView(Protocol):
    """Shows progress until it is closed."""

    latest: "JobProgress | None"

    def __call__(self, progress: "JobProgress") -> None:
        """Show how far the run is."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Show nothing more."""


def open_progress(*, simulated: bool, stream: TextIO | None = None) -> ProgressView:
    """Return the live view on a terminal, plain lines elsewhere."""
    stream = stream or sys.stderr
    return LiveProgress(simulated=simulated) if stream.isatty() else PlainProgress(stream)


class PlainProgress:
    """One line per change, at most one every few seconds; messages and questions at once.

    Args:
        stream: Where the lines go.
        clock: Monotonic seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest: JobProgress | None = None
        self._stream = stream
        self._clock = clock
        self._said: str | None = None
        self._said_s = -LINE_EVERY_S
        self._phase: str | None = None
        self._held_line: str | None = None
        self._asides: set[str] = set()

    def __call__(self, progress: "JobProgress") -> None:
        """Write a line where something changed."""
        self.latest = progress
        for aside in filter(None, (progress.message, progress.question and f"waits for an answer: {progress.question}")):
            if aside not in self._asides:
                self._asides.add(aside)
                self.say(f"{progress.run}: {aside}" if progress.run else aside)
        state = " ".join(filter(None, (f"{progress.run}:" if progress.run else None, describe_phase(progress))))
        if state == self._said:
            self._held_line = None
            return
        line = state if progress.phase != "wait" else f"{state}; {duration(progress.elapsed_s)}, {USUAL_DURATION}"
        if progress.phase != self._phase:
            self.close()
        if progress.phase != self._phase or self._clock() - self._said_s >= LINE_EVERY_S:
            self._phase, self._said, self._said_s, self._held_line = progress.phase, state, self._clock(), None
            self.say(line)
        else:
            self._held_line = line

    def say(self, line: str) -> None:
        """Write a line."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Write the change that was held back."""
        if self._held_line is not None:
            self.say(self._held_line)
            self._held_line = None


class LiveProgress:
    """A block that is drawn again four times a second, so that the elapsed time moves while nothing else does."""

    def __init__(self, *, simulated: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.latest: JobProgress | None = None
        self._simulated = simulated
        self._started_s = time.monotonic()
        self._messages: set[str] = set()
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __call__(self, progress: "JobProgress") -> None:
        """Take what the next drawing shows; messages stay above the block."""
        self.latest = progress
        if not self._live.is_started:
            self._live.start()
        if progress.message and progress.message not in self._messages:
            self._messages.add(progress.message)
            self.say(progress.message)

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._console.print(line, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the block away."""
        self._live.stop()

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.text import Text

        progress = self.latest
        if progress is None:
            return Text("")
        if not hasattr(self, "_spinner"):
            self._spinner = Spinner("dots")
        title = f"Batch run {progress.run}" if progress.run else "Planning" if progress.phase == "plan" else "Waiting"
        self._spinner.update(text=Text.assemble((title, "bold"), ("   SIMULATED", "yellow") if self._simulated else ""))
        lines = [Text(f"  Plan     {describe_rows(progress)}")]
        if progress.phase == "wait":
            lines.append(Text(f"  Batches  {describe_batches(progress)}"))
            lines.append(Text(f"  Cost     {usd(progress.cost_usd)} so far"))
        elif progress.phase == "publish":
            lines.append(Text("  Writing the output"))
        elapsed = duration(time.monotonic() - self._started_s)
        lines.append(Text(f"  Elapsed  {elapsed}, {USUAL_DURATION}" if progress.phase == "wait" else f"  Elapsed  {elapsed}", style="dim"))
        if progress.question:
            lines.append(Text(f"  Waits for an answer: {progress.question}", style="bold yellow"))
        return Group(self._spinner, *lines)


def describe_phase(progress: "JobProgress") -> str:
    """Return what the run does now, in one line without the elapsed time."""
    if progress.phase == "plan":
        return f"planned: {describe_rows(progress)}" if progress.rows_planned else "planning"
    if progress.phase == "publish":
        return "writing the output"
    return f"batches: {describe_batches(progress)}; {usd(progress.cost_usd)} so far"


def describe_rows(progress: "JobProgress") -> str:
    """Return how many rows were planned and what became of their requests."""
    parts = [
        count(progress.rows_planned, "row"),
        f"{count(progress.requests_asked, 'request')} {'to ask' if progress.phase == 'plan' else 'asked'}",
        f"{progress.requests_already_answered:,} already answered",
    ]
    if progress.requests_in_flight:
        parts.append(f"{progress.requests_in_flight:,} being answered in another run")
    return ", ".join(parts)


def describe_batches(progress: "JobProgress") -> str:
    """Return how many batches were submitted, are in progress and have ended."""
    total = f" of {progress.batches_total:,}" if progress.batches_total >= progress.batches_submitted else ""
    return (
        f"{progress.batches_submitted:,}{total} submitted, {progress.batches_in_progress:,} in progress, {progress.batches_ended:,} ended"
    )
