"""What a run tells Dagster about what its job published: materializations, check results, and which partitions failed."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.assets.decorator import CHECK_NAME
from claude_batch_dagster.reporting.metadata import check_result, count_rows, data_version, rows_without_answer
from claude_batch_dagster.reporting.provenance import provenance_tags
from claude_batch_dagster.reporting.story import AssetStory

if TYPE_CHECKING:
    from claude_batch_dagster.storage.source import Source
    from claude_batch_dagster.verbs.connection import Connection
    from claude_batch_dagster.verbs.job import Job
    from claude_batch_dagster.verbs.publish import PublishedOutput
    from claude_batch_dagster.verbs.result import JobResult

SHOWN_PARTITIONS = 5
Event = dg.MaterializeResult[None] | dg.AssetMaterialization | dg.AssetCheckResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Tells Dagster what a job published.

    Attributes:
        context: Of the run.
        job: What was carried out.
        result: What became of it.
        connection: For the workflow's link.
        selected: The assets of the run, in the order in which they are told.
        source: What was read.
    """

    context: dg.AssetExecutionContext
    job: "Job"
    result: "JobResult"
    connection: "Connection"
    selected: Mapping[dg.AssetKey, AskedAsset]
    source: "Source"

    def published(self) -> Iterator[Event]:
        """Yield a materialization and a check result for each asset; a range's partitions each get metadata of their own.

        Raises:
            dg.Failure: Partitions failed; it names them, after the others' materializations.
        """
        failed = self.result.failed_partitions
        published = {output.partition for output in self.result.outputs} - failed.keys()
        if self.result.limit is not None:
            self._say_limit(published)
        if self.job.partitions is None or published == set(self.job.partitions):
            yield from self._as_a_whole()
            return
        yield from self._one_by_one()
        if failed:
            reasons = "\n".join(f"- {partition}: {reason}" for partition, reason in sorted(failed.items()))
            raise dg.Failure(
                description=f"{len(failed)} of {len(failed) + len(published)} partitions were not published: {', '.join(sorted(failed))}. "
                f"The other {len(published)} were.\n{reasons}",
                metadata={"claude_batch/failed_partitions": dg.MetadataValue.json(dict(failed))},
                allow_retries=False,
            )

    def _say_limit(self, published: Collection[str | None]) -> None:
        text = f"limit: only the first {self.result.limit:,} rows of the source were asked about and published."
        beyond = sorted(set(self.job.partitions or ()) - set(published) - set(self.result.failed_partitions))
        if beyond:
            shown = f"{', '.join(beyond[:SHOWN_PARTITIONS])}{', ...' if len(beyond) > SHOWN_PARTITIONS else ''}"
            text += f" {len(beyond)} of {len(self.job.partitions or ())} partitions lie beyond it and are not materialized: {shown}."
        self.context.log.info(text)

    def _as_a_whole(self) -> Iterator[Event]:
        for key, one in self.selected.items():
            outputs = self._outputs(one)
            versions, story = self._version(one, outputs), self._story(key, one, outputs)
            if self.job.partitions is None:
                yield dg.MaterializeResult(asset_key=key, metadata=story.metadata(*outputs), data_version=versions)
            else:
                for output in outputs:
                    self.context.add_asset_metadata(story.metadata(output), asset_key=key, partition_key=output.partition)
                yield dg.MaterializeResult(asset_key=key, data_version=versions)
            yield from self._checked(key, one, outputs)

    def _one_by_one(self) -> Iterator[Event]:
        """Yield a materialization for each partition that was published: a MaterializeResult would count for the whole range."""
        for key, one in self.selected.items():
            outputs = self._outputs(one)
            story = self._story(key, one, outputs)
            for output in outputs:
                yield dg.AssetMaterialization(
                    asset_key=key,
                    partition=output.partition,
                    metadata=story.metadata(output),
                    tags=provenance_tags(self.context, key, self._version(one, [output]), began_at=time.time() - self.result.duration_s),
                )
            if outputs:
                yield from self._checked(key, one, outputs)

    def _outputs(self, one: AskedAsset) -> Sequence["PublishedOutput"]:
        return [output for output in self.result.outputs if output.task == one.task.name]

    def _version(self, one: AskedAsset, outputs: Sequence["PublishedOutput"]) -> dg.DataVersion:
        digests = [self.source.digest(file) for output in outputs for file in self.source.files_of(output.partition)]
        return data_version(self.job.endpoint, one, digests, count_rows(outputs))

    def _story(self, key: dg.AssetKey, one: AskedAsset, outputs: Sequence["PublishedOutput"]) -> AssetStory:
        return AssetStory(
            context=self.context, key=key, asked=one, job=self.job, result=self.result, connection=self.connection, outputs=outputs
        )

    def _checked(self, key: dg.AssetKey, one: AskedAsset, outputs: Sequence["PublishedOutput"]) -> Iterator[dg.AssetCheckResult]:
        if dg.AssetCheckKey(key, CHECK_NAME) in self.context.selected_asset_check_keys:
            file = next((output.written.uri for output in outputs if rows_without_answer(count_rows([output]))), None)
            yield check_result(key, CHECK_NAME, count_rows(outputs), keys=one.carried_keys, file=file)
