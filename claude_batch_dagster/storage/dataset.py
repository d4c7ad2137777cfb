"""The name of a Parquet dataset. Definitions hold it, so it loads no Parquet library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from claude_batch_dagster.storage.store import absolute_uri


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetDataset:
    """Where the rows are, and what tells them apart. Nothing is read until a job is planned.

    Attributes:
        path: A local path or a URL (s3://, gs://, az://), of a file or of a folder.
        key: The column or columns that identify a row within its partition: no nulls, each value once.
        asset: The asset that writes it: a key, spec or definition, for lineage in Dagster.
        partition_column: The hive column (`day=2026-11-01/`) whose values are the partitions; None for one output.
    """

    path: str
    key: str | Sequence[str]
    asset: Any = None
    partition_column: str | None = None

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The key, always as a tuple."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def uri(self) -> str:
        """The path as an absolute path or URL."""
        return absolute_uri(self.path)
