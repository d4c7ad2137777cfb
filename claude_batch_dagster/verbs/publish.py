"""Publish: join the source's rows with the answers by key, in source order, into one file a partition. Rows in equal rows out."""

from collections.abc import Set
from dataclasses import dataclass

import pyarrow as pa

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.storage.output import OutputWriter, WrittenOutput, carried_columns, output_path, output_schema, write_marker
from claude_batch_dagster.storage.responses import Answers
from claude_batch_dagster.storage.source import Source, SourceFile
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.render import read_or_render_keys

BUCKET_ROWS = 32_768
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


def publish_job(job: Job, partitions: list[str | None], *, run: str | None, own_batch_ids: Set[str] = frozenset()) -> Published:
    """Write a job's outputs.

    A row that changed since it was planned has no answer to its text, so it is written as `pending`.

    Args:
        job: What was asked.
        partitions: Which to write; [None] for a source without partitions.
        run: `r42`: stands in the files' metadata; None where nothing was asked.
        own_batch_ids: Batches that this invocation paid for.

    Raises:
        SourceError: Terminal. A source without partitions cannot be read.
        OutputError: Terminal. Rows in and rows out differ, or the output cannot be written.
    """
    store = Store(job.root)
    outputs: list[PublishedOutput] = []
    failed: dict[str, str] = {}
    for target in job.targets:
        answers = Answers(store, job.endpoint, target.task.task_key)
        write_marker(Store(target.output), job.marker())
        for partition in partitions:
            try:
                written = _publish_steadily(job, target, partition, answers, own_batch_ids, run)
            except SourceError as error:
                if partition is None:
                    raise
                failed[partition] = str(error)
                continue
            outputs.append(PublishedOutput(task=target.task.name, partition=partition, written=written))
    return Published(outputs=tuple(outputs), failed_partitions=failed)


def _publish_steadily(
    job: Job, target: Target, partition: str | None, answers: Answers, own_batch_ids: Set[str], run: str | None
) -> WrittenOutput:
    """Write one partition, once more where its source changes under the reader."""
    for attempt in range(SOURCE_TRIES):
        source = Source(job.source)
        try:
            written = _publish_partition(job, target, partition, source, answers, own_batch_ids, run)
        except SourceError:
            if attempt + 1 == SOURCE_TRIES or not source.changed():
                raise
            continue
        return written
    raise AssertionError("the last try returned or raised")


def _publish_partition(
    job: Job, target: Target, partition: str | None, source: Source, answers: Answers, own_batch_ids: Set[str], run: str | None
) -> WrittenOutput:
    files = source.files_of(partition)
    source_schema = source.schema(files[0])
    carried = carried_columns(target.columns, job.source.key_columns, source_schema, job.source.partition_column)
    schema = output_schema(target.task, carried, source_schema)
    output, store = Store(target.output), Store(job.root)
    facts = {
        "task_key": target.task.task_key,
        "task": target.task.name,
        "run": run,
        "endpoint": job.endpoint,
        "source": source.uri,
        "limit": None,
    }
    with output.scratch() as scratch:
        writer = OutputWriter(
            task=target.task, schema=schema, answers=answers, own_batch_ids=own_batch_ids, file=scratch / "part-0.parquet", facts=facts
        )
        rows = sum(_append_file(writer, store, source, file, target, carried) for file in files)
        written = writer.finish(output, output_path(job.source.partition_column, partition))
    if sum(written.rows.values()) != rows:
        raise OutputError(
            f"{written.uri} has {sum(written.rows.values()):,} rows and its source {rows:,}. Do not use it, and please report this."
        )
    return written


def _append_file(writer: OutputWriter, store: Store, source: Source, file: SourceFile, target: Target, carried: tuple[str, ...]) -> int:
    keys, reasons = read_or_render_keys(store, source, file, target.task)
    start = 0
    for piece in source.pieces(file, carried, BUCKET_ROWS):
        bucket = slice(start, start + piece.num_rows)
        writer.append(pa.Table.from_batches([piece]), keys[bucket], reasons[bucket])
        start += piece.num_rows
    expected = source.row_count(file)
    if not start == len(keys) == expected:
        raise OutputError(
            f"{source.name(file)}: {start:,} rows read, {len(keys):,} keyed, {expected:,} in the footer. Nothing was written. Write the file again."
        )
    return start
