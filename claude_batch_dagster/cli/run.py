"""`run` and `plan`: from options to a job, and what people and programs see of it."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from claude_batch_dagster.cli.options import GroupedCommand, add_options, option, root_option, simulate_option
from claude_batch_dagster.cli.preview import preview_lines, preview_object
from claude_batch_dagster.cli.progress import ProgressView, open_progress
from claude_batch_dagster.cli.reach import Place, Reach, find_place
from claude_batch_dagster.cli.report import Known, exit_code_of, follow_up, result_object, summarize_result
from claude_batch_dagster.cli.tasks import DEFAULT_MAX_WORDS, DEFAULT_MODEL, TaskArguments, build_task
from claude_batch_dagster.cli.wording import SIMULATED, nano_usd
from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.verbs.endpoint import SIMULATOR

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.plan import Plan

ASK_ABOVE_NANO_USD = 10_000_000_000
INTERRUPTED = 130
DEFAULT_MAX_REQUESTS = 100_000
DEFAULT_MAX_IN_FLIGHT = 2

job_options = add_options(
    option(
        "What",
        "--source",
        required=True,
        metavar="URI",
        help="Parquet file, or folder of files in hive layout; local, s3://, gs:// or az://.",
    ),
    option("What", "--task", required=True, metavar="TASK", help="summarize, moderate, or FILE.py:NAME (a ClaudeTask in a file of yours)."),
    option("What", "--column", metavar="NAME", help="The text column; needed for summarize and moderate."),
    option(
        "What", "--key", "keys", required=True, multiple=True, metavar="NAME", help="Column that identifies a row; repeat it for several."
    ),
    option("What", "--model", metavar="MODEL", help=f"Claude model.  [default: {DEFAULT_MODEL}]"),
    option("What", "--labels", metavar="A,B,C", help="The allowed labels; needed for moderate."),
    option("What", "--max-words", type=click.IntRange(5, 2_000), metavar="N", help=f"Length of a summary.  [default: {DEFAULT_MAX_WORDS}]"),
    option(
        "Where",
        "--output",
        required=True,
        metavar="URI",
        help="Folder of this one output: part-0.parquet, or one in each partition's folder.",
    ),
    root_option,
    option(
        "Where", "--columns", default="key", show_default=True, metavar="key|all|A,B", help="Columns of the source that the output carries."
    ),
    option("Where", "--partition-column", metavar="NAME", help="Hive column of the partitions; found where the source has exactly one."),
    option(
        "Where", "--replace", is_flag=True, help="Write into a folder that something else wrote, or that holds another endpoint's answers."
    ),
    option(
        "Cost",
        "--max-cost-usd",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Refuse what could cost more. Without it a terminal is asked above $10.",
    ),
    option(
        "Cost",
        "--max-requests-per-batch",
        type=click.IntRange(1, 100_000),
        default=DEFAULT_MAX_REQUESTS,
        show_default=True,
        metavar="N",
        help="Requests in one Message Batch, at most.",
    ),
    option(
        "Cost",
        "--max-in-flight-batches",
        type=click.IntRange(1, 1_000),
        default=DEFAULT_MAX_IN_FLIGHT,
        show_default=True,
        metavar="N",
        help="Batches at Anthropic at once, at most.",
    ),
    simulate_option,
)
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
            "label, and never spend more than 5 dollars",
            "claude-batch run --source reviews/ --task moderate --labels ok,spam,hate --column text --key id --output labels/ --max-cost-usd 5",
        ),
        ("a task of your own", "claude-batch run --source reviews.parquet --task tasks.py:topics --key id --output topics/"),
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
    same command again goes on where it was.

    Exit codes: 0 every row succeeded, was refused or skipped; 3 written, but some rows failed; 1 not written; 2 usage; 130 interrupted.
    """
    from claude_batch_dagster.verbs.run import run_job

    place = find_place(arguments["root"], simulate=arguments["simulate"], needs_key=True)
    job = build_job(place, arguments)
    known.root, known.output = place.root, job.targets[0].output
    view = open_progress(simulated=place.simulated)
    if place.simulated:
        view.say(SIMULATED)
    view.say(f"Root {place.root}")
    reach = Reach(place, view.say, detach=detach)
    with reach as connection:
        try:
            result = run_job(job, connection, view, detach=detach, confirm=confirm_above(view, job), on_admitted=known.name_run)
        except KeyboardInterrupt:
            view.close()
            leave_running(view, reach, known)
            raise
        finally:
            view.close()
        code = exit_code_of(result)
        if as_json:
            click.echo(json.dumps(result_object(known, result, code)))
        else:
            click.echo("\n".join(summarize_result(known, result, simulated=place.simulated)))
    return code


@click.command(
    cls=GroupedCommand,
    short_help="Show what run would ask and cost; send nothing.",
    examples=(("what would it cost?", "claude-batch plan --source reviews.parquet --task summarize --column text --key id --output out/"),),
)
@job_options
@json_option
@click.pass_obj
def plan(known: Known, /, *, as_json: bool, **arguments: Any) -> int:
    """Show what `run` with the same options would ask and cost. Nothing is written, nothing is sent; no key is needed."""
    from claude_batch_dagster.verbs.plan import plan_job

    place = find_place(arguments["root"], simulate=arguments["simulate"], needs_key=False)
    job = build_job(place, arguments)
    known.root, known.output = place.root, job.targets[0].output
    found = plan_job(job, preview=True)
    if as_json:
        click.echo(json.dumps(preview_object(known, found)))
    else:
        click.echo("\n".join(preview_lines(place, job, found)))
    return 0


class NotConfirmedError(click.ClickException):
    """A person said no; exit code 1."""


def build_job(place: Place, arguments: Mapping[str, Any]) -> "Job":
    """Return the job that the options describe; a partition column is found where the source has exactly one hive column."""
    from claude_batch_dagster.storage.source import ParquetDataset, find_partition_column
    from claude_batch_dagster.verbs.connection import DEFAULT_NAMESPACE, external_connection
    from claude_batch_dagster.verbs.job import Job, Target

    names = ("task", "column", "model", "labels", "max_words")
    task = build_task(TaskArguments(**{name: arguments[name] for name in names}))
    dataset = ParquetDataset(path=arguments["source"], key=tuple(arguments["keys"]), partition_column=arguments["partition_column"])
    columns = arguments["columns"]
    external = external_connection()
    return Job(
        root=place.root,
        endpoint=place.endpoint,
        temporal_namespace=external.namespace if external else DEFAULT_NAMESPACE,
        source=find_partition_column(dataset),
        targets=(
            Target(
                task=task,
                output=absolute_uri(arguments["output"]),
                columns=columns if columns in ("key", "all") else tuple(name.strip() for name in columns.split(",") if name.strip()),
            ),
        ),
        max_cost_usd=arguments["max_cost_usd"],
        max_requests_per_batch=arguments["max_requests_per_batch"],
        max_in_flight_batches=arguments["max_in_flight_batches"],
        replace=arguments["replace"],
    )


def confirm_above(view: ProgressView, job: "Job") -> "Callable[[Plan], bool] | None":
    """Return what asks a person before much is spent, None where nobody sits at a terminal, a cap was given, or nothing is paid."""
    if job.endpoint == SIMULATOR or job.max_cost_usd is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def confirm(found: "Plan") -> bool:
        worst = found.worst_nano_usd
        if worst is not None and worst <= ASK_ABOVE_NANO_USD:
            return True
        view.close()
        question = (
            f"{found.total.asked:,} requests to {', '.join(sorted({target.task.model for target in job.targets}))}: expected {nano_usd(found.expected_nano_usd)}, "
            f"at most {nano_usd(worst)}. Send them?"
        )
        if not click.confirm(question, default=False, err=True):
            raise NotConfirmedError(f"Not confirmed: {found.total.asked:,} requests were not sent. Nothing was written.")
        return True

    return confirm


def leave_running(view: ProgressView, reach: Reach, known: Known) -> None:
    """Say what becomes of the work after Ctrl-C, and let the embedded stack see it through."""
    known.interruption_told = True
    phase = view.latest.phase if view.latest else "plan"
    if phase == "publish":
        click.echo("Interrupted while the output was written. The same command again writes it and asks nothing twice.", err=True)
    elif known.run is None:
        click.echo("Interrupted. Nothing was sent.", err=True)
    else:
        if reach.stack is not None:
            reach.stack.stay()
        line = f"Interrupted. Batch run {known.run} goes on in the background; the same command again waits for it and writes the output."
        click.echo("\n".join([line, *follow_up(known.run, known.root or "")]), err=True)
