"""What a command says at its end: the JSON object for programs, the summary for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claude_batch_dagster.cli.wording import SIMULATED, batches, command, count, duration, usd

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import LogEntry
    from claude_batch_dagster.verbs.run import JobResult

STATUSES = ("succeeded", "refused", "truncated", "invalid", "errored", "expired", "canceled", "skipped", "pending")
FAILED_STATUSES = ("truncated", "invalid", "errored", "expired", "canceled", "pending")
ROWS_FAILED = 3


@dataclass(slots=True, kw_only=True)
class Known:
    """What the command knows by now, for the JSON object should it fail.

    Attributes:
        entry: The command's own run, the last one.
        interruption_told: Whether a person was told what becomes of the work after Ctrl-C.
    """

    root: str | None = None
    output: str | None = None
    run: str | None = None
    run_id: str | None = None
    workflow_id: str | None = None
    entry: "LogEntry | None" = None
    interruption_told: bool = False

    def name_run(self, entry: "LogEntry") -> None:
        """Remember the command's own run."""
        from claude_batch_dagster.core.contract import workflow_id

        self.entry = entry
        self.run, self.run_id, self.workflow_id = entry.label, entry.run_id, workflow_id(entry.run_id)


def failure_object(known: Known, kind: str, message: str, exit_code: int) -> dict[str, object]:
    """Return the JSON object of a command that wrote nothing: all counts are zero, what it cost is not known."""
    return {
        **_names(known),
        "rows": dict.fromkeys(("total", *STATUSES), 0),
        "requests": dict.fromkeys(("asked", "already_answered", "in_flight"), 0),
        "batches": 0,
        "tokens": dict.fromkeys(("input", "output", "cache_read", "cache_write"), 0),
        "cost_usd": None,
        "exit_code": exit_code,
        "error": {"type": kind, "message": message},
    }


def result_object(known: Known, result: "JobResult", exit_code: int) -> dict[str, object]:
    """Return the JSON object of a run that ended, or that goes on detached."""
    failed = partition_failure(result)
    return {
        **_names(known),
        "rows": {name: result.rows.get(name, 0) for name in ("total", *STATUSES)},
        "requests": {name: result.requests.get(name, 0) for name in ("asked", "already_answered", "in_flight")},
        "batches": result.batches,
        "tokens": {name: result.tokens.get(name, 0) for name in ("input", "output", "cache_read", "cache_write")},
        "cost_usd": result.cost_usd,
        "exit_code": exit_code,
        "error": None if failed is None else {"type": "SourceError", "message": failed},
    }


def exit_code_of(result: "JobResult") -> int:
    """Return 0 where every row is fine, 3 where some failed, 1 where a partition was not written."""
    if result.failed_partitions:
        return 1
    return ROWS_FAILED if not result.detached and failed_rows(result.rows) else 0


def failed_rows(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of rows without a usable answer, by status."""
    return {name: rows[name] for name in FAILED_STATUSES if rows.get(name)}


def partition_failure(result: "JobResult") -> str | None:
    """Return one sentence on the partitions that were not written, None where all were."""
    if not result.failed_partitions:
        return None
    reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed_partitions.items())
    return f"{count(len(result.failed_partitions), 'partition')} of the source could not be read and were not written: {reasons}"


def summarize_result(known: Known, result: "JobResult", *, simulated: bool, limit_note: str | None = None) -> list[str]:
    """Return the lines that people read at the end of a run.

    Args:
        limit_note: What a limit did to this output, None where it left no row out.
    """
    rows, requests = result.rows, result.requests
    if result.detached and result.run is None:
        return [
            "Nothing had to be asked: every request is answered or being answered. Type the same command without --detach to write the output."
        ]
    if result.detached:
        return [
            f"Batch run {result.run} goes on in the background: {count(requests.get('asked', 0), 'request')}.",
            "Its answers are collected by themselves. Type the same command again, without --detach, to write the output.",
            *follow_up(result.run, known.root or ""),
        ]
    name = f"Batch run {result.run}" if result.run else "Nothing had to be asked: the output"
    by_status = ", ".join(f"{rows[status]:,} {status}" for status in STATUSES if rows.get(status)) or "none"
    asked = f"{requests.get('asked', 0):,} asked in {batches(result.batches)}, {requests.get('already_answered', 0):,} already answered"
    tokens = f"{result.tokens.get('input', 0):,} input and {result.tokens.get('output', 0):,} output tokens"
    lines = [
        f"{name} is done after {duration(result.duration_s)}." + (f"   {SIMULATED}" if simulated else ""),
        f"  Rows      {rows.get('total', 0):,}: {by_status}",
        f"  Requests  {asked}",
        f"  Cost      {usd(result.cost_usd)} ({tokens})",
    ]
    lines += [f"  Limit     {limit_note}"] if limit_note else []
    written = [published.written.uri for published in result.outputs]
    if len(written) > 1:
        lines.append(f"  Output    {known.output} ({count(len(written), 'partition')})")
    lines += [f"  Output    {uri}" for uri in written] if len(written) == 1 else []
    if failed := failed_rows(rows):
        what = ", ".join(f"{number:,} {status}" for status, number in failed.items())
        lines.append(
            f"{count(sum(failed.values()), 'row')} without a usable answer ({what}): the column `error` says why. "
            "The same command again asks those that another try may help; with --retry-failed also those that failed for good. "
            f"One of them in detail: {command('show', known.root or '', known.output or '')} KEY"
        )
    if failure := partition_failure(result):
        lines.append(failure)
    return [*lines, *result.warnings]


def follow_up(run: str | None, root: str) -> list[str]:
    """Return how to look at a run and how to end it."""
    if run is None:
        return []
    return [f"  look at it: {command('status', root, run)}", f"  cancel it:  {command('cancel', root, run)}"]


def _names(known: Known) -> dict[str, object]:
    return {"run": known.run, "run_id": known.run_id, "workflow_id": known.workflow_id, "root": known.root, "output": known.output}
