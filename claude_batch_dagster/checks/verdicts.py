"""From what was found in each partition to one evaluation of a check: red or not, the numbers, and the rows to look at."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from claude_batch_dagster.checks.findings import Finding, PublishedAsset
from claude_batch_dagster.checks.limits import Limit
from claude_batch_dagster.reporting.metadata import UNPUBLISHED
from claude_batch_dagster.reporting.queries import show_command

SHOWN_PARTITIONS = 5
LISTED_PARTITIONS = 100


def judge(asset: PublishedAsset, limit: Limit, severity: dg.AssetCheckSeverity) -> dg.AssetCheckResult:
    """Return a check's evaluation: one partition beyond the limit fails it."""
    findings = [limit.find(asset, partition) for partition in asset.files]
    missing = [key for key in asset.partitions or () if key not in asset.files]
    failed = [finding for finding in findings if not finding.ok]
    measured = [finding for finding in findings if finding.value is not None]
    furthest = (min if limit.least else max)(measured, key=lambda one: one.value or 0, default=None)
    shown = next((finding for finding in failed if finding.sql), failed[0] if failed else None)
    metadata: dict[str, Any] = {}
    if asset.definition is not None:
        metadata["partitions"] = _name_partitions(list(asset.files))
    if furthest is not None and furthest.value is not None:
        metadata["value"] = furthest.value
    if limit.number is not None:
        metadata["limit"] = limit.number
    if len(findings) > 1:
        metadata["by_partition"] = dg.MetadataValue.json(
            {str(finding.partition): finding.value for finding in (failed or findings)[:LISTED_PARTITIONS]}
        )
    description = _describe(limit, findings, failed, furthest, missing)
    if shown is not None and shown.sql is not None:
        of = f" of {shown.partition}" if len(findings) > 1 else ""
        description += f"\n\nRows{of} to look at:\n\n{show_command(shown.sql)}"
        metadata["sql"] = shown.sql
    return dg.AssetCheckResult(
        asset_key=asset.key,
        check_name=limit.name,
        passed=bool(findings) and not failed and not (missing and limit.name == "coverage"),
        severity=severity,
        description=description,
        metadata=metadata,
    )


def _describe(
    limit: Limit, findings: Sequence[Finding], failed: Sequence[Finding], furthest: Finding | None, missing: Sequence[str]
) -> str:
    """Return the verdict in a sentence, and what it is made of after it; as Markdown, which Dagster's UI shows it as."""
    unpublished = f" Nothing is published of {_name_partitions(missing)}." if missing else ""
    if not findings:
        return unpublished.strip() or UNPUBLISHED
    beyond = f"{'below' if limit.least else 'beyond'} {limit.shown}"
    if len(findings) == 1:
        (one,) = findings
        said = "" if one.value is None else f"; {limit.shown}" if one.ok else f", {beyond}"
        detail = f"\n\n{_sentence(one.detail)}." if one.detail else ""
        return f"{_sentence(one.text)}{said}.{unpublished}{detail}"
    if failed:
        each = "".join(f"\n- {finding.partition}: {_whole(finding)}" for finding in failed[:SHOWN_PARTITIONS])
        more = f"\n- and {len(failed) - SHOWN_PARTITIONS} more" if len(failed) > SHOWN_PARTITIONS else ""
        return f"{len(failed)} of {len(findings)} partitions {'is' if len(failed) == 1 else 'are'} {beyond}.{unpublished}\n{each}{more}"
    last = "" if furthest is None else f"\n\nThe furthest is {furthest.partition}: {_whole(furthest)}."
    return f"All {len(findings)} partitions are within {limit.shown}.{unpublished}{last}"


def _whole(finding: Finding) -> str:
    return f"{finding.text} ({finding.detail})" if finding.detail else finding.text


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}".removesuffix(".")


def _name_partitions(keys: Sequence[str | None]) -> str:
    if len(keys) <= SHOWN_PARTITIONS:
        return ", ".join(map(str, keys))
    return f"{keys[0]} to {keys[-1]} ({len(keys)} partitions)"
