"""The options that `run` and `plan` share, and the job that they describe."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from claude_batch_dagster.cli.options import add_options, option, root_option, simulate_option
from claude_batch_dagster.cli.reach import Place
from claude_batch_dagster.cli.tasks import DEFAULT_MAX_WORDS, DEFAULT_MODEL, TaskArguments, build_task
from claude_batch_dagster.storage.store import absolute_uri

if TYPE_CHECKING:
    from claude_batch_dagster.core.task import ClaudeTask
    from claude_batch_dagster.verbs.job import Job

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
    option(
        "What",
        "--task",
        required=True,
        metavar="TASK",
        help="summarize, moderate, FILE.yaml (a ClaudeTask's arguments, or a preset's), or FILE.py:NAME (a ClaudeTask in a file of yours).",
    ),
    option("What", "--column", metavar="NAME", help="The text column; needed for summarize and moderate."),
    option(
        "What", "--key", "keys", required=True, multiple=True, metavar="NAME", help="Column that identifies a row; repeat it for several."
    ),
    option("What", "--model", metavar="MODEL", help=f"Claude model.  [default: {DEFAULT_MODEL}]"),
    option("What", "--labels", metavar="A,B,C", help="The allowed labels; needed for moderate."),
    option("What", "--max-words", type=click.IntRange(5, 2_000), metavar="N", help=f"Length of a summary.  [default: {DEFAULT_MAX_WORDS}]"),
    option(
        "Which rows",
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        help="Only the first N rows of the source. The output says so; the full run later does not pay for them again.",
    ),
    option(
        "Which rows",
        "--ask-again",
        multiple=True,
        metavar="KEY",
        help="Ask about the row with this key again though it is answered; the latest answer counts, earlier ones stay in the root. Repeat "
        "it for several rows; the columns of one key are joined by commas.",
    ),
    option(
        "Which rows",
        "--retry-failed",
        is_flag=True,
        help="Ask again what failed for good: truncated, invalid, or errored because the API rejected the request.",
    ),
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
        "Where",
        "--replace",
        is_flag=True,
        help="Needed to put real answers in the place of simulated ones or the other way round, and to put the rows of --limit in the place "
        "of all. No answer in the root is lost by it. Files that this tool did not write are never replaced.",
    ),
    option(
        "Cost",
        "--max-cost-usd",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Send nothing if it could cost more. Without it you are asked above $10, at a terminal.",
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
        help="Batches in progress at once, at most.",
    ),
    option(
        "Cost",
        "--no-preflight",
        is_flag=True,
        help="Do not try a new task with one request on a fixed sample text before its first batch.",
    ),
    simulate_option,
)


def read_task(arguments: Mapping[str, Any]) -> "ClaudeTask":
    """Return the task that the options describe."""
    return build_task(TaskArguments(**{name: arguments[name] for name in ("task", "column", "model", "labels", "max_words")}))


def build_job(place: Place, arguments: Mapping[str, Any], task: "ClaudeTask | None" = None) -> "Job":
    """Return the job that the options describe; a partition column is found where the source has exactly one hive column.

    Args:
        place: Where the command works.
        arguments: As typed.
        task: As `read_task` returned it, where that was done before.
    """
    from claude_batch_dagster.storage.dataset import ParquetDataset
    from claude_batch_dagster.storage.source import find_partition_column
    from claude_batch_dagster.verbs.connection import DEFAULT_NAMESPACE, external_connection
    from claude_batch_dagster.verbs.job import Job, Target

    task = read_task(arguments) if task is None else task
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
        limit=arguments["limit"],
        ask_again=tuple(arguments["ask_again"]),
        retry_failed=arguments["retry_failed"],
        preflight=not arguments["no_preflight"],
    )
