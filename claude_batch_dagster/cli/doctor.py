"""`doctor`: looks at everything that a run needs, and says what to do about what is missing."""

import asyncio
import json
from typing import TYPE_CHECKING

import click

from claude_batch_dagster.cli.options import GroupedCommand, option, root_option, simulate_option
from claude_batch_dagster.cli.reach import Reach, find_place
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.cli.run import json_option
from claude_batch_dagster.cli.tasks import DEFAULT_MODEL
from claude_batch_dagster.cli.wording import SIMULATED, count

if TYPE_CHECKING:
    from claude_batch_dagster.core.contract import Finding
    from claude_batch_dagster.verbs.connection import Connection

MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}
COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(
    cls=GroupedCommand,
    short_help="Look at key, model, limits, Temporal, workers, root.",
    examples=(
        ("before the first run", "claude-batch doctor"),
        ("with another model", "claude-batch doctor --model claude-sonnet-5-5"),
        ("is all that was paid for there?", "claude-batch doctor --audit"),
    ),
)
@option("What", "--model", "models", multiple=True, metavar="MODEL", help=f"Model to ask for; repeatable.  [default: {DEFAULT_MODEL}]")
@option(
    "What",
    "--audit",
    is_flag=True,
    help="Compare the list of batches of the last 29 days at Anthropic with the root's records: is everything that was paid for there?",
)
@root_option
@simulate_option
@json_option
@click.pass_obj
def doctor(known: Known, /, models: tuple[str, ...], audit: bool, root: str | None, simulate: bool, as_json: bool) -> int:
    """Look at everything that a run needs: key, endpoint, model, Temporal, workers, root, clock, versions; say what to do about each.

    Nothing is asked of Claude and nothing is paid. Without TEMPORAL_ADDRESS the local server and worker are started, and ended afterwards.

    Exit codes: 0 nothing stands in the way of a run; 1 something does, or with --audit: something is paid for and not accounted for.
    """
    from claude_batch_dagster.verbs.doctor import examine

    place = find_place(root, simulate=simulate, needs_key=False)
    known.root = place.root
    click.echo(f"Root {place.root}" + (f"   {SIMULATED}" if place.simulated else ""), err=True)
    with Reach(place, lambda line: click.echo(line, err=True)) as connection:
        if audit:
            return show_audit(place.root, connection, as_json=as_json)
        findings = asyncio.run(examine(place.root, connection, models or (DEFAULT_MODEL,), simulate=place.simulate))
    code = 1 if any(finding.status.value == "fail" for finding in findings) else 0
    if as_json:
        told = [{"name": one.name, "status": one.status.value, "detail": one.detail, "remedy": one.remedy or None} for one in findings]
        click.echo(json.dumps({"root": place.root, "findings": told, "exit_code": code, "error": None}))
    else:
        click.echo("\n".join(finding_lines(findings)))
    return code


def show_audit(root: str, connection: "Connection", *, as_json: bool) -> int:
    """Audit a root, say what was found; return the exit code."""
    from dataclasses import asdict

    from claude_batch_dagster.verbs.audit import audit_root

    report, findings = audit_root(root, connection)
    failed = [finding for finding in findings if finding.status.value == "fail"]
    if as_json:
        told = [{"name": one.name, "status": one.status.value, "detail": one.detail, "remedy": one.remedy or None} for one in findings]
        click.echo(json.dumps({"root": root, "audit": asdict(report), "findings": told, "exit_code": int(bool(failed)), "error": None}))
    else:
        last = "Something is paid for and not accounted for." if failed else "Everything that is paid for is accounted for."
        click.echo("\n".join([*finding_lines(findings)[:-1], last]))
    return int(bool(failed))


def finding_lines(findings: "tuple[Finding, ...]") -> list[str]:
    """Return a line a finding, its remedy below it, and what they mean together."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        status = finding.status.value
        lines.append(f"{click.style(f'{MARKS[status]:<4}', fg=COLORS[status])}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy and status != "ok":
            lines.append(f"{'':<{width + 8}}do: {finding.remedy}")
    numbers = {status: sum(finding.status.value == status for finding in findings) for status in MARKS}
    if numbers["fail"]:
        return [*lines, f"{count(numbers['fail'], 'thing stands', 'things stand')} in the way of a run."]
    warned = f"; {count(numbers['warn'], 'warning')}" if numbers["warn"] else ""
    return [*lines, f"Nothing stands in the way of a run{warned}."]
