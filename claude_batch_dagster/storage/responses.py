"""The files of the response store: what Claude answered, failures included.

- `responses/{endpoint}/{task_key}/{batch_id}.parquet` is named by its batch, so that whoever collects the batch writes the same file.
- `compacted-{hash}.parquet` beside them holds the rows of several small ones, as they were; see `compaction`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.outcome import Outcome, is_final
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.arrays import to_arrow, to_numpy
from claude_batch_dagster.storage.keys import KEY_TYPE, Keys, keys_from_arrow
from claude_batch_dagster.storage.store import Store

ROW_GROUP_ROWS = 4_096
ROW_GROUP_BYTES = 16 << 20
"""Of answers: a row group has fewer rows where they are long."""
SCHEMA = pa.schema(
    [
        pa.field("request_key", KEY_TYPE),
        pa.field("outcome", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("model", pa.string()),
        pa.field("input_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("cache_read_tokens", pa.int64()),
        pa.field("cache_write_tokens", pa.int64()),
        pa.field("max_tokens", pa.int64()),
        pa.field("cost_nano_usd", pa.int64()),
        pa.field("batch_id", pa.string()),
        pa.field("round", pa.int32()),
        pa.field("answered_at", pa.timestamp("us", "UTC")),
        pa.field("retryable", pa.bool_()),
    ]
)
_WRITING: dict[str, Any] = {
    # Keys are random and answers differ: neither a dictionary of them nor packed keys are worth their time.
    "use_dictionary": [name for name in SCHEMA.names if name not in ("request_key", "answer")],
    # Quickly written, and read at twice the speed of zstd, for a third more bytes; of the other columns little is left to be packed.
    "compression": {name: "lz4" if name in ("answer", "error") else "none" for name in SCHEMA.names},
    # Nobody looks for a row group by these.
    "write_statistics": [name for name in SCHEMA.names if name not in ("request_key", "answer")],
    "write_batch_size": ROW_GROUP_ROWS,
}
ANSWER_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("retryable"))
OUTCOMES = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.PENDING)
CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
FINAL, RETRYABLE = 0x80, 0x40
"""Set in the code of a response: its outcome is final; its run granted the request a further round and did not open it."""
OUTCOME_BITS = 0x3F
"""The rest of a code: a place in OUTCOMES."""
COMPACTED = "compacted-"
ORIGIN_KEY = "claude_batch_origin"
_RANK_COLUMNS = ["request_key", "outcome", "error", "round", "answered_at", "output_tokens", "retryable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Rows of a response file that follow each other and come from one batch."""

    batch_id: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the rows of a compacted file come from.

    Attributes:
        stretches: In the order of the rows.
        sources: Name and version of each file that was joined.
    """

    stretches: tuple[Stretch, ...]
    sources: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """What decides which response of a key counts, of each row of a file.

    Attributes:
        codes: A place in OUTCOMES, with FINAL and RETRYABLE.
        stamps: When it was answered, microseconds since 1970.
    """

    keys: Keys
    codes: npt.NDArray[np.uint8]
    stamps: npt.NDArray[np.int64]
    rounds: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int64]


def responses_folder(endpoint: str, task_key: str) -> str:
    """Return where the responses to one task are kept."""
    return f"responses/{endpoint}/{task_key}"


def responses_path(endpoint: str, task_key: str, batch_id: str) -> str:
    """Return where a batch's responses to one task are kept."""
    return f"{responses_folder(endpoint, task_key)}/{batch_id}.parquet"


def write_response_batches(store: Store, *, endpoint: str, task_key: str, batch_id: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a batch's responses to one task, in the order given. Writing the same batch again replaces the file by an equal one.

    Args:
        store: The root.
        endpoint: Whose answers.
        task_key: To which task.
        batch_id: Who answered; the rows' `batch_id` is the same.
        batches: In SCHEMA, of any length; one at a time and a row group are in memory.
    """
    with store.putting(responses_path(endpoint, task_key, batch_id)) as file:
        write_response_file(file, batches)


def write_responses(
    store: Store, *, endpoint: str, task_key: str, batch_id: str, round_number: int, answered_at: datetime, responses: Sequence[Response]
) -> None:
    """Write a batch's responses to one task, in the order given. Writing the same batch again replaces the file by an equal one."""
    batches = (
        _to_arrow(responses[start : start + ROW_GROUP_ROWS], batch_id, round_number, answered_at)
        for start in range(0, len(responses), ROW_GROUP_ROWS)
    )
    write_response_batches(store, endpoint=endpoint, task_key=task_key, batch_id=batch_id, batches=batches)


def write_response_file(file: Path, batches: Iterable[pa.RecordBatch], metadata: Mapping[str, str] | None = None) -> None:
    """Write a local file of responses, in the same row groups however long the batches are; a group beside the making of the next one."""
    schema = SCHEMA.with_metadata(metadata) if metadata else SCHEMA
    with pq.ParquetWriter(file, schema, **_WRITING) as writer, ThreadPoolExecutor(1, "write") as compressor:
        compressing: Future[None] = compressor.submit(lambda: None)
        for group in _regroup(batches):
            compressing.result()
            compressing = compressor.submit(writer.write_table, group.cast(schema), row_group_size=ROW_GROUP_ROWS)
        compressing.result()


def write_compacted_file(file: Path, batches: Iterable[pa.RecordBatch], origin: Origin) -> None:
    """Write a local file of the responses of several batches, which says itself where they come from."""
    write_response_file(file, batches, {ORIGIN_KEY: msgspec.json.encode(origin).decode()})


def conform(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows of a response file in SCHEMA, also of one from before `retryable`."""
    if "retryable" not in rows.schema.names:
        rows = rows.append_column(SCHEMA.field("retryable"), pa.nulls(rows.num_rows, pa.bool_()))
    return rows.cast(SCHEMA)


def iter_rows(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows in SCHEMA, a row group at most at a time: that is bounded by its bytes too."""
    for group in range(file.metadata.num_row_groups):
        for rows in file.iter_batches(ROW_GROUP_ROWS, row_groups=[group], use_threads=False):
            yield conform(rows)


def read_origin(store: Store, path: str) -> Origin:
    """Return where a compacted file's rows come from, from its footer."""
    content: bytes = pq.read_metadata(store.open(path)).metadata[ORIGIN_KEY.encode()]
    return msgspec.json.decode(content, type=Origin)


def read_ranks(store: Store, path: str) -> Ranks:
    """Read what decides which response of a key counts, of all rows of a file."""
    with pq.ParquetFile(store.open(path), read_dictionary=["outcome"]) as file:
        # Files from before there was the last of these columns lack it.
        table = file.read(columns=_RANK_COLUMNS)
    outcomes = (
        table["outcome"].combine_chunks()
        if table.num_rows
        else pa.DictionaryArray.from_arrays(pa.nulls(0, pa.int32()), pa.nulls(0, pa.string()))
    )
    if isinstance(outcomes, pa.ChunkedArray):
        outcomes = outcomes.unify_dictionaries().combine_chunks()
    words = outcomes.dictionary.to_pylist()
    codes = np.array([CODES[word] | (FINAL if is_final(word, None) else 0) for word in words], np.uint8)[to_numpy(outcomes.indices)]
    # Of the outcomes only this one needs the error to be told whether it is final.
    errored = np.flatnonzero(codes == CODES[Outcome.ERRORED])
    if len(errored):
        errors = table["error"].take(to_arrow(errored, pa.int64())).combine_chunks().dictionary_encode()
        final = np.array([is_final(Outcome.ERRORED, error) for error in errors.dictionary.to_pylist()] + [False], np.bool_)
        codes[errored[final[to_numpy(errors.indices, len(final) - 1)]]] |= FINAL
    if "retryable" in table.column_names:
        codes[to_numpy(table["retryable"])] |= RETRYABLE
    return Ranks(
        keys=keys_from_arrow(table["request_key"]),
        codes=codes,
        stamps=to_numpy(table["answered_at"].cast(pa.int64())),
        rounds=to_numpy(table["round"]),
        output_tokens=to_numpy(table["output_tokens"]),
    )


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        ends = np.cumsum(to_numpy(pc.binary_length(batch.column("answer"))), dtype=np.int64)
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            fitting = int(np.searchsorted(ends, before + ROW_GROUP_BYTES - size, "right"))
            stop = min(start + ROW_GROUP_ROWS - rows, max(fitting, start if rows else start + 1))
            held.append(batch.slice(start, stop - start))
            rows, size = rows + stop - start, size + (int(ends[stop - 1]) - before if stop > start else 0)
            if stop < batch.num_rows or rows == ROW_GROUP_ROWS:
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
            start = stop
    if rows:
        yield pa.Table.from_batches(held)


def _to_arrow(rows: Sequence[Response], batch_id: str, round_number: int, answered_at: datetime) -> pa.RecordBatch:
    keys = pa.ExtensionArray.from_storage(KEY_TYPE, pa.array([row.request_key for row in rows], pa.binary(16)))
    plain = [pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names[1:12]]
    marks = pa.array([row.retryable for row in rows], pa.bool_())
    constant = [
        pa.array([value] * len(rows), SCHEMA.field(name).type)
        for name, value in zip(SCHEMA.names[12:15], (batch_id, round_number, answered_at), strict=True)
    ]
    return pa.record_batch([keys, *plain, *constant, marks], schema=SCHEMA)
