"""Request keys as arrays: millions of them are never Python objects.

A key is 16 bytes, here two little-endian uint64 in a row of an (n, 2) array; (0, 0) stands for "no key".
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.storage.arrays import distinct, to_arrow, to_numpy, words_to_arrow
from claude_batch_dagster.storage.store import Store

Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int32]
Slots = npt.NDArray[np.int64]
Reasons = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.int64]

REASONS = ("skipped", "too_large")
ASKED, SKIPPED, LARGE = range(-1, 2)
"""Why a row is not asked about, as places in REASONS; ASKED where it is."""
GROUP_ROWS = 131_072
"""Of a keys file: so many rows are held until they are written, and read at once."""
KEY_TYPE = pa.uuid()
_STEPS = 2 ** np.arange(16)
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
_REASON_TYPE = pa.dictionary(pa.int8(), pa.string())
ROW_KEYS_SCHEMA = pa.schema([pa.field("request_key", KEY_TYPE), pa.field("reason", _REASON_TYPE)])
OWNED_SCHEMA = pa.schema(
    [
        pa.field("task_key", pa.dictionary(pa.int32(), pa.string())),
        pa.field("request_key", KEY_TYPE),
        pa.field("shard", pa.int32()),
        pa.field("position", pa.int32()),
        # 0 where it is the task's own.
        pa.field("max_tokens", pa.int64()),
    ]
)


def pack_keys(keys: list[bytes | None]) -> Keys:
    """Return keys as an array, None as (0, 0)."""
    return np.frombuffer(b"".join([key or bytes(16) for key in keys]), dtype=np.uint64).reshape(-1, 2)


def keys_from_arrow(column: pa.Array | pa.ChunkedArray) -> Keys:
    """Return a UUID column as an array, null as (0, 0)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.nulls(0, pa.binary(16))
    storage = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
    if storage.null_count:
        storage = storage.fill_null(to_arrow(np.zeros((1, 2), np.uint64), pa.binary(16))[0])
    start = storage.offset * 16
    return (
        np.frombuffer(storage.buffers()[1], dtype=np.uint8)[start : start + len(storage) * 16].view(np.uint64).reshape(-1, 2)
        if len(storage)
        else np.empty((0, 2), np.uint64)
    )


def keys_to_arrow(keys: Keys, *, null_where_absent: bool = False) -> pa.Array:
    """Return an array of keys as a UUID column."""
    valid = has_key(keys) if null_where_absent else None
    return pa.ExtensionArray.from_storage(KEY_TYPE, to_arrow(np.ascontiguousarray(keys), pa.binary(16), valid))


def write_digits(keys: Keys, into: npt.NDArray[np.uint8]) -> None:
    """Write keys as 32 hex digits each into the first columns of an array of bytes, a row each."""
    into[:, :32] = _HEX[np.ascontiguousarray(keys).view(np.uint8)].view(np.uint8)


def has_key(keys: Keys) -> Mask:
    """Tell which rows are keys."""
    # By column: numpy is slow along an axis of two.
    return np.asarray((keys[:, 0] | keys[:, 1]) != 0, np.bool_)


class KeySet:
    """A set of keys by open addressing: about 24 bytes a key.

    Args:
        expected: How many keys may come; the table grows where more do.
    """

    def __init__(self, expected: int = 0) -> None:
        self._clear(expected)

    def __len__(self) -> int:
        return self._count

    def add(self, keys: Keys) -> Mask:
        """Add keys; tell of each whether it is new here, a repeated one at its first place only. "No key" is never new."""
        if (self._count + len(keys)) * 10 > len(self._high) * 7:
            self._grow(len(keys))
        new = np.zeros(len(keys), np.bool_)
        pending = np.flatnonzero(has_key(keys))
        at, step, high, low = self._home(keys, pending)
        while len(pending):
            rows = np.flatnonzero((self._high[at] | self._low[at]) == 0)[::-1]
            free = at[rows]
            # Of several rows that want one free slot the first shall have it: all write their number there, it comes last.
            self._low[free] = rows
            is_owner = self._low[free] == rows.view(np.uint64)
            rows, free = rows[is_owner], free[is_owner]
            self._high[free], self._low[free] = high[rows], low[rows]
            new[pending[rows]] = True
            self._count += len(rows)
            going = np.flatnonzero((self._high[at] != high) | (self._low[at] != low))
            pending, step, high, low = pending[going], step[going], high[going], low[going]
            at = (at[going] + step) % len(self._high)
        return new

    def contains(self, keys: Keys) -> Mask:
        """Tell which of the keys are in the set."""
        found = np.zeros(len(keys), np.bool_)
        if not self._count:
            return found
        pending = np.flatnonzero(has_key(keys))
        at, step, high, low = self._home(keys, pending)
        while len(pending):
            held_high, held_low = self._high[at], self._low[at]
            same = (held_high == high) & (held_low == low)
            found[pending[same]] = True
            going = np.flatnonzero(~same & ((held_high | held_low) != 0))
            pending, step, high, low = pending[going], step[going], high[going], low[going]
            at = (at[going] + step) % len(self._high)
        return found

    def _home(self, keys: Keys, rows: Slots) -> tuple[Slots, Slots, npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Return where some keys are looked for first, how far on next, and their halves: one column at a time, numpy is slow with two."""
        high, low = keys[:, 0][rows], keys[:, 1][rows]
        # Powers of two reach every slot of a table of an odd size.
        return (high % np.uint64(len(self._high))).astype(np.int64), _STEPS[low % np.uint64(len(_STEPS))], high, low

    def _clear(self, expected: int) -> None:
        self._high, self._low = np.zeros(_table_size(expected), np.uint64), np.zeros(_table_size(expected), np.uint64)
        self._count = 0

    def _grow(self, more: int) -> None:
        used = np.flatnonzero(self._high | self._low)
        old = np.stack((self._high[used], self._low[used]), axis=1)
        self._clear(2 * (len(old) + more))
        for start in range(0, len(old), 65_536):
            self.add(old[start : start + 65_536])


class _GroupWriter:
    """Writes the rows of a keys file in groups of a useful size, whatever pieces they come in."""

    def __init__(self, file: Path, schema: pa.Schema, dictionaries: list[str]) -> None:
        self.file = file
        self.count = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="none", use_dictionary=dictionaries)
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0

    def write(self, columns: list[pa.Array]) -> None:
        self._held.append(pa.record_batch(columns, schema=self._schema))
        self._held_rows += len(columns[0])
        self.count += len(columns[0])
        if self._held_rows >= GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held).unify_dictionaries(), row_group_size=GROUP_ROWS)
        self._held, self._held_rows = [], 0


class RowKeys:
    """Writes `keys/{digest}-{task_key}.parquet`, a row a source row, as a file is rendered.

    Args:
        file: The local file to write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._groups = _GroupWriter(file, ROW_KEYS_SCHEMA, ["reason"])

    def append(self, keys: Keys, reasons: Reasons) -> None:
        """Append the keys of some rows, and why some have none."""
        codes = to_arrow(np.where(reasons == ASKED, np.int8(0), reasons), pa.int8(), reasons != ASKED)
        self._groups.write([keys_to_arrow(keys, null_where_absent=True), pa.DictionaryArray.from_arrays(codes, words_to_arrow(REASONS))])

    def close(self) -> None:
        """Finish the file."""
        self._groups.close()


def row_keys_path(digest: str, task_key: str) -> str:
    """Return where the keys of a source file's rows are kept."""
    return f"keys/{digest}-{task_key}.parquet"


def iter_row_keys(store: Store, digest: str, task_key: str) -> "Iterator[tuple[Keys, Reasons]] | None":
    """Return the keys of a source file's rows, and why some have none, some rows at a time; None where it was never rendered for this task."""
    path = row_keys_path(digest, task_key)
    return _iter_row_keys(pq.ParquetFile(store.open(path))) if store.exists(path) else None


def _iter_row_keys(file: pq.ParquetFile) -> Iterator[tuple[Keys, Reasons]]:
    with file:
        for batch in file.iter_batches(GROUP_ROWS):
            reasons = batch.column("reason")
            codes = np.array([*(REASONS.index(word) for word in reasons.dictionary.to_pylist()), ASKED], np.int8)
            yield keys_from_arrow(batch.column("request_key")), codes[to_numpy(reasons.indices, len(codes) - 1)]


class OwnedKeys:
    """Writes `plans/{run_id}/keys.parquet`: what a run owns, a row a request.

    Args:
        file: The local file to write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._groups = _GroupWriter(file, OWNED_SCHEMA, ["task_key", "max_tokens"])

    @property
    def count(self) -> int:
        """Requests so far."""
        return self._groups.count

    def append(self, task_key: str, keys: Keys, shards: Places, positions: Places, max_tokens: Numbers | None = None) -> None:
        """Append requests of one task with their places, and the `max_tokens` of each where they are not the task's own."""
        if len(keys):
            task_keys = pa.DictionaryArray.from_arrays(to_arrow(np.zeros(len(keys), np.int32), pa.int32()), words_to_arrow([task_key]))
            caps = to_arrow(np.zeros(len(keys), np.int64) if max_tokens is None else max_tokens, pa.int64())
            self._groups.write([task_keys, keys_to_arrow(keys), to_arrow(shards, pa.int32()), to_arrow(positions, pa.int32()), caps])

    def abandon(self) -> None:
        """Let go of the file."""
        self._groups.close()

    def close(self) -> str:
        """Finish the file; return its SHA-256 in hex."""
        self._groups.close()
        with self.file.open("rb") as written:
            return hashlib.file_digest(written, "sha256").hexdigest()


def owned_keys_path(run_id: str) -> str:
    """Return where the keys that a run owns are kept."""
    return f"plans/{run_id}/keys.parquet"


def read_owned_keys(store: Store, run_id: str) -> Iterator[tuple[str, Keys]]:
    """Yield (task_key, keys) of what a run owns, some requests at a time: a task comes more than once."""
    with pq.ParquetFile(store.open(owned_keys_path(run_id))) as file:
        for batch in file.iter_batches(GROUP_ROWS, columns=["task_key", "request_key"]):
            names, keys = batch.column("task_key"), keys_from_arrow(batch.column("request_key"))
            codes = to_numpy(names.indices)
            for code in distinct(codes):
                yield names.dictionary[code].as_py(), keys[codes == code]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedShard:
    """What a run owns in one shard of its first round, in the order of the requests.

    Attributes:
        tasks: Index, in `task_keys`, of each request's task.
        max_tokens: Of each request, 0 where it is the task's own.
    """

    keys: Keys
    task_keys: tuple[str, ...]
    tasks: Places
    max_tokens: Numbers


def read_owned_shard(store: Store, run_id: str, shard: int) -> OwnedShard | None:
    """Read a shard's part of what a run owns, and little else; None where it is not all there, as in plans of older versions.

    Raises:
        FileNotFoundError: There is no such file.
    """
    names: dict[str, int] = {}
    parts = []
    with pq.ParquetFile(store.open(owned_keys_path(run_id))) as file:
        if not file.schema_arrow.equals(OWNED_SCHEMA):
            return None
        column = OWNED_SCHEMA.get_field_index("shard")
        ranges = [file.metadata.row_group(group).column(column).statistics for group in range(file.num_row_groups)]
        for group in [group for group, held in enumerate(ranges) if held.min <= shard <= held.max]:
            for batch in file.read_row_group(group).to_batches():
                mine = to_numpy(batch.column("shard")) == shard
                words = batch.column("task_key")
                codes = np.array([names.setdefault(name, len(names)) for name in words.dictionary.to_pylist()], np.int32)
                tasks, keys = codes[to_numpy(words.indices)], keys_from_arrow(batch.column("request_key"))
                parts.append(
                    (to_numpy(batch.column("position"))[mine], keys[mine], tasks[mine], to_numpy(batch.column("max_tokens"))[mine])
                )
    if not parts:
        return None
    positions, keys, tasks, max_tokens = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    found = OwnedShard(keys=keys, task_keys=tuple(names), tasks=tasks, max_tokens=max_tokens)
    if np.array_equal(positions, in_order := np.arange(len(positions))):
        return found
    order = np.argsort(positions, kind="stable")
    if not np.array_equal(positions[order], in_order):
        return None
    return replace(found, keys=keys[order], tasks=tasks[order], max_tokens=max_tokens[order])


def _table_size(expected: int) -> int:
    return max(1_024, int(expected / 0.7)) | 1
