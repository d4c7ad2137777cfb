"""Loads what was published, by the annotation of the downstream asset's argument. It writes nothing: publishing does."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import dagster as dg
from pydantic import ConfigDict, Field

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.resources.loading import choose_conversion
from claude_batch_dagster.storage.store import Store, absolute_uri, join_uri
from claude_batch_dagster.verbs.endpoint import default_root, resolve_endpoint, root_for

if TYPE_CHECKING:
    import pyarrow.dataset as ds

OUTPUT_FOLDER = "output"
ALLOW_MISSING = "allow_missing_partitions"


class ClaudeBatchIOManager(dg.ConfigurableIOManager):
    """Loads outputs by the argument's annotation; partitions come as one, with the partition as a column of text.

    `pd.DataFrame`, `pa.Table`, `pl.DataFrame` are in memory; `ds.Dataset`, `pl.LazyFrame` and `duckdb.DuckDBPyRelation` read what is asked
    of them. Polars and DuckDB come with the extras `polars` and `duckdb`.

    Every selected partition must be published, unless the input's metadata says `allow_missing_partitions: True`.
    """

    model_config = ConfigDict(extra="forbid")

    root: str | None = Field(default=None, description="As in the resource `claude_batch`.")
    output: str | None = Field(default=None, description="As in the resource `claude_batch`.")
    simulate: bool = Field(default=False, description="As in the resource `claude_batch`.")

    @classmethod
    def _is_dagster_maintained(cls) -> bool:
        return False

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Refuse: outputs are written by `claude_batch.run`, which returns nothing to write."""
        raise OutputError(
            f"{context.asset_key.to_user_string()} returned a value, and outputs of @claude_batch_assets are written by claude_batch.run(context). "
            "Nothing was written. Let the body be `yield from claude_batch.run(context)`."
        )

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the asset's rows as the argument's annotation says.

        Raises:
            OutputError: Terminal. Nothing is published for the asset or a partition, or the annotation is none of those that work.
        """
        wanted = context.dagster_type.typing_type
        convert = choose_conversion(wanted, context.asset_key)
        endpoint = resolve_endpoint(simulate=self.simulate, environ=os.environ, needs_key=False)
        folder = join_uri(outputs_folder(self.root or default_root(os.environ), self.output, endpoint), *context.asset_key.path)
        partitions = tuple(context.asset_partition_keys) if context.has_asset_partitions else None
        allow_missing = bool((context.definition_metadata or {}).get(ALLOW_MISSING))
        return convert(open_output(folder, context.asset_key, partitions, allow_missing=allow_missing))


def outputs_folder(root: str, output: str | None, endpoint: str) -> str:
    """Return the folder below which the outputs lie, each under its asset's key."""
    return absolute_uri(output) if output else join_uri(root_for(root, endpoint), OUTPUT_FOLDER)


def open_output(
    folder: str, asset_key: dg.AssetKey, partitions: Sequence[str] | None = None, *, allow_missing: bool = False
) -> "ds.Dataset":
    """Open an asset's published files; the partition column is a string column after the others.

    Args:
        folder: Of this output.
        asset_key: For messages.
        partitions: The keys to load, None for all that there is.
        allow_missing: Whether partitions may be missing, as long as one is there.

    Raises:
        OutputError: Terminal. Nothing is published, or not every partition.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    from claude_batch_dagster.storage.published import list_published

    store = Store(folder)
    found = list_published(store)
    name = asset_key.to_user_string()
    if partitions is not None:
        missing = sorted(key for key in partitions if key not in found)
        found = {key: path for key, path in found.items() if key in set(partitions)}
        if missing and not (allow_missing and found):
            shown = f"{', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}"
            raise OutputError(
                f"{name} has no published rows for {len(missing)} of {len(partitions)} partitions: {shown} (below {folder}). Nothing was loaded. "
                f"Materialize them first, or give the input the metadata {{'{ALLOW_MISSING}': True}}."
            )
    if not found:
        raise OutputError(
            f"{name} has no published rows: there is no Parquet file below {folder}. Nothing was loaded. Materialize it first."
        )
    paths = [found[key] for key in sorted(found, key=lambda key: key or "")]
    column = paths[0].partition("=")[0] if "/" in paths[0] else None
    partitioning = ds.partitioning(pa.schema([pa.field(column, pa.string())]), flavor="hive") if column else None
    base, filesystem = (str(store.folder), None) if store.folder is not None else _remote_folder(folder)
    return ds.dataset(
        [f"{base}/{path}" for path in paths], format="parquet", partitioning=partitioning, partition_base_dir=base, filesystem=filesystem
    )


def count_statuses(folder: str, asset_key: dg.AssetKey) -> dict[str, int]:
    """Return the rows of an output by status, all its partitions together."""
    from claude_batch_dagster.core.status import STATUSES

    counted = open_output(folder, asset_key).to_table(columns=["status"]).column("status").value_counts().to_pylist()
    return {**dict.fromkeys(STATUSES, 0), **{str(row["values"]): int(row["counts"]) for row in counted}}


def _remote_folder(uri: str) -> tuple[str, Any]:
    """Return the path and the filesystem of a URL, reached with the same credentials as everything else."""
    from obstore.fsspec import FsspecStore

    scheme, _, path = uri.partition("://")
    return path, FsspecStore(cast(Any, scheme))
