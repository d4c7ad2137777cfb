"""Publish: join the source's rows with the answers by key, in source order, into one file a partition. Rows in equal rows out."""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from claude_batch_dagster.core.errors import OutputError, RunError, SourceError
from claude_batch_dagster.core.status import FAILED_STATUSES
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.gather import WINDOW_BUCKETS, Gathered, bucket_rows, gather
from claude_batch_dagster.storage.keys import ASKED, LARGE
from claude_batch_dagster.storage.output import carried_columns, output_path, output_schema, remove_other_answers, write_marker
from claude_batch_dagster.storage.output_file import OutputWriter, WrittenOutput
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.render import KeyedRows, iter_keys
from claude_batch_dagster.verbs.select import FileRows, select_rows
from claude_batch_dagster.verbs.source_rows import SourceRows

SOURCE_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedOutput:
    """One partition of one output, as it was written.

    Attributes:
        task: The task's name.
        partition: None for an output without partitions.
        written: What the file holds.
    """

    task: str
    partition: str | None
    written: WrittenOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What publishing wrote.

    Attributes:
        failed_partitions: Partitions whose source could not be read, with the reason; the others are written.
    """

    outputs: tuple[PublishedOutput, ...]
    failed_partitions: dict[str, str]


def publish_job(
    job: Job, partitions: Sequence[str | None], *, run: str | None, limit: int | None = None, own_batch_ids: Set[str] = frozenset()
) -> Published:
    """Write a job's outputs.

    A row that changed since it was planned has no answer to its text, so it is written as `pending`.

    Args:
        job: What was asked.
        partitions: Which to write; [None] for a source without partitions.
        run: `r42`: stands in the files' metadata; None where nothing was asked.
        limit: Rows over these partitions, where a limit leaves any out; None for all.
        own_batch_ids: Batches that this invocation paid for.

    Raises:
        SourceError: Terminal. A source without partitions cannot be read.
        OutputError: Terminal. Rows in and rows out differ, or the output cannot be written.
        RunError: Terminal. A larger share of the rows failed than `fail_above` allows; nothing was written.
    """
    return _Publisher(
        job=job, partitions=partitions, run=run, limit=limit, own_batch_ids=own_batch_ids, listing=_Listing(job.source)
    ).publish()


@dataclass(slots=True)
class _Listing:
    """The source, listed once for all outputs and partitions, and again only where something of it cannot be read."""

    dataset: ParquetDataset
    listed: Source | None = None

    def source(self) -> Source:
        if self.listed is None:
            self.listed = Source(self.dataset)
        return self.listed

    def forget(self) -> None:
        self.listed = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Publisher:
    job: Job
    partitions: Sequence[str | None]
    run: str | None
    limit: int | None
    own_batch_ids: Set[str]
    listing: "_Listing"

    def publish(self) -> Published:
        store = Store(self.job.root)
        answers = {target.task.task_key: Answers(store, self.job.endpoint, target.task.task_key) for target in self.job.targets}
        if self.job.fail_above is not None:
            for target in self.job.targets:
                self._check_failures(target, answers[target.task.task_key], self.job.fail_above)
        outputs: list[PublishedOutput] = []
        failed: dict[str, str] = {}
        paths = [output_path(self.job.source.partition_column, partition) for partition in self.partitions]
        for target in self.job.targets:
            output = Store(target.output, refusal=OutputError)
            remove_other_answers(output, self.job.marker(), keep=paths)
            write_marker(output, self.job.marker())
            for partition in self.partitions:
                try:
                    written = self._write_steadily(target, partition, answers[target.task.task_key])
                except SourceError as error:
                    if partition is None:
                        raise
                    failed[partition] = str(error)
                    continue
                outputs.append(PublishedOutput(task=target.task.name, partition=partition, written=written))
        return Published(outputs=tuple(outputs), failed_partitions=failed)

    def _check_failures(self, target: Target, answers: Answers, fail_above: float) -> None:
        source, store = self.listing.source(), Store(self.job.root)
        counts: Counter[str] = Counter()
        for partition in self.partitions:
            for part in self._select(source, partition):
                for keyed in iter_keys(store, source, part, target.task, keep=self.limit is None):
                    counts.update(answers.count_outcomes(keyed.keys))
                    # A row without a key counts as pending there.
                    counts["pending"] -= int(np.count_nonzero(keyed.reasons != ASKED))
                    counts["errored"] += int(np.count_nonzero(keyed.reasons == LARGE))
        asked, failed = counts.total(), sum(counts[status] for status in FAILED_STATUSES)
        if asked and failed / asked > fail_above:
            shown = ", ".join(f"{counts[status]:,} {status}" for status in FAILED_STATUSES if counts[status])
            raise RunError(
                f"{failed:,} of {asked:,} {'row' if asked == 1 else 'rows'} that {target.task.name} asked about failed ({failed / asked:.1%}: {shown}), more than "
                f"fail_above={fail_above:.1%} allows. Nothing was published: {target.output} is as it was. What was answered is kept. "
                "Look at the failures' reasons, then run again with retry_failed, or raise fail_above.",
                run=self.run,
            )

    def _write_steadily(self, target: Target, partition: str | None, answers: Answers) -> WrittenOutput:
        """Write one partition, once more where its source changes under the reader."""
        for attempt in range(SOURCE_TRIES):
            source = self.listing.source()
            try:
                return self._write(target, partition, source, answers)
            except SourceError:
                if attempt + 1 == SOURCE_TRIES or not source.changed():
                    raise
                self.listing.forget()
        raise AssertionError("the last try returned or raised")

    def _write(self, target: Target, partition: str | None, source: Source, answers: Answers) -> WrittenOutput:
        parts = self._select(source, partition)
        source_schema = source.schema(parts[0].file)
        carried = carried_columns(target.columns, self.job.source.key_columns, source_schema, self.job.source.partition_column)
        schema = output_schema(target.task, carried, source_schema)
        rows = SourceRows(store=Store(self.job.root), source=source, parts=parts, task=target.task)
        output, path = Store(target.output, refusal=OutputError), output_path(self.job.source.partition_column, partition)
        with output.scratch() as scratch:
            with output.drafting(path):
                writer = OutputWriter(
                    task=target.task,
                    schema=schema,
                    key_columns=self.job.source.key_columns,
                    own_batch_ids=self.own_batch_ids,
                    file=output.draft(path, scratch),
                    facts={
                        "task_key": target.task.task_key,
                        "task": target.task.name,
                        "run": self.run,
                        "endpoint": self.job.endpoint,
                        "source": source.uri_of(partition),
                        "key": list(self.job.source.key_columns),
                        "limit": self.limit,
                    },
                )
            with closing(writer):
                columns = rows.iter_columns([schema.field(name) for name in carried], bucket_rows(answers))
                for (keyed, gathered), carried_rows in zip(_gather(answers, rows, scratch), columns, strict=True):
                    with output.drafting(path):
                        writer.append(carried_rows, keyed.keys, keyed.reasons, gathered)
                with output.drafting(path):
                    written = writer.finish(output, path)
        expected = sum(part.rows for part in parts)
        if sum(written.rows.values()) != expected:
            raise OutputError(
                f"{written.uri} has {sum(written.rows.values()):,} rows and its source {expected:,}. Do not use it, and please report this."
            )
        return written

    def _select(self, source: Source, partition: str | None) -> list[FileRows]:
        wanted = [partition] if self.limit is None else self.partitions
        selected = select_rows(source, {key: source.files_of(key) for key in wanted}, self.limit)
        if partition not in selected:
            raise SourceError(
                f"Partition {partition!r} of {source.uri} has no row among the first {self.limit:,} any more: the source grew while it was asked "
                "about. It was not written; its answers are kept. Run again."
            )
        return selected[partition]


def _gather(answers: Answers, rows: SourceRows, scratch: Path) -> Iterator[tuple[KeyedRows, Gathered]]:
    """Yield a bucket's rows' keys with their answers."""
    for window in rows.iter_keyed(WINDOW_BUCKETS * bucket_rows(answers)):
        start = 0
        for gathered in gather(answers, window.keys, scratch):
            bucket = slice(start, start + len(gathered.places))
            yield KeyedRows(keys=window.keys[bucket], reasons=window.reasons[bucket]), gathered
            start = bucket.stop
