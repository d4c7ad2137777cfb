"""What `plan` shows: rows, requests and why they are asked, cost, and one rendered example."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from claude_batch_dagster.cli.reach import Place
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.cli.request_view import request_lines
from claude_batch_dagster.cli.wording import NANO, SIMULATED, batches, count, nano_usd, to_usd, usd
from claude_batch_dagster.core.status import STATUSES

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.plan import Plan


def preview_lines(place: Place, job: "Job", found: "Plan") -> list[str]:
    """Return what people read; the root's absolute path is the first line."""
    total, target = found.total, job.targets[0]
    dropped = [
        text
        for number, text in ((total.skipped, f"{total.skipped:,} blank, skipped"), (total.too_large, f"{total.too_large:,} too large"))
        if number
    ]
    lines = [f"Root      {place.root}"]
    if place.simulated:
        lines.append(f"          {SIMULATED}")
    lines += [
        f"Source    {job.source.uri}" + (f", partitions by {job.source.partition_column}" if job.source.partition_column else ""),
        f"Output    {target.output}",
        f"Task      {target.task.name} by {target.task.model}, task key {target.task.task_key}",
        f"Rows      {total.rows:,}" + (f" ({', '.join(dropped)})" if dropped else ""),
    ]
    if found.limit is not None:
        lines.append(f"          {explain_limit(found.limit, count_source_rows(job))}")
    lines.append(
        f"Requests  {total.asked:,} to ask in {batches(found.batches)}, {total.already_answered:,} already answered, {total.in_flight:,} in flight"
    )
    lines += [f"{'Why' if place_in_list == 0 else '':<10}{line}" for place_in_list, line in enumerate(why_lines(found))]
    lines.append(f"Cost      expected {nano_usd(found.expected_nano_usd)}, at most {nano_usd(found.worst_nano_usd)}")
    lines += [f"          {sentence}" for sentence in assumptions(found)]
    if job.max_cost_usd is not None and found.worst_nano_usd is not None and found.worst_nano_usd > job.max_cost_usd * NANO:
        lines.append(f"          over the cap of {usd(job.max_cost_usd)} (--max-cost-usd): run would send nothing")
    lines += [f"Left out  {partition}: {reason}" for partition, reason in found.bad_partitions.items()]
    lines += [f"Warning   {warning}" for warning in found.warnings]
    if found.example is not None:
        lines += ["Example   the first request:", *(f"          {line}".rstrip() for line in request_lines(json.loads(found.example)))]
    return [*lines, "Nothing was written or sent."]


def why_lines(found: "Plan") -> list[str]:
    """Return why the requests are asked, and which parts of a task changed."""
    from claude_batch_dagster.verbs.reasons import explain_reasons

    return explain_reasons(found.reasons, found.changed_parts)


def explain_limit(limit: int, source_rows: int) -> str:
    """Return what a limit does to this output."""
    return (
        f"only the first {count(limit, 'row')} of {source_rows:,} (--limit {limit}); the output says so. Without --limit the same command "
        "asks the rest, and pays for nothing twice."
    )


def count_source_rows(job: "Job") -> int:
    """Return the rows that the source has without a limit, from the files' footers."""
    from claude_batch_dagster.storage.source import Source

    source = Source(job.source)
    return sum(source.row_count(file) for file in source.files)


def preview_object(known: Known, found: "Plan") -> dict[str, object]:
    """Return the JSON object of `plan`."""
    total = found.total
    return {
        "root": known.root,
        "output": known.output,
        "rows": {"total": total.rows, **dict.fromkeys(STATUSES, 0), "skipped": total.skipped, "errored": total.too_large},
        "requests": {"asked": total.asked, "already_answered": total.already_answered, "in_flight": total.in_flight},
        "reasons": reason_counts(found.reasons),
        "changed_parts": {name: list(parts) for name, parts in found.changed_parts.items()},
        "limit": found.limit,
        "batches": found.batches,
        "tokens": planned_tokens(found),
        "cost_usd": {"expected": to_usd(found.expected_nano_usd), "worst": to_usd(found.worst_nano_usd)},
        "assumption": " ".join(assumptions(found)) or None,
        "example": None if found.example is None else json.loads(found.example),
        "exit_code": 0,
        "error": None,
    }


def reason_counts(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return every reason with its count, 0 where it did not occur."""
    from claude_batch_dagster.verbs.reasons import Reason

    return {reason.value: reasons.get(reason, 0) for reason in Reason}


def assumptions(found: "Plan") -> list[str]:
    """Return the sentences that say what the expected cost rests on."""
    return sorted({estimate.assumption for estimate in found.estimates.values() if estimate.assumption})


def planned_tokens(found: "Plan") -> dict[str, int]:
    """Return the tokens that are expected."""
    estimates = found.estimates.values()
    return {"input": sum(one.expected_input_tokens for one in estimates), "output": sum(one.expected_output_tokens for one in estimates)}
