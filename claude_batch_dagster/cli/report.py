"""What a command says at its end: the JSON object for programs, the summary for people."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claude_batch_dagster.cli.wording import NANO, SIMULATED, batches, command, count, duration, usd
from claude_batch_dagster.core.errors import ClaudeBatchError
from claude_batch_dagster.core.status import FAILED_STATUSES, STATUSES

if TYPE_CHECKING:
    from claude_batch_dagster.core.records import LogEntry
    from claude_batch_dagster.verbs.paid import Paid
    from claude_batch_dagster.verbs.progress import JobProgress
    from claude_batch_dagster.verbs.result import JobResult

ROWS_FAILED = 3


@dataclass(slots=True, kw_only=True)
class Known:
    """What the command knows by now, for the JSON object should it fail.

    Attributes:
        entry: The command's own run, the last one.
        progress: How far the command came.
        interruption_told: Whether a person was told what becomes of the work after Ctrl-C.
    """

    root: str | None = None
    output: str | None = None
    run: str | None = None
    run_id: str | None = None
    workflow_id: str | None = None
    entry: "LogEntry | None" = None
    progress: "JobProgress | None" = None
    interruption_told: bool = False

    def name_run(self, entry: "LogEntry") -> None:
        """Remember the command's own run."""
        from claude_batch_dagster.core.contract import workflow_id

        self.entry = entry
        self.run, self.run_id, self.workflow_id = entry.label, entry.run_id, workflow_id(entry.run_id)


def read_paid(known: Known) -> "Paid | None":
    """Return what the command's own run has paid for, None where there is none, or where its records cannot be read now."""
    if known.entry is None or known.root is None:
        return None
    from claude_batch_dagster.verbs.paid import read_paid

    try:
        return read_paid(known.root, known.entry)
    except (ClaudeBatchError, OSError):
        return None


def failure_object(known: Known, kind: str, message: str, exit_code: int, paid: "Paid | None" = None) -> dict[str, object]:
    """Return the JSON object of a command that wrote nothing: no rows, but what its run asked and paid for.

    Args:
        paid: What the own run has paid for; without it `cost_usd` is None where there is an own run.
    """
    progress, tokens = known.progress, ("input", "output", "cache_read", "cache_write")
    return {
        **_names(known),
        "rows": dict.fromkeys(("total", *STATUSES), 0),
        "requests": {
            "asked": known.entry.keys.count if known.entry else 0,
            "already_answered": progress.requests_already_answered if progress else 0,
            "in_flight": progress.requests_in_flight if progress else 0,
        },
        "batches": paid.batches if paid else 0,
        "tokens": {name: paid.tokens[name] if paid else 0 for name in tokens},
        "cost_usd": _cost_usd(known, paid),
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
    number = len(result.failed_partitions)
    return f"{count(number, 'partition')} of the source {'was' if number == 1 else 'were'} left out and not written: {reasons}"


def summarize_result(known: Known, result: "JobResult", *, simulated: bool, limit_note: str | None = None) -> list[str]:
    """Return the lines that people read at the end of a run.

    Args:
        limit_note: What a limit did to this output, None where it left no row out.
    """
    rows, requests = result.rows, result.requests
    if result.detached and result.run is None:
        return [
            "There is nothing new to ask: every request is answered or being answered. Type the same command without --detach to write the output."
        ]
    if result.detached:
        return [
            f"Batch run {result.run} goes on in the background: {count(requests.get('asked', 0), 'request')}.",
            "Its answers are collected by themselves. Type the same command again, without --detach, to write the output.",
            *follow_up(result.run, known.root or ""),
        ]
    by_status = ", ".join(f"{rows[status]:,} {status}" for status in STATUSES if rows.get(status)) or "none"
    asked = f"{requests.get('asked', 0):,} asked in {batches(result.batches)}, {requests.get('already_answered', 0):,} already answered"
    asked += f", {requests['in_flight']:,} answered in another run" if requests.get("in_flight") else ""
    tokens = f"{count(result.tokens.get('input', 0), 'token')} of input, {result.tokens.get('output', 0):,} of output"
    first = (
        f"Batch run {result.run} is done after {duration(result.duration_s)}."
        if result.run
        else "Nothing new had to be asked. The output is written."
    )
    lines = [
        first + (f"   {SIMULATED}" if simulated else ""),
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


def _cost_usd(known: Known, paid: "Paid | None") -> float | None:
    if known.entry is None:
        return 0.0
    return None if paid is None or paid.cost_nano_usd is None else paid.cost_nano_usd / NANO


def _names(known: Known) -> dict[str, object]:
    return {"run": known.run, "run_id": known.run_id, "workflow_id": known.workflow_id, "root": known.root, "output": known.output}
