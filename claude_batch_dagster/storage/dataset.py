"""The names of datasets to ask about. Definitions hold them, so they load no Parquet library."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.prompt_function import name_function
from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.storage.templates import has_partition, read_template

SNAPSHOTS = "snapshots"
"""The folder of kept tables, below the root."""
LOAD_ARGUMENTS = ("partition_key", "context")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetDataset:
    """Where the rows are, and what tells them apart. Nothing is read until a job is planned.

    Partitions are the values of hive folders (`day=2026-11-01/`), of a column in the files, or what `{partition}` in the path stands
    for: `s3://lake/reviews/{partition:%Y/%m/%d}/*.parquet` for dates, `drops/{partition}.parquet` for text.

    Attributes:
        path: A local path or a URL (s3://, gs://, az://) of a file, of a folder, or with `*`, `?`, `**` and `{partition}` in it. None: the
            output of `asset`, which is one of `@claude_batch_assets`.
        key: The column or columns that identify a row within its partition: no nulls, each value once.
        asset: The asset that writes it: a key, spec or definition, for lineage in Dagster.
        partition_column: The column whose values are the partitions, and the hive column of the outputs; None for one output. With
            `{partition}` in the path it needs not be in the files.

    Raises:
        UsageError: Terminal. Neither a path nor an asset, or `{partition}` without a partition column.
    """

    path: str | os.PathLike[str] | None = None
    key: str | Sequence[str]
    asset: Any = None
    partition_column: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.path is None:
            if self.asset is None:
                raise UsageError("The source has neither a path nor an asset. Give the path of its files, or the asset whose output it is.")
            return
        path = os.fspath(self.path)
        object.__setattr__(self, "path", path)
        if has_partition(path) and self.partition_column is None:
            raise UsageError(
                f"The path {self.path} has {{partition}}, and the source no partition column. Name the hive column that the outputs get, "
                'for instance partition_column="day" (--partition-column day).'
            )
        read_template(self.uri)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The key, always as a tuple."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def place(self) -> str:
        """The path as it was given, or what stands for it, for people."""
        return os.fspath(self.path) if self.path is not None else f"the output of {_name_asset(self.asset)}"

    @property
    def uri(self) -> str:
        """The path as an absolute path or URL; words for one that is found when a run begins."""
        return self.place if self.path is None else absolute_uri(os.fspath(self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDataset(ParquetDataset):
    """A dataset as a run has found it.

    Attributes:
        key_format: Of the partitions' keys, in the manner of `strftime`; None where that is not known.
        only: The partitions that are wanted, None for all.
        files: Below `path`, these and no others; None for what is listed there.
        made_by: What returned the rows, for people; None where the files are the source.
    """

    key_format: str | None = None
    only: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None
    made_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSnapshot:
    """Rows that a function returns: of a query, an API, a table of another system.

    The function is called when a run is planned, once for each of its partitions, in the process of the Dagster step. What it returned is
    kept as Parquet below the root, `snapshots/`, named by its content: the answers stand beside the rows that were asked about, whatever
    becomes of the table. Rows that were answered before are not asked again.

    Attributes:
        load: Returns a pandas or polars frame, a pyarrow table, a DuckDB relation, or an iterator of record batches, which is never whole in
            memory. It is given those of its parameters that are called `partition_key` (str) and `context` (the asset's execution context).
        key: The column or columns that identify a row within its partition: no nulls, each value once.
        asset: The asset that stands for the table: a key, spec or definition, for lineage in Dagster.
        partition_column: The hive column of the outputs; None for one output. It needs not be among the rows' columns.

    Raises:
        UsageError: Terminal. The function needs parameters of other names, or partitions and takes no `partition_key`.
    """

    load: Callable[..., Any]
    key: str | Sequence[str]
    asset: Any = None
    partition_column: str | None = None

    def __post_init__(self) -> None:
        """Refuse a function that could not be called."""
        parameters = inspect.signature(self.load).parameters.values()
        needed = [one.name for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        strange = [name for name in needed if name not in LOAD_ARGUMENTS]
        if strange:
            raise UsageError(
                f"{name_function(self.load)} needs the parameter {strange[0]!r}; {' and '.join(LOAD_ARGUMENTS)} are given. Rename it, or give it a default."
            )
        if self.partition_column is not None and "partition_key" not in self.arguments:
            raise UsageError(
                f"{name_function(self.load)} takes no partition_key, and the source has partition_column={self.partition_column!r}: every partition "
                "would get the same rows. Give it a parameter partition_key, or leave partition_column out."
            )

    @property
    def arguments(self) -> frozenset[str]:
        """Which of `partition_key` and `context` the function takes."""
        parameters = inspect.signature(self.load).parameters.values()
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return frozenset(LOAD_ARGUMENTS)
        return frozenset(one.name for one in parameters) & frozenset(LOAD_ARGUMENTS)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The key, always as a tuple."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def place(self) -> str:
        """What stands for a path, for people."""
        return f"what {name_function(self.load)} returns"

    @property
    def uri(self) -> str:
        """What stands for a path, for people."""
        return self.place


Dataset = ParquetDataset | TableSnapshot


def _name_asset(asset: Any) -> str:
    key = asset if isinstance(asset, str) else getattr(asset, "key", getattr(asset, "asset_key", asset))
    if hasattr(key, "to_user_string"):
        return str(key.to_user_string())
    return key if isinstance(key, str) else "/".join(key)
