"""What a materialization says about itself: numbers that plot, the columns, a chart, a preview, and the ways to the workflow and the batches."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.core.schema import Field
from claude_batch_dagster.core.status import FAILED_STATUSES, STATUS_DESCRIPTIONS, STATUSES
from claude_batch_dagster.reporting.queries import quote_text, select_rows, show_command
from claude_batch_dagster.verbs.endpoint import ANTHROPIC

if TYPE_CHECKING:
    import pyarrow as pa

    from claude_batch_dagster.storage.label_counts import LabelCounts
    from claude_batch_dagster.verbs.connection import Connection
    from claude_batch_dagster.verbs.publish import PublishedOutput
    from claude_batch_dagster.verbs.result import JobResult

UNPUBLISHED = "Nothing is published yet. Materialize the asset first."
PREVIEW_ROWS = 5
PREVIEW_CELL_CHARS = (120, 80, 50, 30, 20)
INLINE_CHARS = 1_000
"""Dagster's UI shows shorter Markdown at once, longer only on a click (1.13.27, measured)."""
CONSOLE_URL = "https://platform.claude.com/settings/workspaces/default/batches"
"""Where the batches of the default workspace are listed. Source: platform.claude.com batch processing, "Tracking your batch" (checked 2026-11-23)."""
PREVIEW_COLUMNS_LEFT_OUT = frozenset(("model", "stop_reason", "cost_usd", "request_key", "task_key", "batch_id", "answered_at"))


def materialization_metadata(
    outputs: Sequence["PublishedOutput"],
    result: "JobResult",
    *,
    folder: str,
    fields: Sequence[Field],
    connection: "Connection",
    partitioned: bool,
    endpoint: str,
    labels: "LabelCounts | None" = None,
) -> dict[str, Any]:
    """Return the metadata of an asset, or of one of its partitions.

    Args:
        outputs: The files that it covers, at least one.
        result: Of the job that published them.
        folder: Of the asset's output.
        fields: The task's, for their descriptions.
        connection: For the workflow's link.
        partitioned: Whether it speaks of one partition.
        endpoint: Who answered.
        labels: Answered rows by label, by column.
    """
    rows = count_rows(outputs)
    written = [output.written for output in outputs]
    # The try of a new task was paid once: a range tells it with its first partition.
    first = next(output for output in result.outputs if output.task == outputs[0].task)
    tried = result.tries.get(first.task) if first in outputs else None
    planned = [result.tallies[output.task, output.partition] for output in outputs]
    metadata: dict[str, Any] = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": sum(rows.values()),
        **_cost([one.cost_nano_usd for one in written] + ([tried.cost_nano_usd] if tried else [])),
        "claude_batch/input_tokens": sum(one.input_tokens for one in written) + (tried.input_tokens if tried else 0),
        "claude_batch/output_tokens": sum(one.output_tokens for one in written) + (tried.output_tokens if tried else 0),
        "claude_batch/requests": sum(tally.asked for tally in planned),
        "claude_batch/already_answered": sum(tally.already_answered for tally in planned),
        "claude_batch/batches": min(result.batches, sum(one.batches for one in written)),
        "claude_batch/duration_s": round(result.duration_s, 3),
        **{f"claude_batch/{status}": count for status, count in rows.items()},
        "claude_batch/endpoint": endpoint,
        "dagster/column_schema": table_schema(written[0].schema, fields),
        "dagster/uri": written[0].uri if len(written) == 1 else folder,
    }
    if result.limit is not None:
        metadata["claude_batch/limit"] = result.limit
    if result.run is not None:
        metadata["claude_batch/run"] = f"batch run {result.run}"
    if result.run_id is not None:
        workflow = result.workflow_id or workflow_id(result.run_id)
        link = connection.workflow_url(workflow)
        metadata["claude_batch/workflow"] = dg.MetadataValue.url(link) if link else workflow
    if endpoint == ANTHROPIC and result.batches:
        metadata["claude_batch/console"] = dg.MetadataValue.url(CONSOLE_URL)
    if labels:
        metadata["claude_batch/labels"] = dg.MetadataValue.json(labels)
    metadata["preview"] = dg.MetadataValue.md(markdown_table([row for one in written for row in one.preview][:PREVIEW_ROWS]))
    return metadata


def count_rows(outputs: Iterable["PublishedOutput"]) -> dict[str, int]:
    """Return the rows of all outputs by status, every status named."""
    rows = dict.fromkeys(STATUSES, 0)
    for output in outputs:
        for status, count in output.written.rows.items():
            rows[status] += count
    return rows


def rows_without_answer(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the statuses that stand for a row without an answer, where there are such rows."""
    return {status: rows[status] for status in FAILED_STATUSES if rows.get(status)}


def check_result(
    asset_key: dg.AssetKey, check_name: str, rows: Mapping[str, int], *, keys: Sequence[str] = (), file: str | None = None
) -> dg.AssetCheckResult:
    """Return whether every row has an answer, a refusal or nothing to ask about; a warning where not.

    Args:
        asset_key: The asset.
        check_name: Of the check.
        rows: By status.
        keys: Columns that tell a row in the output.
        file: One that has rows without an answer, or a pattern of files; None where there is none to look at.
    """
    failed = rows_without_answer(rows)
    total = sum(rows[status] for status in STATUSES)
    if failed:
        kinds = ", ".join(f"{count:,} {status}" for status, count in failed.items())
        number = sum(failed.values())
        description = f"{number:,} of {total:,} rows {'has' if number == 1 else 'have'} no answer: {kinds}. The column `error` says why."
        if file is not None:
            where = f"status IN ({', '.join(map(quote_text, failed))})"
            description += f"\n\nRows to look at:\n\n{show_command(select_rows([*keys, 'status', 'error'], file, where))}"
    else:
        which = "The row has" if total == 1 else f"All {total:,} rows have"
        description = f"{which} an answer, a refusal or nothing to ask about."
    return dg.AssetCheckResult(
        asset_key=asset_key,
        check_name=check_name,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={status: rows[status] for status in STATUSES},
    )


def unpublished_result(asset_key: dg.AssetKey, check_name: str) -> dg.AssetCheckResult:
    """Return what the same check says before anything is there."""
    return dg.AssetCheckResult(
        asset_key=asset_key, check_name=check_name, passed=False, severity=dg.AssetCheckSeverity.WARN, description=UNPUBLISHED
    )


def data_version(endpoint: str, asked: AskedAsset, source_digests: Iterable[str], rows: Mapping[str, int]) -> dg.DataVersion:
    """Return what the published rows depend on, so that Dagster knows what downstream is stale.

    Args:
        endpoint: Who answered.
        asked: What was asked, and what is carried from the source.
        source_digests: Of the files that were asked about.
        rows: Rows by status: a row that got its answer later is other data.
    """
    counts = [f"{status}={count}" for status, count in sorted(rows.items()) if count]
    parts = (endpoint, asked.task.task_key, repr(asked.columns), *sorted(source_digests), *counts)
    return dg.DataVersion(hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32])


def table_schema(columns: "pa.Schema", fields: Sequence[Field]) -> dg.TableSchema:
    """Return an output's columns for the UI, described where their meaning is known."""
    described = {**STATUS_DESCRIPTIONS, **{field.name: field.description for field in fields}}
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=str(column.type),
                description=described.get(column.name),
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in columns
        ]
    )


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    r"""Return rows as a Markdown table, long texts cut, technical columns left out and those that say nothing here.

    >>> print(markdown_table([{"id": 1, "summary": "a|b", "task_key": "0f"}]))
    | id | summary |
    | --- | --- |
    | 1 | a\|b |
    """
    if not rows:
        return "No rows."
    left_out = {name for name in rows[0] if name in PREVIEW_COLUMNS_LEFT_OUT or name.endswith("_tokens")}
    if all(row.get("status") == "succeeded" for row in rows):
        left_out.add("status")
    names = [name for name in rows[0] if name not in left_out and any(row.get(name) not in (None, [], ()) for row in rows)]
    table = ""
    for cell_chars in PREVIEW_CELL_CHARS:
        lines = [names, ["---"] * len(names), *([_cell(row.get(name), cell_chars) for name in names] for row in rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        if len(table) < INLINE_CHARS:
            break
    return table


def _cost(costs_nano_usd: Sequence[int | None]) -> dict[str, float | str]:
    if None in costs_nano_usd:
        return {"claude_batch/cost": "unknown: the model has no known price"}
    cost_usd = sum(cost or 0 for cost in costs_nano_usd) / 1e9
    return {"claude_batch/cost": usd(cost_usd), "claude_batch/cost_usd": cost_usd}


def _cell(value: object, most_chars: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    text = " ".join(text.split())
    text = text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"
    for character in "\\|<>[]`*_$":
        text = text.replace(character, f"\\{character}")
    return text
