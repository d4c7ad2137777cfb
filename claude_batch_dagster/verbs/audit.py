"""Audit: the vendor's list of the last 29 days against a root's records, as findings. Reads only; a worker, which has the key, compares."""

import asyncio
import uuid
from datetime import timedelta

from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errors import RootError, RunError, TemporalUnavailableError
from claude_batch_dagster.core.recovery_contract import AUDIT_ID_PREFIX, AUDIT_WORKFLOW_TYPE, AuditedBatch, AuditInput, AuditReport
from claude_batch_dagster.storage.plans import read_root
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.aging import warn_of_aging
from claude_batch_dagster.verbs.connection import Connection, connect, find_reason
from claude_batch_dagster.verbs.upkeep import examine_indexes

AUDIT_TIMEOUT = timedelta(hours=2)
RECOVER = "Harvest them, with the arguments of the run that asked: claude-batch recover"


async def ask_for_audit(root: str, connection: Connection) -> AuditReport:
    """Have a worker compare the vendor's list with the root's records.

    Raises:
        RootError: Terminal. The root has no records.
        RunError: Terminal. The worker cannot, and why.
        TemporalUnavailableError: Transient. No server answers, or no worker within two hours.
    """
    store = Store(root)
    if read_root(store) is None:
        raise RootError(
            f"The root {store.uri} has no root.json: it was never used, or it lost its records. Nothing was compared. "
            "Harvest what runs of lost records paid for, with their arguments: claude-batch recover"
        )
    client = await connect(connection)
    try:
        handle = await client.start_workflow(
            AUDIT_WORKFLOW_TYPE,
            AuditInput(root=store.uri),
            id=f"{AUDIT_ID_PREFIX}{uuid.uuid4()}",
            task_queue=connection.task_queue,
            result_type=AuditReport,
            execution_timeout=AUDIT_TIMEOUT,
            static_summary="claude-batch doctor --audit",
        )
        report: AuditReport = await handle.result()
    except WorkflowFailureError as error:
        raise RunError(f"The audit ended early: {find_reason(error)} Type the command again.") from error
    except RPCError as error:
        raise TemporalUnavailableError(f"The audit cannot be made: {error}. Try again.") from error
    return report


def describe_audit(report: AuditReport, aging: list[str]) -> tuple[Finding, ...]:
    """Return what an audit found, the worst last; `fail` where something is paid and not accounted for.

    Args:
        report: Of the worker.
        aging: Sentences on batches whose results go soon.
    """
    found = [
        Finding(
            name="batches",
            status=Health.OK,
            detail=f"{_batches(report.listed)} listed of the last 29 days: {report.recorded:,} of this root's runs, {report.recovered:,} recovered, "
            f"{report.foreign:,} of others.",
        )
    ]
    if report.gone:
        found.append(Finding(name="collected", status=Health.OK, detail=f"{_batches(report.gone)} collected, and deleted since."))
    kinds = (
        (
            "in progress",
            report.in_progress,
            Health.WARN,
            "in_progress",
            "in no record and not ended: whose they are shows at their end",
            "If this root may have lost records: claude-batch recover. Else they are of others.",
        ),
        (
            "unreadable",
            report.unreadable,
            Health.WARN,
            "unreadable",
            "in no record, and their results cannot be read",
            "Look at them in the Console.",
        ),
        (
            "answered twice",
            report.twice_unknown,
            Health.WARN,
            "twice_unknown",
            "have two answers, one of them from before records were lost",
            "Asked again on purpose, or paid twice: nobody knows any more.",
        ),
        ("strays", report.strays, Health.FAIL, "strays", "came after their shard was given up, and are not stored", RECOVER),
        (
            "not stored",
            report.unstored,
            Health.FAIL,
            "unstored",
            "by their custom_ids of this product, in no record of this root, and not (wholly) stored",
            f"{RECOVER}. Another root of this workspace may have them: then nothing is missing.",
        ),
        (
            "lost",
            report.lost,
            Health.FAIL,
            "lost",
            "of this root's runs have no results any more, and were not collected",
            "Their requests are asked again by the next run: claude-batch status shows the runs.",
        ),
        (
            "paid twice",
            report.paid_twice,
            Health.FAIL,
            "paid_twice",
            "have two answers that nobody asked for twice",
            "Please report this with the root's log/, rounds/ and submissions/.",
        ),
    )
    for name, number, health, kind, what, remedy in kinds:
        if number:
            noun = "request" if kind in ("paid_twice", "twice_unknown") else "batch"
            detail = f"{_count(number, noun)} {what}.{_name_examples(report.examples.get(kind, ()), number)}"
            found.append(Finding(name=name, status=health, detail=detail, remedy=remedy))
    return (*found, *(Finding(name="29 days", status=Health.WARN, detail=text, remedy="") for text in aging))


def audit_root(root: str, connection: Connection) -> tuple[AuditReport, tuple[Finding, ...]]:
    """Audit a root; return what the worker counted, and the findings, those on the index of the answers among them.

    Raises:
        RunError: Terminal. The worker cannot, and why.
        TemporalUnavailableError: Transient.
    """
    report = asyncio.run(ask_for_audit(root, connection))
    return report, (*describe_audit(report, warn_of_aging(Store(root))), *examine_indexes(root))


def _name_examples(examples: tuple[AuditedBatch, ...], number: int) -> str:
    shown = [f"{one.id}{f' of {one.run}' if one.run else ''} ({one.note})" for one in examples[:5]]
    more = ", ..." if len(shown) < number and shown else ""
    return f" {', '.join(shown)}{more}" if shown else ""


def _batches(number: int) -> str:
    return _count(number, "batch")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun == 'batch' else 's'}"
