"""From a source as it was defined to the files that a run reads: upstream outputs are found, tables are kept, partitions are named."""

from collections.abc import Collection, Sequence
from typing import Any

import dagster as dg

from claude_batch_dagster.assets.columns import asset_dep
from claude_batch_dagster.core.errors import OutputError, SourceError, UsageError
from claude_batch_dagster.storage.dataset import SNAPSHOTS, Dataset, ListedDataset, ParquetDataset, TableSnapshot
from claude_batch_dagster.storage.store import Store, join_uri


def find_source(
    source: Dataset,
    *,
    root: str,
    outputs: str,
    partitions: Sequence[str] | None,
    partitions_def: "dg.PartitionsDefinition[str] | None" = None,
    upstream: Collection[dg.AssetKey] = (),
    context: Any = None,
    kept: str | None = None,
    written: str | None = None,
) -> ListedDataset:
    """Return what a run reads.

    Args:
        source: As it was defined.
        root: Where snapshots are kept.
        outputs: The folder below which each asset's output lies.
        partitions: The run's, None without.
        partitions_def: Of the assets.
        upstream: What the assets depend on, by the keys of this code location: loading may have prefixed them.
        context: For a function that takes it.
        kept: What `name_tables` returned: the tables of an earlier run are read, and the function is not called.
        written: Where the upstream asset's output lies, None to find it by `upstream`.

    Raises:
        SourceError: Terminal. The upstream asset has no output, or is not partitioned alike; a function returned no table.
    """
    only = None if partitions is None else tuple(partitions)
    if isinstance(source, TableSnapshot):
        return (
            keep_tables(source, root, only, context)
            if kept is None
            else _list_tables(source, root, only, tuple(filter(None, kept.split("|"))))
        )
    # Only time partitions have a format.
    key_format = getattr(partitions_def, "fmt", None)
    path, column = source.path, source.partition_column
    if path is None:
        path = written or join_uri(outputs, *_upstream_key(source.asset, upstream).path)
        found = _partition_column(path, source)
        if only is not None and column is None:
            column = found
        if (only is not None or column is not None) and (found is None or found != column):
            was, now = (f"partitioned by {one}" if one else "one file" for one in (found, column))
            raise SourceError(
                f"{source.place} ({path}) is {was}, and the assets that read it are {now if column else 'partitioned'}. Nothing was sent. Give both the same partitions."
            )
    return ListedDataset(path=path, key=source.key, asset=source.asset, partition_column=column, key_format=key_format, only=only)


def keep_tables(source: TableSnapshot, root: str, partitions: tuple[str, ...] | None, context: Any = None) -> ListedDataset:
    """Call the function for each partition, and keep what it returns below the root.

    Raises:
        SourceError: Terminal. It returned no table.
    """
    from claude_batch_dagster.storage.snapshots import write_snapshot

    store, files = Store(root), []
    for partition in partitions if partitions is not None else (None,):
        given = {name: value for name, value in (("partition_key", partition), ("context", context)) if name in source.arguments}
        table = source.load(**given)
        name = source.place.removeprefix("what ").removesuffix(" returns") + (
            f" (partition {partition!r})" if partition is not None else ""
        )
        if table is None and partition is not None:
            # Its neighbours are asked about; the plan says of this one that it has no rows.
            continue
        files.append(write_snapshot(store, table, name, partition_column=source.partition_column, partition=partition).path)
    return _list_tables(source, root, partitions, tuple(files))


def name_tables(source: ListedDataset) -> str:
    """Return the names of the tables that were kept for a run, which `find_source` finds again."""
    return "|".join(source.files if source.files is not None else [source.uri.rpartition("/")[2]])


def _list_tables(source: TableSnapshot, root: str, partitions: tuple[str, ...] | None, files: tuple[str, ...]) -> ListedDataset:
    shared = {
        "key": source.key,
        "asset": source.asset,
        "partition_column": source.partition_column,
        "only": partitions,
        "made_by": source.place,
    }
    if source.partition_column is None:
        return ListedDataset(path=join_uri(root, SNAPSHOTS, *files), **shared)
    return ListedDataset(path=join_uri(root, SNAPSHOTS), files=files, **shared)


def _upstream_key(asset: Any, upstream: Collection[dg.AssetKey]) -> dg.AssetKey:
    key = asset_dep(asset).asset_key
    if key in upstream or not upstream:
        return key
    prefixed = [one for one in upstream if one.path[-len(key.path) :] == key.path]
    if len(prefixed) != 1:
        raise UsageError(
            f"The source is the output of {key.to_user_string()}, which the asset does not depend on. Nothing was sent. Keep that dependency where "
            "specs are changed afterwards."
        )
    return prefixed[0]


def _partition_column(path: str, source: ParquetDataset) -> str | None:
    from claude_batch_dagster.storage.output import read_marker

    marker = read_marker(Store(path, refusal=OutputError))
    if marker is None:
        raise SourceError(
            f"{source.place} is not there: {path} holds no output of @claude_batch_assets. Nothing was sent. Materialize that asset first, or give "
            "the source a path."
        )
    return marker.partition_column
