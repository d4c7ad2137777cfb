"""Partitions that are the values of a column in the files: which of a file's row groups hold rows of which, and how many.

Values compare as text: a date as 2026-11-01, a number by its digits. A null belongs to the partition that hive calls it.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage.store import Store

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
SCANNED_ROWS = 65_536
KEPT_FILES = 256
"""Of so many files this process remembers what their partition column holds, and their hash: both are read from the whole file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionRows:
    """A partition's rows of one file.

    Attributes:
        count: How many.
        groups: The row groups that hold any, in order.
    """

    count: int
    groups: tuple[int, ...]


def find_partitions(parquet: pq.ParquetFile, column: str, only: Collection[str] | None, name: str) -> dict[str, PartitionRows]:
    """Return the rows of each partition in a file; row groups whose statistics hold none of those wanted are not read.

    Args:
        parquet: The file.
        column: Whose values are the partitions.
        only: The partitions that are wanted, None for all.
        name: Of the file, for people.

    Raises:
        SourceError: Terminal. The column is of a type whose values name no partition.
    """
    kind = parquet.schema_arrow.field(column).type
    _check_type(kind, column, name)
    bounds = None if only is None else _to_values(only, kind)
    counts: Counter[str] = Counter()
    groups: dict[str, list[int]] = {}
    for group in range(parquet.metadata.num_row_groups):
        if bounds is not None and not _may_hold(parquet.metadata.row_group(group), column, bounds, nulls=NULL_PARTITION in (only or ())):
            continue
        found: Counter[str] = Counter()
        for batch in parquet.iter_batches(SCANNED_ROWS, row_groups=[group], columns=[column], use_threads=False):
            for entry in pc.value_counts(to_text(batch.column(0))).to_pylist():
                found[entry["values"]] += entry["counts"]
        for value in found if only is None else found.keys() & set(only):
            counts[value] += found[value]
            groups.setdefault(value, []).append(group)
    return {value: PartitionRows(count=counts[value], groups=tuple(groups[value])) for value in sorted(counts)}


_looks: "OrderedDict[tuple[object, ...], dict[str, PartitionRows]]" = OrderedDict()
_hashes: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()


def look_once(place: tuple[object, ...], look: Callable[[], dict[str, PartitionRows]]) -> dict[str, PartitionRows]:
    """Return what was found in a version of a file, which is looked at once: each partition is listed anew while it is published."""
    if place not in _looks:
        _looks[place] = look()
        if len(_looks) > KEPT_FILES:
            _looks.popitem(last=False)
    return _looks[place]


def hash_once(store: Store, path: str, version: str) -> bytes:
    """Return the hash of a version of a local file, which many partitions share."""
    place = (store.uri, path, version)
    if place not in _hashes:
        content = hashlib.sha256()
        for chunk in store.stream(path):
            content.update(chunk)
        _hashes[place] = content.digest()
        if len(_hashes) > KEPT_FILES:
            _hashes.popitem(last=False)
    return _hashes[place]


def filter_rows(batches: Iterator[pa.RecordBatch], column: str, partition: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one partition."""
    for batch in batches:
        rows = batch.filter(pc.equal(to_text(batch.column(column)), partition))
        if rows.num_rows:
            yield rows


def to_text(values: pa.Array) -> pa.Array:
    """Return values as the partitions' keys."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.string()).fill_null(NULL_PARTITION)


def _check_type(kind: pa.DataType, column: str, name: str) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(test(value) for test in (*texts, pa.types.is_integer, pa.types.is_date, pa.types.is_boolean, pa.types.is_null)):
        raise SourceError(
            f"The partition column {column!r} of {name} is of type {kind}, whose values name no partition. Nothing of it was sent. "
            "Write a column of dates, text or whole numbers beside it, and name that.",
            column=column,
        )


def _to_values(keys: Collection[str], kind: pa.DataType) -> list[Any]:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    values = []
    for key in keys:
        try:
            values.append(pa.scalar(key).cast(kind).as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            # A key that is no value of this type is in no file.
            continue
    return values


def _may_hold(group: Any, column: str, values: list[Any], *, nulls: bool) -> bool:
    """Tell whether a row group may hold one of the values, by its statistics."""
    chunk = next((group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == column), None)
    statistics = chunk.statistics if chunk is not None else None
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count:
        return True
    if nulls and statistics.null_count:
        return True
    least, most = statistics.min, statistics.max
    try:
        return any(least <= value <= most for value in values)
    except TypeError:
        return True
