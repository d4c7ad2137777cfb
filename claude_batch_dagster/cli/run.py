"""`run` and `plan`: from options to a job, and what people and programs see of it."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from claude_batch_dagster.cli.interruption import INTERRUPTED, Signals, ask_line, last_words, leave_run
from claude_batch_dagster.cli.job_options import build_job, job_options, read_task
from claude_batch_dagster.cli.options import GroupedCommand, option
from claude_batch_dagster.cli.preview import count_source_rows, explain_limit, preview_lines, preview_object, why_lines
from claude_batch_dagster.cli.progress import ProgressView, open_progress
from claude_batch_dagster.cli.reach import Reach, find_place
from claude_batch_dagster.cli.report import Known, exit_code_of, failure_object, result_object, summarize_result
from claude_batch_dagster.cli.wording import SIMULATED, batches, count, nano_usd
from claude_batch_dagster.core.errors import OutputError, RootError
from claude_batch_dagster.verbs.endpoint import SIMULATOR

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.plan import Plan

ASK_ABOVE_NANO_USD = 10_000_000_000
KEPT = "What was answered is kept in the root: the same command, with another --output if need be, writes it and pays for nothing twice."

json_option = option(
    "How", "--json", "as_json", is_flag=True, help="For programs: the last line of standard output is one JSON object, also on failure."
)


@click.command(
    cls=GroupedCommand,
    short_help="Ask Claude about every row; write the answers as Parquet.",
    examples=(
        (
            "try it without a key and without cost",
            "claude-batch run --source reviews.parquet --task summarize --column text --key id --output out/ --simulate",
        ),
        (
            "twenty rows first; the full run later does not pay for them again",
            "claude-batch run --source reviews.parquet --task summarize --column text --key id --output out/ --limit 20",
        ),
        (
            "label, and never spend more than 5 dollars",
            "claude-batch run --source reviews/ --task moderate --labels ok,spam,hate --column text --key id --output labels/ --max-cost-usd 5",
        ),
        ("a task of your own", "claude-batch run --source reviews.parquet --task topics.yaml --key id --output topics/"),
        (
            "ask about two rows again",
            "claude-batch run --source reviews.parquet --task topics.yaml --key id --output topics/ --ask-again 17 --ask-again 23",
        ),
    ),
)
@job_options
@option(
    "How",
    "--detach",
    is_flag=True,
    help="Submit, then leave: the run goes on in the background. The same command without --detach writes the output.",
)
@json_option
@click.pass_obj
def run(known: Known, /, *, detach: bool, as_json: bool, **arguments: Any) -> int:
    """Ask Claude about every row of a Parquet dataset and write the answers as Parquet.

    What was answered before is not asked again. A batch takes usually under an hour, at most 24; the run survives a closed terminal, and the
    same command again goes on where it was. Ctrl-C asks whether to detach or to cancel; elsewhere than on a terminal it detaches.

    Exit codes: 0 every row succeeded, was refused or skipped; 3 written, but some rows failed; 1 not written; 2 the options or the task are wrong, nothing was
    sent; 130 interrupted.
    """
    from claude_batch_dagster.verbs.run import run_job
    from claude_batch_dagster.verbs.writable import check_writable

    task = read_task(arguments)
    place = find_place(arguments["root"], simulate=arguments["simulate"], needs_key=True)
    job = build_job(place, arguments, task)
    known.root, known.output = place.root, job.targets[0].output
    # Before a server is started for it.
    check_writable(job)
    view = open_progress(simulated=place.simulated)
    if place.simulated:
        view.say(SIMULATED)
    view.say(f"Root {place.root}")
    reach = Reach(place, view.say, detach=detach)

    def say_last() -> tuple[str, str]:
        known.progress = view.latest
        failure = json.dumps(failure_object(known, "KeyboardInterrupt", "Interrupted twice.", INTERRUPTED)) + "\n"
        return last_words(known), failure if as_json else ""

    with Signals(say_last) as signals, reach as connection:
        try:
            result = run_job(job, connection, view, detach=detach, confirm=confirm_above(view, job, known), on_admitted=known.name_run)
        except KeyboardInterrupt:
            leave_run(signals, view, reach, connection, known)
            raise
        except OSError as error:
            if not signals.has_lost_terminal(error):
                raise
            leave_run(signals, view, reach, connection, known)
            raise KeyboardInterrupt from error
        except (OutputError, RootError) as error:
            if view.latest is None or view.latest.phase != "publish":
                raise
            raise type(error)(f"{error} {KEPT}", **error.context) from error
        finally:
            view.close()
            known.progress = view.latest
        code = exit_code_of(result)
        if as_json:
            for warning in result.warnings:
                click.echo(warning, err=True)
            click.echo(json.dumps(result_object(known, result, code)))
        else:
            click.echo("\n".join(summarize_result(known, result, simulated=place.simulated, limit_note=limit_note(job))))
    return code


def limit_note(job: "Job") -> str | None:
    """Return what a limit did to the output, None where it left no row out."""
    if job.limit is None or job.limit >= (rows := count_source_rows(job)):
        return None
    return explain_limit(job.limit, rows)


@click.command(
    cls=GroupedCommand,
    short_help="Show what run would ask and cost; send nothing.",
    examples=(("what would it cost?", "claude-batch plan --source reviews.parquet --task summarize --column text --key id --output out/"),),
)
@job_options
@json_option
@click.pass_obj
def plan(known: Known, /, *, as_json: bool, **arguments: Any) -> int:
    """Show what `run` with the same options would ask, why, and what it would cost, with one request as Claude would get it.

    Nothing is written, nothing is sent; no key is needed.
    """
    from claude_batch_dagster.verbs.plan import plan_job

    task = read_task(arguments)
    place = find_place(arguments["root"], simulate=arguments["simulate"], needs_key=False)
    job = build_job(place, arguments, task)
    known.root, known.output = place.root, job.targets[0].output
    found = plan_job(job, preview=True)
    if as_json:
        click.echo(json.dumps(preview_object(known, found)))
    else:
        click.echo("\n".join(preview_lines(place, job, found)))
    return 0


class NotConfirmedError(click.ClickException):
    """A person said no; exit code 1."""


def confirm_above(view: ProgressView, job: "Job", known: Known) -> "Callable[[Plan], bool] | None":
    """Return what asks a person before much is spent, None where nobody sits at a terminal, a cap was given, or nothing is paid."""
    if job.endpoint == SIMULATOR or job.max_cost_usd is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def confirm(found: "Plan") -> bool:
        worst = found.worst_nano_usd
        if worst is not None and worst <= ASK_ABOVE_NANO_USD:
            return True
        view.close()
        click.echo("\n".join(question_lines(job, found)), err=True)
        if ask_line("Send them? [y/N] ") not in ("y", "yes"):
            if known.entry is not None:
                # What the source had before it changed is paid for, and is written.
                return False
            raise NotConfirmedError(
                f"Not confirmed: none of {count(found.total.asked, 'request')} was sent. Nothing was written. "
                "Try a few rows first (--limit 20), or say what may be spent (--max-cost-usd X)."
            )
        return True

    return confirm


def question_lines(job: "Job", found: "Plan") -> list[str]:
    """Return what a person must know to say yes: rows, cost, and why so many are asked."""
    total = found.total
    models = ", ".join(sorted({target.task.model for target in job.targets}))
    lines = [f"{count(total.asked, 'request')} of {count(total.rows, 'row')} to {models} in {batches(found.batches)}"]
    lines += [f"  {'Why' if place == 0 else '':<6}{line}" for place, line in enumerate(why_lines(found))]
    return [*lines, f"  Cost  expected {nano_usd(found.expected_nano_usd)}, at most {nano_usd(found.worst_nano_usd)}"]
