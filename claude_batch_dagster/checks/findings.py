"""What each check finds in one published partition: a number, whether it is within the limit, and the rows to look at."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.core.status import FAILED_STATUSES
from claude_batch_dagster.reporting.history import HISTORY, Past, in_order, newest_by_partition, read_history
from claude_batch_dagster.reporting.queries import SHOWN_ROWS, quote_name, quote_text, select_rows

if TYPE_CHECKING:
    from claude_batch_dagster.storage.source import Source
    from claude_batch_dagster.storage.store import Store

MIN_COMPARED_ROWS = 30
"""Shares of fewer rows differ by chance alone as much as by a drift that is worth an alert."""
COMPARED_PARTITIONS = 30
MAX_HISTORY = 1_000
SHOWN_LABELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check finds in one partition.

    Attributes:
        partition: None for an asset without partitions.
        value: The number that is compared with the limit; None where there is none.
        ok: Whether it is within the limit.
        text: The number against what it is a part of, without the limit.
        detail: What lies behind the number, if anything.
        sql: A query for the rows to look at, for DuckDB; None where there are none.
    """

    partition: str | None
    value: float | None
    ok: bool
    text: str
    detail: str = ""
    sql: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedAsset:
    """One asset's published files, and what its materializations said.

    Attributes:
        key: The asset.
        asked: What it asks.
        definition: Its partitions.
        endpoint: Whose answers are looked at.
        store: The output's folder.
        open_source: Returns the source of a partition.
        instance: For what earlier materializations said.
        partitions: Of the run; None for all that are published.
    """

    key: dg.AssetKey
    asked: AskedAsset
    definition: "dg.PartitionsDefinition[str] | None"
    endpoint: str
    store: "Store"
    open_source: "Callable[[str | None, str], Source]"
    instance: dg.DagsterInstance
    partitions: Sequence[str] | None = None
    _counted: dict[tuple[str | None, str], Counter[str]] = field(default_factory=dict, init=False)

    @cached_property
    def files(self) -> dict[str | None, str]:
        """The files that are looked at, by partition."""
        from claude_batch_dagster.storage.published import list_published

        found = list_published(self.store)
        if self.definition is None:
            return {None: found[None]} if None in found else {}
        there = {key: path for key, path in found.items() if key is not None}
        wanted = there if self.partitions is None else [key for key in self.partitions if key in there]
        return {key: there[key] for key in (in_order(wanted, self.definition) if self.partitions is None else wanted)}

    @cached_property
    def history(self) -> list[Past]:
        """What its materializations said, the newest first, simulated ones apart from real ones."""
        limit = min(MAX_HISTORY, max(HISTORY, 2 * len(self.files)))
        return [past for past in read_history(self.instance, self.key, limit=limit) if past.endpoint == self.endpoint]

    @cached_property
    def newest(self) -> dict[str | None, Past]:
        """The newest materialization of each partition."""
        return newest_by_partition(self.history)

    def statuses(self, partition: str | None) -> Counter[str]:
        """Return a partition's rows by status."""
        from claude_batch_dagster.storage.label_counts import count_column

        return self._count(partition, "status", count_column)

    def labels(self, partition: str | None, column: str) -> Counter[str]:
        """Return a partition's answered rows by label."""
        from claude_batch_dagster.storage.label_counts import count_values

        return self._count(partition, column, count_values)

    def _count(self, partition: str | None, column: str, count: "Callable[[Store, str, str], Counter[str]]") -> Counter[str]:
        if (partition, column) not in self._counted:
            self._counted[partition, column] = count(self.store, self.files[partition], column)
        return self._counted[partition, column]

    def earlier(self, partition: str | None) -> list[Past]:
        """Return what a partition is compared with, at most COMPARED_PARTITIONS, the nearest first.

        Without partitions: the materializations before the newest. Partitions of time: those before it. Others: all others.
        """
        if self.definition is None:
            return self.history[1 : 1 + COMPARED_PARTITIONS]
        keys = [key for key in self.newest if key is not None]
        if isinstance(self.definition, dg.TimeWindowPartitionsDefinition):
            ordered = in_order({*keys, partition or ""}, self.definition)
            keys = ordered[: ordered.index(partition or "")][::-1]
        return [self.newest[key] for key in keys if key != partition][:COMPARED_PARTITIONS]

    def select(self, partition: str | None, what: Sequence[str], where: str) -> str:
        """Return a query for rows of a partition, in DuckDB's SQL."""
        return select_rows(what, self.file(partition), where)

    def file(self, partition: str | None) -> str:
        """Return a partition's file, whole."""
        return f"{self.store.uri}/{self.files[partition]}"

    @cached_property
    def key_columns(self) -> Sequence[str]:
        """The key's columns that the output carries."""
        return self.asked.carried_keys


def find_coverage(asset: PublishedAsset, partition: str | None, least: float) -> Finding:
    """Compare the source's keys with the output's."""
    from claude_batch_dagster.storage.coverage import compare_keys

    try:
        source = asset.open_source(partition, asset.files[partition])
        found = compare_keys(source, partition, asset.store, asset.files[partition], asset.asked.source.key_columns)
        files = [source.name(file) for file in source.files_of(partition)]
    except (OutputError, SourceError) as error:
        return Finding(partition=partition, value=None, ok=False, text=f"the source cannot be compared: {error}")
    share = found.covered_rows / found.source_rows if found.source_rows else 1.0
    text = f"{found.covered_rows:,} of {found.source_rows:,} rows of the source have an answer or a reason ({_percent(share)})"
    if found.pending_rows:
        text += f", {found.pending_rows:,} are pending"
    details = []
    if found.missing:
        more = found.source_rows - found.covered_rows - len(found.missing)
        details.append(f"without: {', '.join(found.missing)}{f' and {more:,} more' if more else ''}")
    if not found.by_key:
        details.append("the output does not carry the key: only the counts were compared")
    sql = None
    if found.missing:
        names = ", ".join(map(quote_name, asset.key_columns))
        read = quote_text(files[0]) if len(files) == 1 else f"read_parquet([{', '.join(map(quote_text, files))}])"
        there = f"FROM {quote_text(asset.file(partition))} WHERE status <> 'pending'"
        sql = f"SELECT {names}\nFROM {read}\nANTI JOIN ({there})\nUSING ({names}) LIMIT {SHOWN_ROWS}"
    return Finding(partition=partition, value=share, ok=share >= least, text=text, detail="; ".join(details), sql=sql)


def find_rate(asset: PublishedAsset, partition: str | None, most: float, statuses: Sequence[str], words: str) -> Finding:
    """Return which share of the rows that were asked about ended with one of these statuses."""
    rows = asset.statuses(partition)
    asked = rows.total() - rows["skipped"]
    counted = {status: rows[status] for status in statuses if rows[status]}
    number = sum(counted.values())
    rate = number / asked if asked else 0.0
    kinds = f": {', '.join(f'{count:,} {status}' for status, count in counted.items())}" if counted and len(statuses) > 1 else ""
    text = f"{number:,} of {asked:,} rows {words} ({_percent(rate)}{kinds})"
    where = f"status IN ({', '.join(map(quote_text, counted))})"
    sql = asset.select(partition, [*asset.key_columns, "status", "error"], where) if counted else None
    return Finding(partition=partition, value=rate, ok=rate <= most, text=text, sql=sql)


def find_failures(asset: PublishedAsset, partition: str | None, most: float) -> Finding:
    """Return the share of rows without a usable answer, or none yet."""
    return find_rate(asset, partition, most, FAILED_STATUSES, "have no answer")


def find_refusals(asset: PublishedAsset, partition: str | None, most: float) -> Finding:
    """Return the share of rows that Claude refused to answer."""
    return find_rate(asset, partition, most, ("refused",), "were refused")


def find_truncations(asset: PublishedAsset, partition: str | None, most: float) -> Finding:
    """Return the share of rows whose answer reached `max_tokens`."""
    return find_rate(asset, partition, most, ("truncated",), "were truncated")


def find_strange_labels(asset: PublishedAsset, partition: str | None, allowed: Mapping[str, Sequence[str]]) -> Finding:
    """Return how many answered rows have a label that is none of the allowed ones; no label at all is none of them."""
    from claude_batch_dagster.storage.label_counts import NO_LABEL

    strange, texts, shares, where = 0, [], [], []
    answered = asset.statuses(partition)["succeeded"]
    for column, labels in allowed.items():
        found = Counter({label: count for label, count in asset.labels(partition, column).items() if label not in (*labels, NO_LABEL)})
        if not found.total():
            continue
        strange += found.total()
        shown = [f"{label!r} {count:,}" for label, count in found.most_common(SHOWN_LABELS) if count]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        texts.append(f"{found.total():,} of {answered:,} answered rows have another {column}")
        shares.append(f"{column}: {', '.join(shown)}{more}")
        where.append(f"{quote_name(column)} NOT IN ({', '.join(map(quote_text, labels))})")
    sql = asset.select(partition, [*asset.key_columns, *allowed], " OR ".join(where)) if where else None
    text = "; ".join(texts) or f"all {answered:,} answered rows have an allowed label"
    return Finding(partition=partition, value=float(strange), ok=not strange, text=text, detail="; ".join(shares), sql=sql)


def find_drift(asset: PublishedAsset, partition: str | None, most: Mapping[str, float]) -> Finding:
    """Return the total variation distance between a partition's labels and those of earlier ones: 0 for the same shares, 1 for no label in common.

    It is half the sum of the differences of the shares: the share of rows that would need another label for the two to be alike.
    """
    worst: Finding | None = None
    earlier = asset.earlier(partition)
    for column, limit in most.items():
        now = asset.labels(partition, column)
        before: Counter[str] = Counter()
        for past in earlier:
            before.update(past.labels.get(column, {}))
        found = _compare_labels(asset, partition, column, now, before, limit)
        if worst is None or (worst.ok and (not found.ok or (found.value or 0) > (worst.value or 0))):
            worst = found
    assert worst is not None, "there is a limit for at least one column"
    return worst


def _compare_labels(
    asset: PublishedAsset, partition: str | None, column: str, now: Counter[str], before: Counter[str], limit: float
) -> Finding:
    rows, former = now.total(), before.total()
    if min(rows, former) < MIN_COMPARED_ROWS:
        text = f"too few rows to compare {column}: {rows:,} now, {former:,} before, and {MIN_COMPARED_ROWS} are needed"
        if not former:
            text = f"nothing earlier to compare {column} with"
        return Finding(partition=partition, value=None, ok=True, text=text)
    moves = {label: now[label] / rows - before[label] / former for label in {*now, *before}}
    distance = sum(map(abs, moves.values())) / 2
    furthest = sorted(moves, key=lambda label: (-abs(moves[label]), label))[:SHOWN_LABELS]
    shown = ", ".join(f"{label} {_percent(before[label] / former)} to {_percent(now[label] / rows)}" for label in furthest if moves[label])
    text = f"the distance of {column} from {former:,} earlier rows is {distance:.3f}"
    grown = max(moves, key=lambda label: (moves[label], label))
    sql = asset.select(partition, [*asset.key_columns, column], f"{quote_name(column)} = {quote_text(grown)}") if distance else None
    return Finding(partition=partition, value=distance, ok=distance <= limit, text=text, detail=shown, sql=sql)


def find_cost(asset: PublishedAsset, partition: str | None, most: float) -> Finding:
    """Return what the newest materialization of a partition cost."""
    past = asset.newest.get(partition)
    if past is None or past.cost_usd is None:
        return _no_cost(partition, past)
    return Finding(partition=partition, value=past.cost_usd, ok=past.cost_usd <= most, text=f"it cost {usd(past.cost_usd)}")


def find_cost_per_row(asset: PublishedAsset, partition: str | None, most: float) -> Finding:
    """Return what the newest materialization of a partition cost for each request that it asked."""
    past = asset.newest.get(partition)
    if past is None or past.cost_usd is None:
        return _no_cost(partition, past)
    if not past.requests:
        return Finding(partition=partition, value=0.0, ok=True, text="nothing was asked")
    each = past.cost_usd / past.requests
    text = f"${each:.6f} a row ({usd(past.cost_usd)} for {past.requests:,} that were asked)"
    shown = ", ".join(map(quote_name, [*asset.key_columns, "input_tokens", "output_tokens", "cost_usd"]))
    dearest = f"SELECT {shown}\nFROM {quote_text(asset.file(partition))}\nORDER BY cost_usd DESC NULLS LAST LIMIT {SHOWN_ROWS}"
    return Finding(partition=partition, value=each, ok=each <= most, text=text, sql=dearest)


def _no_cost(partition: str | None, past: Past | None) -> Finding:
    why = "its materialization is not among the last ones" if past is None else "the model has no known price"
    return Finding(partition=partition, value=None, ok=False, text=f"the cost is not known: {why}")


def _percent(share: float) -> str:
    return f"{share:.2%}" if 0 < share < 0.1 or 0.99 < share < 1 else f"{share:.1%}"
