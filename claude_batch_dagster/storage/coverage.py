"""Which rows of a source an output accounts for: keys compared as hashes, 8 bytes a row, streamed from both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.storage.source import Source, hash_rows
from claude_batch_dagster.storage.store import Store

PIECE_ROWS = 65_536
SHOWN_KEYS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How a partition's source and output compare.

    Attributes:
        source_rows: As the source is now.
        covered_rows: Of these, the ones that the output holds with an answer, or with a reason why there is none.
        output_rows: Of the output, those without an answer and those that the source no longer has among them.
        pending_rows: Of the output: rows whose answer is still to come, which are not covered.
        missing: The first keys that are not covered; several key columns are joined by commas.
        by_key: False where the output does not carry the key: then only the counts were compared.
    """

    source_rows: int
    covered_rows: int
    output_rows: int
    pending_rows: int
    missing: tuple[str, ...]
    by_key: bool


def compare_keys(source: Source, partition: str | None, output: Store, path: str, keys: Sequence[str]) -> Coverage:
    """Compare a partition's source with its output.

    Args:
        source: The source.
        partition: None for a source without partitions.
        output: The output's folder.
        path: Of the partition's file in it.
        keys: The key columns.

    Raises:
        SourceError: Terminal. The source has no such partition, or cannot be read.
    """
    # A partition column in the path is the same on every row.
    own = [key for key in keys if key != source.dataset.partition_column]
    held, output_rows, pending, by_key = _settled(output, path, own)
    files = source.files_of(partition)
    if not by_key:
        rows = sum(source.row_count(file) for file in files)
        return Coverage(
            source_rows=rows,
            covered_rows=min(rows, output_rows - pending),
            output_rows=output_rows,
            pending_rows=pending,
            missing=(),
            by_key=False,
        )
    rows, covered = 0, 0
    missing: list[str] = []
    for file in files:
        for piece in source.pieces(file, own, rows=PIECE_ROWS):
            there = _is_in(hash_rows(piece.columns), held)
            rows += piece.num_rows
            covered += int(there.sum())
            if len(missing) < SHOWN_KEYS:
                at = pa.array(np.flatnonzero(~there)[: SHOWN_KEYS - len(missing)])
                missing += [", ".join(map(str, row.values())) for row in piece.take(at).to_pylist()]
    return Coverage(
        source_rows=rows, covered_rows=covered, output_rows=output_rows, pending_rows=pending, missing=tuple(missing), by_key=True
    )


def _settled(output: Store, path: str, keys: list[str]) -> tuple[npt.NDArray[np.uint64], int, int, bool]:
    """Return the sorted hashes of the keys that have an answer or a reason, the rows, the pending rows, and whether the keys are there."""
    hashes, pending = [np.zeros(0, np.uint64)], 0
    with pq.ParquetFile(output.open(path), pre_buffer=False) as parquet:
        by_key = bool(keys) and set(keys) <= set(parquet.schema_arrow.names)
        for piece in parquet.iter_batches(PIECE_ROWS, columns=["status", *(keys if by_key else ())]):
            settled = pc.and_(pc.is_valid(piece.column("status")), pc.not_equal(piece.column("status"), "pending"))
            settled = settled.fill_null(False)
            pending += piece.num_rows - settled.true_count
            if by_key:
                hashes.append(hash_rows(piece.filter(settled).select(keys).columns))
        rows = int(parquet.metadata.num_rows)
    return np.sort(np.concatenate(hashes)), rows, pending, by_key


def _is_in(hashes: npt.NDArray[np.uint64], held: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if not len(held):
        return np.zeros(len(hashes), np.bool_)
    at = np.searchsorted(held, hashes)
    at[at == len(held)] = 0
    there: npt.NDArray[np.bool_] = held[at] == hashes
    return there
