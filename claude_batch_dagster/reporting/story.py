"""What one asset's materializations of a run say, each of its own partition, and the chart over all of them."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.assets.columns import own_lineage, tell_origins, written_lineage
from claude_batch_dagster.core.schema import Field
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.reporting.charts import MAX_BARS, Bar, chart_markdown
from claude_batch_dagster.reporting.history import LABELS_KEY, Past, in_order, newest_by_partition, past_of, read_history
from claude_batch_dagster.reporting.metadata import materialization_metadata, rows_without_answer

if TYPE_CHECKING:
    from claude_batch_dagster.storage.label_counts import LabelCounts
    from claude_batch_dagster.verbs.connection import Connection
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.publish import PublishedOutput
    from claude_batch_dagster.verbs.result import JobResult

COLUMN_LINEAGE = "dagster/column_lineage"
COLUMN_SCHEMA = "dagster/column_schema"
SHOWN_LABELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetStory:
    """What the materializations of one asset say.

    The chart stands in the last one only: a range of ninety days would keep ninety pictures of the same.

    Attributes:
        context: Of the run.
        key: The asset.
        asked: What it asks.
        job: What was carried out.
        result: What became of it.
        connection: For the workflow's link.
        outputs: What was published of the asset, in the order of the partitions.
    """

    context: dg.AssetExecutionContext
    key: dg.AssetKey
    asked: AskedAsset
    job: "Job"
    result: "JobResult"
    connection: "Connection"
    outputs: Sequence["PublishedOutput"]
    _own: list[Past] = field(default_factory=list, init=False)

    def metadata(self, *outputs: "PublishedOutput") -> dict[str, Any]:
        """Return the metadata of the materialization that covers these outputs; asked once for each, in their order."""
        target = next(target for target in self.job.targets if target.task.name == self.asked.task.name)
        labels = count_output(outputs[0], self.asked.task.fields) if len(outputs) == 1 else None
        metadata = materialization_metadata(
            outputs,
            self.result,
            folder=target.output,
            fields=self.asked.task.fields,
            connection=self.connection,
            partitioned=self.job.partitions is not None,
            endpoint=self.job.endpoint,
            labels=labels,
        )
        defined = self.context.assets_def.metadata_by_key[self.key].get(COLUMN_LINEAGE)
        metadata[COLUMN_SCHEMA] = tell_origins(metadata[COLUMN_SCHEMA], self.asked, own_lineage(self.asked, defined))
        lineage = written_lineage(self.asked, defined, outputs[0].written.schema.names)
        if lineage is not None:
            # Of the columns that were written; before the first run the definition's stands there.
            metadata[COLUMN_LINEAGE] = lineage
        said = {**metadata, LABELS_KEY: labels}
        self._own.append(past_of(said, partition=outputs[-1].partition, at=time.time()))
        if outputs[-1] is self.outputs[-1]:
            preview = metadata.pop("preview")
            metadata |= {"chart": dg.MetadataValue.md(self._chart()), "preview": preview}
            self.context.log.info(self._line(target.output))
        return metadata

    def _line(self, folder: str) -> str:
        """Return what became of the asset, with its first label column's shares, and where it lies."""
        rows, labels = Counter[str](), Counter[str]()
        column = next(iter(self._own[-1].labels), None)
        for past in self._own:
            rows.update(past.rows)
            labels.update(past.labels.get(column or "", {}))
        statuses = ", ".join(f"{rows[status]:,} {status}" for status in STATUSES if rows[status])
        shares = ", ".join(f"{label} {count / labels.total():.0%}" for label, count in labels.most_common(SHOWN_LABELS) if count)
        where = self.outputs[-1].written.uri if len(self._own) == 1 else f"{len(self._own)} files below {folder}"
        text = f"{self.key.to_user_string()}: {statuses}{f'; {column}: {shares}' if shares else ''}. Written: {where}."
        return f"{text} The column `error` says why rows have no answer." if rows_without_answer(rows) else text

    def _chart(self) -> str:
        definition = self.context.assets_def.specs_by_key[self.key].partitions_def
        own = self._own
        earlier = [past for past in read_history(self.context.instance, self.key) if past.endpoint == self.job.endpoint]
        column = next(iter(own[-1].labels), None)
        title = "Status: shares of the rows" if column is None else f"{column}: shares of the answered rows"
        order = STATUSES if column is None else tuple(own[-1].labels[column])
        if definition is None:
            bars = _bars_by_time([*reversed(earlier), *own], column, order)
        else:
            bars = _bars_by_partition(own, earlier, column, order, definition)
        return chart_markdown(bars, title=title)


def count_output(output: "PublishedOutput", fields: Sequence[Field]) -> "LabelCounts":
    """Return the answered rows of what was written by label, by column."""
    from claude_batch_dagster.storage.label_counts import count_labels
    from claude_batch_dagster.storage.store import Store

    folder, _, name = output.written.uri.rpartition("/")
    return count_labels(Store(folder), name, fields)


def _bars_by_partition(
    own: Sequence[Past], earlier: Sequence[Past], column: str | None, order: Sequence[str], definition: "dg.PartitionsDefinition[str]"
) -> list[Bar]:
    """Return a bar for each partition; up to the last one of this run, where it would not be among those that are shown."""
    known = newest_by_partition([*own, *earlier])
    costs: dict[str | None, float | None] = {}
    for past in (*own, *earlier):
        if past.cost_usd is not None:
            costs[past.partition] = (costs.get(past.partition) or 0) + past.cost_usd
    ordered = in_order([key for key in known if key is not None], definition)
    last = own[-1].partition
    if last in ordered[:-MAX_BARS]:
        ordered = ordered[: ordered.index(last) + 1]
    return [Bar(name=key, rows=_rows(known[key], column, order), cost_usd=costs.get(key)) for key in ordered]


def _bars_by_time(history: Sequence[Past], column: str | None, order: Sequence[str]) -> list[Bar]:
    return [
        Bar(name=f"{datetime.fromtimestamp(past.at, UTC):%m-%d %H:%M}", rows=_rows(past, column, order), cost_usd=past.cost_usd)
        for past in history
    ]


def _rows(past: Past, column: str | None, order: Sequence[str]) -> dict[str, int]:
    """Return a materialization's rows by label, in one order for all: the event log has lost that of the definition."""
    counted = past.rows if column is None else past.labels.get(column, {})
    return {label: counted.get(label, 0) for label in dict.fromkeys((*order, *counted))}
