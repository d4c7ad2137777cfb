"""What `plan` shows: rows, requests, cost, and one rendered example."""

import json
from typing import TYPE_CHECKING

from claude_batch_dagster.cli.reach import Place
from claude_batch_dagster.cli.report import STATUSES, Known
from claude_batch_dagster.cli.wording import NANO, SIMULATED, batches, nano_usd

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.plan import Plan

EXAMPLE_CHARACTERS = 600


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
        f"Requests  {total.asked:,} to ask in {batches(found.batches)}, {total.already_answered:,} already answered, {total.in_flight:,} in flight",
        f"Cost      expected {nano_usd(found.expected_nano_usd)}, at most {nano_usd(found.worst_nano_usd)}",
    ]
    lines += [f"          {sentence}" for sentence in assumptions(found)]
    lines += [f"Left out  {partition}: {reason}" for partition, reason in found.bad_partitions.items()]
    lines += [f"Warning   {warning}" for warning in found.warnings]
    if found.example is not None:
        lines += ["Example   the first request, without its schema:", *(f"  {line}" for line in example_lines(found.example))]
    return [*lines, "Nothing was written or sent."]


def example_lines(example: str) -> list[str]:
    """Return what Claude would read of a request: the messages and the system prompt, each cut to a few lines."""
    params = json.loads(example)
    texts = [(message["role"], message["content"]) for message in params["messages"]]
    if "system" in params:
        texts.append(("system", params["system"]))
    lines = []
    for role, content in texts:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        cut = text if len(text) <= EXAMPLE_CHARACTERS else f"{text[:EXAMPLE_CHARACTERS].rstrip()} ... ({len(text):,} characters)"
        lines += [f"{role}:", *(f"  {line}" for line in cut.splitlines())]
    return lines


def preview_object(known: Known, found: "Plan") -> dict[str, object]:
    """Return the JSON object of `plan`."""
    total = found.total
    return {
        "root": known.root,
        "output": known.output,
        "rows": {"total": total.rows, **dict.fromkeys(STATUSES, 0), "skipped": total.skipped, "errored": total.too_large},
        "requests": {"asked": total.asked, "already_answered": total.already_answered, "in_flight": total.in_flight},
        "batches": found.batches,
        "tokens": planned_tokens(found),
        "cost_usd": {"expected": _usd(found.expected_nano_usd), "worst": _usd(found.worst_nano_usd)},
        "assumption": " ".join(assumptions(found)) or None,
        "example": None if found.example is None else json.loads(found.example),
        "exit_code": 0,
        "error": None,
    }


def assumptions(found: "Plan") -> list[str]:
    """Return the sentences that say what the expected cost rests on."""
    return sorted({estimate.assumption for estimate in found.estimates.values() if estimate.assumption})


def planned_tokens(found: "Plan") -> dict[str, int]:
    """Return the tokens that are expected."""
    estimates = found.estimates.values()
    return {"input": sum(one.expected_input_tokens for one in estimates), "output": sum(one.expected_output_tokens for one in estimates)}


def _usd(amount_nano: int | None) -> float | None:
    return None if amount_nano is None else amount_nano / NANO
