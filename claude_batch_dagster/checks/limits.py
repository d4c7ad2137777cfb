"""The limits of `build_claude_batch_checks`, from its arguments: one check each, and what cannot be meant is refused."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.checks.findings import (
    Finding,
    PublishedAsset,
    find_cost,
    find_cost_per_row,
    find_coverage,
    find_drift,
    find_failures,
    find_refusals,
    find_strange_labels,
    find_truncations,
)
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.core.schema import Field, FieldType

CHECK_NAMES = ("coverage", "failure_rate", "refusal_rate", "truncation_rate", "allowed_labels", "label_drift", "cost", "cost_per_row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One check of one asset.

    Attributes:
        name: Of the check.
        shown: The argument and its value, for people.
        number: For the metadata; None where the limit is no number.
        describe: What the check says it does.
        find: Looks at one partition.
        least: Whether the limit is the least value, not the most.
    """

    name: str
    shown: str
    number: float | None
    describe: str
    find: Callable[[PublishedAsset, str | None], Finding]
    least: bool = False


def plain_limits(
    *,
    min_coverage: float | None,
    max_failure_rate: float | None,
    max_refusal_rate: float | None,
    max_truncation_rate: float | None,
    max_cost_usd: float | None,
    max_cost_usd_per_row: float | None,
) -> list[Limit]:
    """Return the limits that are the same for every asset.

    Raises:
        UsageError: Terminal. One is out of range.
    """
    for name, share in (
        ("min_coverage", min_coverage),
        ("max_failure_rate", max_failure_rate),
        ("max_refusal_rate", max_refusal_rate),
        ("max_truncation_rate", max_truncation_rate),
    ):
        _refuse_share(name, share)
    for name, amount in (("max_cost_usd", max_cost_usd), ("max_cost_usd_per_row", max_cost_usd_per_row)):
        if amount is not None and amount < 0:
            raise UsageError(f"build_claude_batch_checks has {name}={amount}; it is an amount in USD. Give 0 or more.")
    plain: list[Limit] = []
    if min_coverage is not None:
        plain.append(
            Limit(
                name="coverage",
                shown=f"min_coverage={min_coverage:g}",
                number=min_coverage,
                describe=f"At least {min_coverage:.6g} of the source's rows are in the output, with an answer or a reason why there is none.",
                find=lambda asset, partition: find_coverage(asset, partition, min_coverage),
                least=True,
            )
        )
    rates = (
        ("failure_rate", max_failure_rate, find_failures, "have no usable answer, or none yet"),
        ("refusal_rate", max_refusal_rate, find_refusals, "were refused"),
        ("truncation_rate", max_truncation_rate, find_truncations, "were truncated"),
    )
    for name, most, find, words in rates:
        if most is not None:
            plain.append(_limit(name, f"max_{name}", most, f"At most {most:.6g} of the rows that were asked about {words}.", find))
    costs = (
        ("cost", "max_cost_usd", max_cost_usd, find_cost, "The newest materialization cost at most {}."),
        ("cost_per_row", "max_cost_usd_per_row", max_cost_usd_per_row, find_cost_per_row, "Each row that was asked about cost at most {}."),
    )
    for name, argument, most, find, text in costs:
        if most is not None:
            plain.append(_limit(name, argument, most, text.format(usd(most)), find))
    return plain


def _limit(name: str, argument: str, most: float, describe: str, find: Callable[[PublishedAsset, str | None, float], Finding]) -> Limit:
    return Limit(
        name=name,
        shown=f"{argument}={most:g}",
        number=most,
        describe=describe,
        find=lambda asset, partition: find(asset, partition, most),
    )


def label_limits(allowed: Mapping[str, Sequence[str]] | None, drift: Mapping[str, float] | None) -> Iterator[Limit]:
    """Yield the limits of one asset's labels, by column."""
    if allowed is not None:
        columns = "; ".join(f"{column}: {', '.join(labels)}" for column, labels in allowed.items())
        yield Limit(
            name="allowed_labels",
            shown="allowed_labels",
            number=0,
            describe=f"Only allowed labels occur ({columns}).",
            find=lambda asset, partition: find_strange_labels(asset, partition, allowed),
        )
    if drift is not None:
        columns = ", ".join(f"{column} {most:g}" for column, most in drift.items())
        yield Limit(
            name="label_drift",
            shown=f"max_label_drift={next(iter(drift.values())):g}" if len(drift) == 1 else f"max_label_drift ({columns})",
            number=next(iter(drift.values())) if len(drift) == 1 else None,
            describe=f"The total variation distance between the labels here and in earlier partitions is at most: {columns}.",
            find=lambda asset, partition: find_drift(asset, partition, drift),
        )


def by_asset(argument: str, given: Any, asked: Sequence[tuple[dg.AssetSpec, AskedAsset]]) -> dict[dg.AssetKey, dict[str, Any]]:
    """Return the limits by asset and column; what is given without a column is for the label columns that each asset has.

    Raises:
        UsageError: Terminal. A column that no task has, or none that is meant, or more than one.
    """
    if given is None:
        return {}
    if argument == "max_label_drift":
        for column, share in (given if isinstance(given, Mapping) else {"": given}).items():
            _refuse_share(f"max_label_drift{f' of {column!r}' if column else ''}", share)
    by_column = isinstance(given, Mapping)
    found: dict[dg.AssetKey, dict[str, Any]] = {}
    for spec, one in asked:
        names = [field.name for field in one.task.fields]
        if by_column:
            columns = {column: given[column] for column in given if column in names}
        else:
            labels = _label_columns(one.task.fields)
            if argument == "allowed_labels" and len(labels) > 1:
                raise UsageError(
                    f"{spec.key.to_user_string()} has {len(labels)} label columns ({', '.join(labels)}), and allowed_labels does not say which. "
                    f"Name it: allowed_labels={{{labels[0]!r}: [...]}}."
                )
            columns = dict.fromkeys(labels, given)
        if columns:
            found[spec.key] = columns
    lost = [column for column in given if not any(column in columns for columns in found.values())] if by_column else []
    if lost or not found:
        there = sorted({field.name for _, one in asked for field in one.task.fields})
        what = f"the column {lost[0]!r}" if lost else "label columns, and none of these assets has one that is an enum of texts"
        raise UsageError(
            f"{argument} is about {what}; the tasks have {', '.join(there)}. Name one of them: {argument}={{{there[0]!r}: ...}}."
        )
    return found


def _label_columns(fields: Sequence[Field]) -> list[str]:
    return [field.name for field in fields if field.type is FieldType.STRING and field.values]


def _refuse_share(name: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        percent = share if 1 < share <= 100 else 5
        raise UsageError(
            f"build_claude_batch_checks has {name}={share}; it is a share, 0 to 1. For {percent:g} % write {name.split(' ')[0]}={percent / 100:g}."
        )


def read_severities(given: Any, there: Collection[str]) -> dict[str, dg.AssetCheckSeverity]:
    """Return the severity of each check.

    Args:
        given: One for all, or by check.
        there: The checks that have a limit.

    Raises:
        UsageError: Terminal. There is no such check, or no such severity.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(CHECK_NAMES, _read_severity(given))
    _refuse_strangers("severity", list(given), there)
    return {name: _read_severity(given.get(name, dg.AssetCheckSeverity.ERROR)) for name in CHECK_NAMES}


def _read_severity(given: Any) -> dg.AssetCheckSeverity:
    try:
        return dg.AssetCheckSeverity(given)
    except ValueError:
        names = " or ".join(repr(one.value) for one in dg.AssetCheckSeverity)
        raise UsageError(f"build_claude_batch_checks has the severity {given!r}. Write {names}.") from None


def read_blockers(given: bool | Sequence[str], there: Collection[str]) -> Sequence[str]:
    """Return the names of the checks that block.

    Args:
        given: All or none of them, or names.
        there: The checks that have a limit.

    Raises:
        UsageError: Terminal. There is no such check.
    """
    if isinstance(given, bool):
        return CHECK_NAMES if given else ()
    names = [given] if isinstance(given, str) else list(given)
    _refuse_strangers("blocking", names, there)
    return names


def _refuse_strangers(argument: str, names: Sequence[str], there: Collection[str]) -> None:
    strange = [name for name in names if name not in CHECK_NAMES]
    if strange:
        raise UsageError(f"{argument} names the check {strange[0]!r}; there are {', '.join(CHECK_NAMES)}. Name one of these.")
    absent = [name for name in names if name not in there]
    if absent:
        raise UsageError(
            f"{argument} names the check {absent[0]!r}, and no limit of that check is given; there are {', '.join(there)}. Give its limit, or leave "
            "the name out."
        )
