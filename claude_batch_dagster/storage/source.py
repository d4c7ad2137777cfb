"""A Parquet dataset to ask about: files, with the columns of their paths. Read in pieces, never whole.

- Order: files by path, rows as they stand in the file. This is the order of the output.
- Partitions: of the files' paths, or of a column in the files; then a file is listed once for each value of it.
- A file is what its content is: local files are known by SHA-256, objects by ETag and size.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.core.spelling import suggest
from claude_batch_dagster.storage.arrays import repeat_word, to_numpy
from claude_batch_dagster.storage.column_partitions import PartitionRows, filter_rows, find_partitions, hash_once, look_once
from claude_batch_dagster.storage.dataset import ListedDataset, ParquetDataset
from claude_batch_dagster.storage.listing import SourceFile as SourceFile
from claude_batch_dagster.storage.listing import list_dataset, read_version
from claude_batch_dagster.storage.unreadable import UNREADABLE, find_unreadable

PIECE_ROWS = 2_048
PIECE_BYTES = 32 << 20
"""A piece has fewer rows where they are long."""
SHOWN_DUPLICATES = 5
_ALIKE = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}


class Source:
    """The files of a dataset, listed once.

    Raises:
        SourceError: Terminal. No such path, no Parquet file, mixed hive columns, no such partition column.
    """

    def __init__(self, dataset: ParquetDataset) -> None:
        self.dataset = dataset
        self.uri = dataset.uri
        self._digests: dict[tuple[str, str, str | None], str] = {}
        self._rows: dict[tuple[str, str | None], PartitionRows] = {}
        self._listing = list_dataset(dataset)
        self._store = self._listing.store
        self.files = self._listing.files
        self.hive_columns = self._listing.hive_columns
        if dataset.partition_column is not None and dataset.partition_column not in self.hive_columns and self.files:
            self.files = self._split_files(dataset.partition_column)

    def partition_keys(self) -> Sequence[str | None]:
        """Return the partitions, sorted; [None] for a source without a partition column."""
        if self.dataset.partition_column is None:
            return [None]
        return sorted({self.partition_of(file) or "" for file in self.files})

    def partition_of(self, file: SourceFile) -> str | None:
        """Return the partition that a file belongs to, None without a partition column."""
        if file.value is not None:
            return file.value
        return dict(file.hive).get(self.dataset.partition_column) if self.dataset.partition_column else None

    def files_of(self, partition: str | None) -> list[SourceFile]:
        """Return a partition's files in order.

        Raises:
            SourceError: Terminal. The partition has no folder.
        """
        files = [file for file in self.files if self.partition_of(file) == partition]
        if not files:
            raise SourceError(
                f"Partition {partition!r} has no {self._listing.describe_place(partition)}. Nothing of it was sent. Write it first."
            )
        return files

    def uri_of(self, partition: str | None) -> str:
        """Return where a partition's rows can be found later: its file, where a run wrote it, else the source as it was named."""
        if isinstance(self.dataset, ListedDataset) and self.dataset.files is not None:
            return self._path(self.files_of(partition)[0])
        return self.uri

    def schema(self, file: SourceFile | None = None) -> pa.Schema:
        """Return the columns of a file (the first by default), its path's as strings at the end."""
        file = file or self.files[0]
        with self._opened(file) as parquet:
            schema: pa.Schema = parquet.schema_arrow
        for column, _ in file.hive:
            # Where a file repeats a column of its path, the path counts: that is how it was listed.
            at = schema.get_field_index(column)
            schema = schema.set(at, pa.field(column, pa.string())) if at >= 0 else schema.append(pa.field(column, pa.string()))
        return schema.remove_metadata()

    def row_count(self, file: SourceFile) -> int:
        """Return a file's rows, from its footer."""
        if file.value is not None:
            return self._rows[file.path, file.value].count
        with self._opened(file) as parquet:
            return int(parquet.metadata.num_rows)

    def name(self, file: SourceFile) -> str:
        """Return a file's path or URL, for people; of a table that was kept also what returned it."""
        made_by = self.dataset.made_by if isinstance(self.dataset, ListedDataset) else None
        return f"{made_by} (kept as {self._path(file)})" if made_by else self._path(file)

    def _path(self, file: SourceFile) -> str:
        return f"{self._store.uri}/{file.path}"

    def digest(self, file: SourceFile) -> str:
        """Return what the file's content and its path's columns hash to, 32 hex digits; computed once for each version listed."""
        place = (file.path, file.version, file.value)
        known = self._digests.get(place)
        if known is None:
            known = self._digests[place] = self._hash(file)
        return known

    def pieces(self, file: SourceFile, columns: Sequence[str], rows: int = PIECE_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield a file's columns, in order, so many rows at a time or PIECE_BYTES.

        Raises:
            SourceError: Terminal. A column is missing, the file is no Parquet file, or it changed while it was read.
        """
        hive = dict(file.hive)
        stored = [column for column in dict.fromkeys(columns) if column not in hive]
        with self._opened(file) as parquet:
            names = parquet.schema_arrow.names
            missing = [column for column in stored if column not in names]
            if missing:
                raise SourceError(
                    f"{self.name(file)} has no column {missing[0]!r}; it has {', '.join(names)}. Nothing was sent. {suggest(missing[0], names)}",
                    column=missing[0],
                )
            repeated = [column for column in stored if names.count(column) > 1]
            if repeated:
                raise SourceError(
                    f"{self.name(file)} has {names.count(repeated[0])} columns named {repeated[0]!r}. Nothing was sent. Rename one."
                )
            for batch in self._batches(parquet, file, stored, rows):
                if not columns:
                    yield batch
                    continue
                arrays = [batch.column(column) if column not in hive else repeat_word(hive[column], batch.num_rows) for column in columns]
                yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        if read_version(self._store, file.path) != file.version:
            raise SourceError(f"{self.name(file)} changed while it was read. Nothing was sent from it. Run again when its writer is done.")

    def check_keys(self, files: Sequence[SourceFile]) -> None:
        """Refuse null keys and keys that occur twice among these files.

        Raises:
            SourceError: Terminal. The first five, with their rows.
        """
        keys = list(self.dataset.key_columns)
        if not self._may_be_refused(files, keys):
            self.check_types(files, keys)
            return
        batches = [piece for file in files for piece in self.pieces(file, keys, rows=65_536)]
        if not batches:
            return
        self.check_types(files, keys)
        names = [f"k{i}" for i in range(len(keys))]
        chunks = [[batch.column(i).cast(batches[0].column(i).type) for batch in batches] for i in range(len(keys))]
        table = pa.table([pa.chunked_array(parts) for parts in chunks], names=names)
        kinds = dict(zip(names, table.schema.types, strict=True))
        for column, kind in zip(keys, kinds.values(), strict=True):
            if pa.types.is_nested(kind):
                raise SourceError(
                    f"{self._place(files)}: the key {column!r} is of type {kind}, which identifies no row. Nothing of it was sent. "
                    "Choose a column of text, numbers, dates or UUIDs."
                )
        table = pa.table({name: _comparable(table.column(name)) for name in names})
        table = table.append_column("row", pa.array(range(1, table.num_rows + 1), pa.int64()))
        for column, name in zip(keys, names, strict=True):
            nulls = table.filter(pc.is_null(table.column(name), nan_is_null=True))["row"].to_pylist()
            if nulls:
                raise SourceError(
                    f"{self._place(files)}: the key {column!r} is {'null or NaN' if _has_nan(table.column(name)) else 'null'} in {len(nulls):,} {'row' if len(nulls) == 1 else 'rows'}, first in row {nulls[0]:,}. "
                    "Nothing of it was sent. A row without a key could not be found again; fill it in, or choose another --key."
                )
        groups = table.group_by(names).aggregate([("row", "count"), ("row", "min"), ("row", "max")])
        twice = groups.filter(pc.greater(groups["row_count"], 1)).sort_by("row_min")
        if twice.num_rows:
            shown = [
                f"{', '.join(_shown(row[name], kinds[name]) for name in names)} (rows {row['row_min']:,} and {row['row_max']:,})"
                for row in twice.slice(0, SHOWN_DUPLICATES).to_pylist()
            ]
            more = f", and {twice.num_rows - len(shown):,} more" if twice.num_rows > len(shown) else ""
            raise SourceError(
                f"{self._place(files)}: {twice.num_rows:,} {'key' if twice.num_rows == 1 else 'keys'} ({', '.join(keys)}) {'occurs' if twice.num_rows == 1 else 'occur'} more than once: {'; '.join(shown)}{more}. "
                "Nothing of it was sent. Choose a key that is unique within a partition; several columns are possible."
            )

    def _may_be_refused(self, files: Sequence[SourceFile], keys: list[str]) -> bool:
        """Tell whether a key may be null, occur twice or identify no row: 8 bytes a row instead of the keys themselves."""
        hashes = np.empty(sum(self.row_count(file) for file in files), np.uint64)
        start = 0
        for file in files:
            before = start
            for piece in self.pieces(file, keys, rows=65_536):
                if any(column.null_count or pa.types.is_nested(column.type) or _has_nan(column) for column in piece.columns):
                    return True
                try:
                    hashes[start : start + piece.num_rows] = hash_rows(piece.columns)
                except UNREADABLE as error:
                    found = find_unreadable(dict(zip(keys, piece.columns, strict=True)))
                    if found is None:
                        raise
                    raise SourceError(found.explain(self.name(file), start - before + found.row), column=found.column) from error
                start += piece.num_rows
        hashes = hashes[:start]
        hashes.sort()
        return bool((hashes[1:] == hashes[:-1]).any())

    def check_types(self, files: Sequence[SourceFile], columns: Sequence[str]) -> None:
        """Refuse files that do not all have these columns in the types of the first.

        Raises:
            SourceError: Terminal. With the column and both types.
        """
        first = self.schema(files[0])
        for file in files[1:]:
            schema = self.schema(file)
            for column in columns:
                kind = schema.field(column).type if column in schema.names else "missing"
                if kind == "missing" or _plain(kind) != _plain(first.field(column).type):
                    raise SourceError(
                        f"The column {column!r} is {kind} in {self.name(file)} and {first.field(column).type} in {self.name(files[0])}. "
                        "Nothing of it was sent. Write both files alike, or carry fewer columns.",
                        column=column,
                    )

    def changed(self, partitions: Collection[str] | None = None) -> bool:
        """Tell whether a file was added, removed or rewritten since this listing.

        Args:
            partitions: Whose files count, None for all.
        """
        return Source(self.dataset)._versions(partitions) != self._versions(partitions)

    def _versions(self, partitions: Collection[str] | None) -> list[tuple[str, str]]:
        counted = (file for file in self.files if partitions is None or self.partition_of(file) in partitions)
        return [(file.path, file.version) for file in counted]

    def _split_files(self, column: str) -> list[SourceFile]:
        """List each file once for each value of a partition column that stands in the files."""
        names = self.schema(self.files[0]).names
        if column not in names:
            there = f"its hive columns are {', '.join(self.hive_columns)}" if self.hive_columns else "it has no hive columns"
            raise SourceError(
                f"The partition column {column!r} is no folder level of {self.uri}; {there}, and its files the columns {', '.join(names)}. Nothing was "
                f"sent. Lay the files out as {column}=VALUE/part-0.parquet, name a column of theirs, or leave the partition column out."
            )
        only = self.dataset.only if isinstance(self.dataset, ListedDataset) else None
        split = []
        for file in self.files:
            found = look_once((self._path(file), file.version, column, only), partial(self._find_partitions, file, column, only))
            split += [replace(file, value=value) for value in found]
            self._rows |= {(file.path, value): rows for value, rows in found.items()}
        return split

    def _find_partitions(self, file: SourceFile, column: str, only: Collection[str] | None) -> dict[str, PartitionRows]:
        with self._opened(file) as parquet:
            if column not in parquet.schema_arrow.names:
                raise SourceError(
                    f"{self.name(file)} has no column {column!r}, which other files of {self.uri} have. Nothing was sent. Write it again."
                )
            return find_partitions(parquet, column, only, self.name(file))

    def _hash(self, file: SourceFile) -> str:
        content = hashlib.sha256()
        if self._store.folder is None:
            content.update(f"{self._store.uri}/{file.path} {file.version}".encode())
        elif file.value is None:
            for chunk in self._store.stream(file.path):
                content.update(chunk)
        else:
            content.update(hash_once(self._store, file.path, file.version))
        content.update(repr(file.hive if file.value is None else (file.hive, file.value)).encode())
        return content.hexdigest()[:32]

    @contextmanager
    def _opened(self, file: SourceFile) -> Iterator[pq.ParquetFile]:
        try:
            parquet = pq.ParquetFile(self._store.open(file.path), pre_buffer=False, buffer_size=1 << 20)
        except FileNotFoundError:
            raise SourceError(
                f"{self.name(file)} was there when the source was listed, and is gone. Nothing was sent from it. Run again when its writer is done."
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(
                f"{self.name(file)} is not a Parquet file, or its footer is damaged: {_first_line(error)}. Nothing was sent. Write it again."
            ) from error
        with parquet:
            yield parquet

    def _batches(self, parquet: pq.ParquetFile, file: SourceFile, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        try:
            if columns and file.value is not None and self.dataset.partition_column is not None:
                read = list(dict.fromkeys((*columns, self.dataset.partition_column)))
                groups = self._rows[file.path, file.value].groups
                fitting = _fitting_rows(parquet.metadata, read, rows)
                batches = _read_ahead(parquet.iter_batches(fitting, row_groups=groups, columns=read, use_threads=False))
                yield from filter_rows(batches, self.dataset.partition_column, file.value)
                return
            if columns:
                yield from _read_ahead(
                    parquet.iter_batches(_fitting_rows(parquet.metadata, columns, rows), columns=columns, use_threads=False)
                )
                return
            total = parquet.metadata.num_rows if file.value is None else self.row_count(file)
            for start in range(0, total, rows):
                count = min(rows, total - start)
                yield pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
        except (pa.ArrowInvalid, pa.ArrowIndexError, OSError) as error:
            raise SourceError(
                f"{self.name(file)} cannot be read: {_first_line(error)}. Nothing was sent from it. Write it again."
            ) from error

    def _place(self, files: Sequence[SourceFile]) -> str:
        return self.name(files[0]) if len(files) == 1 else f"{self.uri} ({len(files)} files, rows counted over all)"


def find_partition_column(dataset: ParquetDataset) -> ParquetDataset:
    """Return the dataset with its only hive column as partition column; unchanged where there is none, or more than one."""
    if dataset.partition_column is not None:
        return dataset
    columns = Source(dataset).hive_columns
    return replace(dataset, partition_column=columns[0]) if len(columns) == 1 else dataset


def _fitting_rows(file: pq.FileMetaData, columns: Collection[str], rows: int) -> int:
    """Return so many rows, or as many as PIECE_BYTES are where a row group's are longest."""
    fitting = rows
    for group in map(file.row_group, range(file.num_row_groups)):
        # All columns together are seen at once, and mostly short enough.
        if group.total_byte_size * rows > PIECE_BYTES * group.num_rows:
            chunks = map(group.column, range(group.num_columns))
            size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.startswith(tuple(columns)))
            fitting = min(fitting, PIECE_BYTES * group.num_rows // max(size, 1))
    return max(1, fitting)


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Read the next batch while one is worked on: decoding leaves the interpreter free."""
    with ThreadPoolExecutor(1, "read") as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch


def hash_rows(columns: Sequence[pa.Array]) -> npt.NDArray[np.uint64]:
    """Return a hash of each row: equal rows have equal ones, within this process."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        # The finalizer of splitmix64, so that neighbours in several columns do not fall together.
        mixed ^= _hash_values(column) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _hash_values(column: pa.Array) -> npt.NDArray[np.uint64]:
    if pa.types.is_signed_integer(column.type):
        numbers: npt.NDArray[np.uint64] = to_numpy(column.cast(pa.int64())).view(np.uint64)
        return numbers
    storage = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
    return np.fromiter(map(hash, storage.to_pylist()), np.int64, len(column)).view(np.uint64)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return one type for all that hold the same values: they are cast to each other when files are joined."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _ALIKE.get(kind, kind)


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Give a key column a type that can be grouped by."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    plain = _plain(column.type)
    return column if plain == column.type else column.cast(plain)


def _has_nan(column: pa.Array | pa.ChunkedArray) -> bool:
    return pa.types.is_floating(_plain(column.type)) and pc.any(pc.is_nan(column.cast(_plain(column.type)))).as_py() is True


def _shown(value: object, kind: pa.DataType) -> str:
    return str(UUID(bytes=value)) if kind == pa.uuid() and isinstance(value, bytes) else str(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
