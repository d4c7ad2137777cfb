"""Tables as they were when they were asked about: `snapshots/{sha256}.parquet` below the root, in a hive folder where they are partitioned.

- A snapshot is named by its content: the same rows are kept once, and what is there is never written again.
- Rows are written as they come: one row group is in memory.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage.dataset import SNAPSHOTS
from claude_batch_dagster.storage.store import Store

GROUP_ROWS = 65_536
GROUP_BYTES = 64 << 20
READ_BYTES = 1 << 20
ACCEPTED = "a pandas or polars frame, a pyarrow table, a DuckDB relation, or an iterator of record batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A table that was kept.

    Attributes:
        path: Below `snapshots/`.
        rows: How many.
    """

    path: str
    rows: int


def write_snapshot(store: Store, table: Any, name: str, *, partition_column: str | None = None, partition: str | None = None) -> Snapshot:
    """Keep a table.

    Args:
        store: The root.
        table: Anything of ACCEPTED.
        name: Of what made it, for people.
        partition_column: Stands in its path.
        partition: The column's value.

    Raises:
        SourceError: Terminal. It is no table, has no columns, or its batches differ.
    """
    with store.scratch() as scratch:
        file = scratch / "snapshot.parquet"
        batches = _to_batches(table, name, scratch)
        rows = _write_file(file, batches, name)
        digest = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(READ_BYTES):
                digest.update(chunk)
        folder = "" if partition_column is None else f"{partition_column}={quote(partition or '', safe=' ')}/"
        path = f"{folder}{digest.hexdigest()[:32]}.parquet"
        if not store.exists(f"{SNAPSHOTS}/{path}"):
            store.put_file(f"{SNAPSHOTS}/{path}", file)
    return Snapshot(path=path, rows=rows)


def _write_file(file: Path, batches: Iterator[pa.RecordBatch], name: str) -> int:
    first = next(batches, None)
    if first is None:
        raise SourceError(
            f"{name} returned no record batch, not even an empty one, so its columns are not known. Nothing was sent. Yield an empty one."
        )
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in first.schema])
    if not schema.names:
        raise SourceError(f"{name} returned a table without columns. Nothing was sent. Return at least the key and the text.")
    rows = held_rows = held_bytes = 0
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1) as writer:
        for number, batch in enumerate(chain([first], batches)):
            if batch.schema.remove_metadata() != first.schema.remove_metadata():
                raise SourceError(
                    f"Record batch {number + 1:,} of {name} has the columns {_describe(batch.schema)}, the first one {_describe(first.schema)}. "
                    "Nothing was sent. Return batches of one schema."
                )
            for start in range(0, max(batch.num_rows, 1), GROUP_ROWS):
                part = batch.slice(start, GROUP_ROWS)
                held.append(part)
                held_rows, held_bytes, rows = held_rows + part.num_rows, held_bytes + part.nbytes, rows + part.num_rows
                if held_rows >= GROUP_ROWS or held_bytes >= GROUP_BYTES:
                    writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=held_rows)
                    held, held_rows, held_bytes = [], 0, 0
        if held_rows:
            writer.write_table(pa.Table.from_batches(held).cast(schema), row_group_size=held_rows)
    return rows


def _to_batches(table: Any, name: str, scratch: Path) -> Iterator[pa.RecordBatch]:
    """Yield a table's rows; what is lazy is not collected."""
    library = type(table).__module__.partition(".")[0]
    if library == "pandas" and hasattr(table, "columns"):
        # An index without a name is the order of the rows, no data.
        keep = any(level is not None for level in table.index.names)
        try:
            table = pa.Table.from_pandas(table, preserve_index=keep)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise SourceError(
                f"{name} returned a frame that is no table of plain values: {'; '.join(map(str, error.args))}. Nothing was sent. Return columns of "
                "text, numbers, booleans, dates or lists."
            ) from error
    if library == "polars" and hasattr(table, "sink_parquet"):
        table.sink_parquet(scratch / "collected.parquet")
        table = pq.ParquetFile(scratch / "collected.parquet")
    if isinstance(table, pq.ParquetFile):
        yield from _or_empty(table.iter_batches(), table.schema_arrow)
    elif isinstance(table, pa.RecordBatch):
        yield table
    elif isinstance(table, pa.Table):
        yield from _or_empty(iter(table.to_batches(max_chunksize=GROUP_ROWS)), table.schema)
    elif (hasattr(table, "__arrow_c_stream__") and hasattr(table, "columns")) or isinstance(table, pa.RecordBatchReader):
        reader = table if isinstance(table, pa.RecordBatchReader) else pa.RecordBatchReader.from_stream(table)
        yield from _or_empty(iter(reader), reader.schema)
    elif isinstance(table, Iterable) and not isinstance(table, (str, bytes, dict)):
        for part in table:
            if not isinstance(part, (pa.RecordBatch, pa.Table)):
                raise SourceError(f"{name} yielded a {type(part).__name__}; {ACCEPTED} is possible. Nothing was sent. Return one of these.")
            yield from (
                [part] if isinstance(part, pa.RecordBatch) else _or_empty(iter(part.to_batches(max_chunksize=GROUP_ROWS)), part.schema)
            )
    else:
        raise SourceError(f"{name} returned a {type(table).__name__}; {ACCEPTED} is possible. Nothing was sent. Return one of these.")


def _or_empty(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    first = next(batches, None)
    if first is None:
        yield pa.RecordBatch.from_pylist([], schema=schema)
        return
    yield first
    yield from batches


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is kept: libraries have several for the same values."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind) else kind


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
