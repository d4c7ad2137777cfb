"""`build_claude_batch_checks`: limits on what was published, as asset checks. They read the output and the event log, and ask nothing.

A check has no partitions of its own (Dagster warns that these are a preview): it looks at the partitions of its run, and names them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import dagster as dg

from claude_batch_dagster.assets.asked import TASK_METADATA_KEY, AskedAsset, AskedAssetText
from claude_batch_dagster.checks.findings import PublishedAsset
from claude_batch_dagster.checks.limits import Limit, by_asset, label_limits, plain_limits, read_blockers, read_severities
from claude_batch_dagster.checks.verdicts import judge
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.resources.io_manager import outputs_folder
from claude_batch_dagster.resources.sources import find_source
from claude_batch_dagster.resources.waiting import readable_failures
from claude_batch_dagster.storage.dataset import Dataset, ParquetDataset, TableSnapshot
from claude_batch_dagster.storage.store import join_uri
from claude_batch_dagster.verbs.endpoint import resolve_endpoint, root_for

if TYPE_CHECKING:
    from claude_batch_dagster.resources.resource import ClaudeBatchResource
    from claude_batch_dagster.storage.source import Source
    from claude_batch_dagster.storage.store import Store

RESOURCE_KEY = "claude_batch"

Assets = dg.AssetsDefinition | dg.AssetSpec | Sequence[dg.AssetsDefinition | dg.AssetSpec]


def build_claude_batch_checks(
    assets: Assets,
    *,
    min_coverage: float | None = None,
    max_failure_rate: float | None = None,
    max_refusal_rate: float | None = None,
    max_truncation_rate: float | None = None,
    allowed_labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    max_label_drift: float | Mapping[str, float] | None = None,
    max_cost_usd: float | None = None,
    max_cost_usd_per_row: float | None = None,
    severity: dg.AssetCheckSeverity | str | Mapping[str, dg.AssetCheckSeverity | str] = dg.AssetCheckSeverity.ERROR,
    blocking: bool | Sequence[str] = False,
    resource_key: str = RESOURCE_KEY,
) -> Sequence[dg.AssetChecksDefinition]:
    """Return a check for each limit that is given, of each asset.

    A check looks at what the run has published: its partition, or each partition of its range; one partition beyond the limit fails it. Run
    alone, it looks at all that is published. A check that fails is red, its asset is not. A deferred run skips its checks, the collecting
    run has them.

    Args:
        assets: What `claude_batch_assets` returned, specs of it, or several of these.
        min_coverage: Check `coverage`: the least share, 0 to 1, of the source's rows that the output holds with an answer, or with a reason why
            there is none. A row that is missing or pending is not covered. Keys are compared, streamed from both sides.
        max_failure_rate: Check `failure_rate`: the largest share of the rows asked about without a usable answer, or none yet.
        max_refusal_rate: Check `refusal_rate`: the largest share of the rows asked about that Claude refused.
        max_truncation_rate: Check `truncation_rate`: the largest share of the rows asked about whose answer reached `max_tokens`.
        allowed_labels: Check `allowed_labels`: by column, the labels that may occur. A list alone is for the one label column that an asset has.
        max_label_drift: Check `label_drift`: the largest total variation distance, 0 to 1, between the shares of the labels here and in
            up to 30 earlier partitions (without partitions: materializations). A number for each label column, or by column. It is judged from
            30 answered rows on both sides.
        max_cost_usd: Check `cost`: what a partition's newest materialization may have cost, in USD.
        max_cost_usd_per_row: Check `cost_per_row`: the same, for each request that it asked, in USD.
        severity: ERROR or WARN, of all checks, or by check; ERROR where a check is not named.
        blocking: Whether downstream assets wait for the checks, and do not run where one fails with ERROR: all of them, or those named.
        resource_key: Of the ClaudeBatchResource that published the outputs.

    Raises:
        UsageError: Terminal. No limit, one out of range, a check or column that is not there, or assets of another kind.
    """
    asked = _read_assets(assets)
    plain = plain_limits(
        min_coverage=min_coverage,
        max_failure_rate=max_failure_rate,
        max_refusal_rate=max_refusal_rate,
        max_truncation_rate=max_truncation_rate,
        max_cost_usd=max_cost_usd,
        max_cost_usd_per_row=max_cost_usd_per_row,
    )
    allowed = by_asset("allowed_labels", allowed_labels, asked)
    drift = by_asset("max_label_drift", max_label_drift, asked)
    if not plain and not allowed and not drift:
        raise UsageError("build_claude_batch_checks has no limit, so there is nothing to check. Give one, for instance min_coverage=1.")
    there = [limit.name for limit in plain] + ["allowed_labels"] * bool(allowed) + ["label_drift"] * bool(drift)
    severities = read_severities(severity, there)
    blockers = read_blockers(blocking, there)
    return [
        _define(
            spec,
            [*plain, *label_limits(allowed.get(spec.key), drift.get(spec.key))],
            severities,
            blockers,
            resource_key,
        )
        for spec, _ in asked
        if plain or spec.key in allowed or spec.key in drift
    ]


def _define(
    spec: dg.AssetSpec,
    limits: Sequence[Limit],
    severities: Mapping[str, dg.AssetCheckSeverity],
    blockers: Sequence[str],
    resource_key: str,
) -> dg.AssetChecksDefinition:
    """Return one op for the checks of one asset: a blocking check that fails stops what is downstream of its own asset only."""
    asked = cast(AskedAssetText, spec.metadata[TASK_METADATA_KEY]).asked
    named = {limit.name: limit for limit in limits}

    @dg.multi_asset_check(
        name=f"{spec.key.to_python_identifier()}_claude_batch_checks",
        specs=[
            dg.AssetCheckSpec(limit.name, asset=spec.key, description=limit.describe, blocking=limit.name in blockers) for limit in limits
        ],
        can_subset=True,
        required_resource_keys={resource_key},
    )
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with readable_failures():
            asset = _open(context, spec, asked, getattr(context.resources, resource_key))
            selected = {key.name for key in context.selected_asset_check_keys}
            for name in (name for name in named if name in selected):
                yield judge(asset, named[name], severities[name])

    return check


def _open(context: dg.AssetCheckExecutionContext, spec: dg.AssetSpec, asked: AskedAsset, resource: "ClaudeBatchResource") -> PublishedAsset:
    from claude_batch_dagster.storage.store import Store

    endpoint = resolve_endpoint(simulate=resource.simulate, environ=os.environ, needs_key=False)
    outputs = outputs_folder(resource.root_uri, resource.output, endpoint)
    # Loading the code location may have prefixed the key.
    key = next(iter(context.selected_asset_check_keys)).asset_key
    definition = spec.partitions_def
    store = Store(join_uri(outputs, *key.path))

    def open_source(partition: str | None, path: str) -> "Source":
        from claude_batch_dagster.storage.source import Source

        return Source(_find_source(asked.source, spec, partition, store, path, root=root_for(resource.root_uri, endpoint), outputs=outputs))

    return PublishedAsset(
        key=key,
        asked=asked,
        definition=definition,
        endpoint=endpoint,
        store=store,
        open_source=open_source,
        instance=context.instance,
        partitions=None if definition is None else _partitions_of_run(context, definition),
    )


def _find_source(
    source: Dataset, spec: dg.AssetSpec, partition: str | None, output: "Store", path: str, *, root: str, outputs: str
) -> ParquetDataset:
    """Return the files that a partition was asked about: of a table what was kept of it, of an output its folder, as the published file says."""
    from claude_batch_dagster.storage.published import read_source

    if isinstance(source, TableSnapshot):
        return ParquetDataset(path=read_source(output, path), key=source.key, partition_column=source.partition_column)
    partitions = None if partition is None else [partition]
    # By the spec's keys an upstream output is not found where loading prefixed them, or an older one that has that name.
    written = read_source(output, path) if source.path is None else None
    return find_source(source, root=root, outputs=outputs, partitions=partitions, partitions_def=spec.partitions_def, written=written)


def _partitions_of_run(context: dg.AssetCheckExecutionContext, definition: "dg.PartitionsDefinition[str]") -> Sequence[str] | None:
    run = context.op_execution_context
    if run.has_partition_key:
        return [run.partition_key]
    if run.has_partition_key_range:
        with dg.partition_loading_context(dynamic_partitions_store=context.instance):
            return definition.get_partition_keys_in_range(run.partition_key_range)
    return None


def _read_assets(assets: Assets) -> list[tuple[dg.AssetSpec, AskedAsset]]:
    found: list[tuple[dg.AssetSpec, AskedAsset]] = []
    # A key and a spec are tuples too.
    several = isinstance(assets, Sequence) and not isinstance(assets, (dg.AssetKey, dg.AssetSpec))
    for one in cast("Sequence[dg.AssetsDefinition | dg.AssetSpec]", assets if several else [assets]):
        specs = list(getattr(one, "specs", [one]))
        asked = [(spec, getattr(spec, "metadata", {}).get(TASK_METADATA_KEY)) for spec in specs]
        strange = next((getattr(spec, "key", spec) for spec, text in asked if not isinstance(text, AskedAssetText)), None)
        if strange is not None:
            name = strange.to_user_string() if isinstance(strange, dg.AssetKey) else repr(strange)
            raise UsageError(
                f"build_claude_batch_checks was given {name}, which is no asset of @claude_batch_assets. "
                "Give it what the decorator returned, or specs of it."
            )
        found += [(spec, cast(AskedAssetText, text).asked) for spec, text in asked]
    if not found:
        raise UsageError("build_claude_batch_checks has no assets. Give it what @claude_batch_assets returned.")
    return found
