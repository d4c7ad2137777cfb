"""Counts an output's labels: the columns that sort answered rows into few kinds."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.schema import Field, FieldType
from claude_batch_dagster.storage.store import Store

MAX_LABELS = 12
MAX_LABEL_CHARS = 40
MIN_ROWS_PER_LABEL = 4
SAMPLE_ROWS = 2_048
PIECE_ROWS = 65_536
NO_LABEL = "(none)"

LabelCounts = dict[str, dict[str, int]]


def label_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields that are labels by their definition: enums of texts or whole numbers, and booleans; texts first."""
    found = [field for field in fields if field.type is FieldType.BOOLEAN or field.values]
    return tuple(sorted(found, key=lambda field: field.type is not FieldType.STRING))


def count_labels(output: Store, path: str, fields: Sequence[Field]) -> LabelCounts:
    """Return the answered rows of a file by label, for each column that holds labels.

    A text column without an enum counts as one where the file has at most MAX_LABELS short texts, each on MIN_ROWS_PER_LABEL rows in the
    mean. An answer without a label counts as NO_LABEL.

    Args:
        output: The folder.
        path: Of a file in it.
        fields: The task's.
    """
    known = label_fields(fields)
    free = [field for field in fields if field.type is FieldType.STRING and not field.values]
    with pq.ParquetFile(output.open(path), pre_buffer=False) as parquet:
        there = set(parquet.schema_arrow.names)
        known = tuple(field for field in known if field.name in there)
        free = _few_kinds(parquet, [field for field in free if field.name in there])
        counts = {field.name: Counter({str(value): 0 for value in _values(field)}) for field in (*known, *free)}
        if counts:
            for piece in _answered(parquet, list(counts), PIECE_ROWS):
                for name, counted in counts.items():
                    counted.update(_count(piece.column(name)))
    return {name: dict(counted) for name, counted in counts.items() if name in {field.name for field in known} or _is_few(counted)}


def count_values(output: Store, path: str, column: str) -> Counter[str]:
    """Return the answered rows of a file by what stands in a column; NO_LABEL for nothing."""
    with pq.ParquetFile(output.open(path), pre_buffer=False) as parquet:
        counted: Counter[str] = Counter()
        for piece in _answered(parquet, [column], PIECE_ROWS):
            counted.update(_count(piece.column(column)))
    return counted


def count_column(output: Store, path: str, column: str) -> Counter[str]:
    """Return all rows of a file by what stands in a column."""
    with pq.ParquetFile(output.open(path), pre_buffer=False) as parquet:
        counted: Counter[str] = Counter()
        for piece in parquet.iter_batches(PIECE_ROWS, columns=[column]):
            counted.update(_count(piece.column(0)))
    return counted


def _few_kinds(parquet: pq.ParquetFile, fields: Sequence[Field]) -> list[Field]:
    """Return those whose first rows may be labels: long texts are not read whole to learn that they are none."""
    if not fields:
        return []
    piece = next(_answered(parquet, [field.name for field in fields], SAMPLE_ROWS), None)
    return [] if piece is None else [field for field in fields if _is_few(_count(piece.column(field.name)))]


def _answered(parquet: pq.ParquetFile, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    for piece in parquet.iter_batches(rows, columns=["status", *columns]):
        yield piece.filter(pc.equal(piece.column("status"), "succeeded"))


def _values(field: Field) -> tuple[object, ...]:
    return ("true", "false") if field.type is FieldType.BOOLEAN else field.values


def _count(column: pa.Array) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in pc.value_counts(column).to_pylist():
        found[_text(one["values"])] += one["counts"]
    return found


def _text(value: object) -> str:
    if value is None:
        return NO_LABEL
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_few(counted: Counter[str]) -> bool:
    kinds = [label for label, count in counted.items() if count]
    return (
        0 < len(kinds) <= MAX_LABELS
        and all(len(label) <= MAX_LABEL_CHARS for label in kinds)
        and counted.total() >= MIN_ROWS_PER_LABEL * len(kinds)
    )
