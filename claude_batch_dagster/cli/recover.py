"""`recover`: harvests what was paid for, with the arguments of the run that asked."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from claude_batch_dagster.cli.job_options import build_job, job_options
from claude_batch_dagster.cli.options import GroupedCommand, option
from claude_batch_dagster.cli.reach import Reach, find_place
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.cli.run import json_option
from claude_batch_dagster.cli.wording import NANO, SIMULATED, batches, count, duration, nano_usd

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.recover import RecoverStatus, RecoveryResult

NOT_ALL_READ = 3
LINE_EVERY_S = 5.0


@click.command(
    cls=GroupedCommand,
    short_help="Harvest answers that were paid for and are not in the root.",
    examples=(
        (
            "the root was deleted: the options of the run that filled it",
            "claude-batch recover --source reviews.parquet --task summarize --column text --key id --output out/",
        ),
        (
            "without waiting for batches that are still in progress",
            "claude-batch recover --source reviews.parquet --task summarize --column text --key id --output out/ --no-wait",
        ),
    ),
)
@job_options
@option("How", "--no-wait", is_flag=True, help="Leave batches that are still in progress; exit code 3 where there are any.")
@json_option
@click.pass_obj
def recover(known: Known, /, *, no_wait: bool, as_json: bool, **arguments: Any) -> int:
    """Harvest every answer of the last 29 days that belongs to these rows and this task, from the list of batches at Anthropic.

    For a root or a Temporal database that is lost, and for batches that came too late. Takes the options of `run`; nothing is asked, nothing is
    paid, no output is written. `run` with the same options then asks the rest only.

    Exit codes: 0 everything was read; 3 batches are in progress, or could not be read; 1 not done; 2 usage; 130 interrupted: what was harvested
    is kept, the same command goes on.
    """
    from claude_batch_dagster.verbs.recover import recover_job

    place = find_place(arguments["root"], simulate=arguments["simulate"], needs_key=True)
    job = build_job(place, arguments)
    known.root, known.output = place.root, job.targets[0].output
    view = RecoveryLines()
    if place.simulated:
        view.say(SIMULATED)
    view.say(f"Root {place.root}")
    try:
        with Reach(place, view.say) as connection:
            result = recover_job(job, connection, view, wait=not no_wait)
    except KeyboardInterrupt:
        known.interruption_told = True
        view.say("Interrupted. What was harvested is kept; the same command again goes on.")
        raise
    code = NOT_ALL_READ if result.harvest.in_progress or result.harvest.unreadable else 0
    click.echo(json.dumps(recovery_object(result, code)) if as_json else "\n".join(summarize_recovery(result)))
    return code


class RecoveryLines:
    """One line per change on standard error, at most one every few seconds; messages at once, each once."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._line_s = float("-inf")

    def __call__(self, status: "RecoverStatus") -> None:
        """Write what is new."""
        if status.message and status.message not in self._said:
            self._said.add(status.message)
            self.say(status.message)
        found = status.harvest
        line = f"{batches(found.looked)} looked at, {found.harvested:,} harvested: {_answers(found.counts.by_outcome)}; {status.note}"
        if not found.looked:
            line = status.note
        if line not in self._said and time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._said.add(line)
            self._line_s = time.monotonic()
            self.say(line)

    def say(self, line: str) -> None:
        """Write a line."""
        print(line, file=sys.stderr, flush=True)


def summarize_recovery(result: "RecoveryResult") -> list[str]:
    """Return the lines that people read at the end."""
    found, after = result.harvest, result.after
    others = (
        (found.stored_before, "stored before"),
        (found.left_to_runs, "left to open runs"),
        (found.other, "with other rows or tasks"),
        (found.foreign, "not of this product"),
        (found.archived, "archived: their results are gone"),
        (found.unreadable, "whose results cannot be read"),
    )
    rest = "".join(f", {number:,} {what}" for number, what in others if number)
    lines = [
        f"Recovery done after {duration(result.duration_s)}.",
        f"  Looked for  {count(result.requests, 'request')}, of which {result.before.already_answered:,} were answered in the root",
        f"  Batches     {found.looked:,} of the last 29 days looked at: {found.harvested:,} harvested{rest}",
        f"  Harvested   {_answers(found.counts.by_outcome)}, worth {nano_usd(found.counts.cost_nano_usd)} already paid",
    ]
    if result.ended_runs:
        lines.append(f"  Ended       workflows of lost records: {', '.join(result.ended_runs)}")
    lines += [f"  Left out    {partition}: {reason}" for partition, reason in result.left_out.items()]
    for name, number in found.other_names.items():
        lines.append(
            f"  Not taken   {count(number, 'answer')} to these requests, asked under the task name {name}: name the task so to take them"
        )
    if found.in_progress:
        lines.append(
            f"{batches(found.in_progress).capitalize()} in progress: what a run would ask now may be in them, and be paid for twice. "
            "They end within 24 h of their creation; the same command without --no-wait waits for them."
        )
    in_flight = f", {after.in_flight:,} in flight" if after.in_flight else ""
    lines.append(f"A run would now ask {count(after.asked, 'request')}; {after.already_answered:,} answered{in_flight}.")
    return lines


def recovery_object(result: "RecoveryResult", exit_code: int) -> dict[str, object]:
    """Return the JSON object of a recovery."""
    found = result.harvest
    names = ("looked", "harvested", "stored_before", "left_to_runs", "other", "foreign", "archived", "unreadable", "strays", "in_progress")
    return {
        "root": result.root,
        "looked_for": result.requests,
        "batches": {name: getattr(found, name) for name in names},
        "answers": dict(found.counts.by_outcome),
        "other_names": dict(found.other_names),
        "paid_usd": found.counts.cost_nano_usd / NANO,
        "requests": {"asked": result.after.asked, "already_answered": result.after.already_answered, "in_flight": result.after.in_flight},
        "ended_runs": list(result.ended_runs),
        "left_out": result.left_out,
        "exit_code": exit_code,
        "error": None,
    }


def _answers(by_outcome: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(by_outcome.items()) if number) or "no answer"
