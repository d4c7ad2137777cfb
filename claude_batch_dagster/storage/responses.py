"""The response store: what Claude answered, failures included, one file a batch and task. Append-only.

- `responses/{endpoint}/{task_key}/{batch_id}.parquet` is named by its batch, so that whoever collects the batch writes the same file.
- The best response of a key counts: a usable one first, then one with a final outcome, then the latest. It is final unless it says that its
  run granted the request a further round: had that come, a later response would be the best.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.outcome import Outcome, is_final, raise_max_tokens
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.keys import KEY_TYPE, Keys, Mask, keys_from_arrow, pack_keys
from claude_batch_dagster.storage.store import Store

ROW_GROUP_ROWS = 16_384
CACHED_ROW_GROUPS = 8
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
ANSWER_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("retryable"))
_OUTCOMES = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.PENDING)
_CODES = {outcome: code for code, outcome in enumerate(_OUTCOMES)}
_FAILURE_CODES = np.array([_CODES[outcome] for outcome in (Outcome.TRUNCATED, Outcome.INVALID, Outcome.ERRORED)], np.uint8)
_RANK_COLUMNS = ["request_key", "outcome", "error", "round", "answered_at", "output_tokens", "retryable"]


def responses_path(endpoint: str, task_key: str, batch_id: str) -> str:
    """Return where a batch's responses to one task are kept."""
    return f"responses/{endpoint}/{task_key}/{batch_id}.parquet"


def write_responses(
    store: Store, *, endpoint: str, task_key: str, batch_id: str, round_number: int, answered_at: datetime, responses: Sequence[Response]
) -> None:
    """Write a batch's responses to one task, in the order given. Writing the same batch again replaces the file by an equal one."""
    with store.scratch() as scratch:
        file = scratch / "responses.parquet"
        with pq.ParquetWriter(file, SCHEMA, compression="zstd", compression_level=1) as writer:
            for start in range(0, len(responses), ROW_GROUP_ROWS):
                rows = responses[start : start + ROW_GROUP_ROWS]
                writer.write_batch(_to_arrow(rows, batch_id, round_number, answered_at), row_group_size=ROW_GROUP_ROWS)
        store.put_file(responses_path(endpoint, task_key, batch_id), file)


def _to_arrow(rows: Sequence[Response], batch_id: str, round_number: int, answered_at: datetime) -> pa.RecordBatch:
    keys = pa.ExtensionArray.from_storage(KEY_TYPE, pa.array([row.request_key for row in rows], pa.binary(16)))
    plain = [pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names[1:12]]
    marks = pa.array([row.retryable for row in rows], pa.bool_())
    constant = [
        pa.array([value] * len(rows), SCHEMA.field(name).type)
        for name, value in zip(SCHEMA.names[12:15], (batch_id, round_number, answered_at), strict=True)
    ]
    return pa.record_batch([keys, *plain, *constant, marks], schema=SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    keys: Keys
    final: Mask
    outcome: npt.NDArray[np.uint8]
    file: npt.NDArray[np.int32]
    row: npt.NDArray[np.int64]


class Answers:
    """The best response of every key of one task, as the store is now: an index in memory, the rows stay in their files.

    Args:
        store: The root.
        endpoint: Whose answers.
        task_key: To which task.
        batch_ids: Only what these batches answered, None for all.
    """

    def __init__(self, store: Store, endpoint: str, task_key: str, *, batch_ids: Collection[str] | None = None) -> None:
        self._store = store
        paths = store.list(f"responses/{endpoint}/{task_key}")
        self._paths = [path for path in paths if batch_ids is None or path.rpartition("/")[2].removesuffix(".parquet") in batch_ids]
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._files: dict[int, pq.ParquetFile] = {}
        self._answered = 0
        self._output_tokens = 0
        self._index = self._load()

    def __len__(self) -> int:
        return len(self._index.keys)

    @property
    def mean_output_tokens(self) -> float | None:
        """The mean output of an answer so far, None where there is none."""
        return self._output_tokens / self._answered if self._answered else None

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return the place of each key's best response, -1 for none."""
        return _search(self._index.keys, keys)

    def final(self, keys: Keys) -> Mask:
        """Tell which keys have a response that is not asked for again."""
        places = self.find(keys)
        found = places >= 0
        found[found] = self._index.final[places[found]]
        return found

    def failed(self, keys: Keys) -> Mask:
        """Tell which keys have a response that is a failure for good: truncated, invalid or errored."""
        places = self.find(keys)
        found = places >= 0
        index = self._index
        found[found] = index.final[places[found]] & np.isin(index.outcome[places[found]], _FAILURE_CODES)
        return found

    def raised_caps(self, keys: Keys) -> list[int | None]:
        """Return the `max_tokens` of the round that a cut answer's run granted and did not open; None for all other keys."""
        caps: list[int | None] = [None] * len(keys)
        cut = np.flatnonzero(self.ended_as(keys, Outcome.TRUNCATED) & ~self.final(keys))
        for row, max_tokens in zip(cut, self.fetch(self.find(keys)[cut])["max_tokens"].to_pylist(), strict=True):
            caps[row] = raise_max_tokens(max_tokens, None) or max_tokens
        return caps

    def count_outcomes(self, keys: Keys) -> dict[str, int]:
        """Count keys by the outcome of their best response, `pending` for none."""
        places = self.find(keys)
        counts = np.bincount(self._index.outcome[places[places >= 0]], minlength=len(_OUTCOMES))
        return {outcome: int(count) for outcome, count in zip(_OUTCOMES, counts, strict=True)} | {
            Outcome.PENDING.value: int((places < 0).sum())
        }

    def fetch(self, places: npt.NDArray[np.int64]) -> pa.Table:
        """Read responses by place, in the order given."""
        if not len(places):
            return ANSWER_SCHEMA.empty_table()
        files, rows = self._index.file[places], self._index.row[places]
        parts: list[pa.Table] = []
        order: list[npt.NDArray[np.int64]] = []
        for file in np.unique(files):
            chosen = np.flatnonzero(files == file)
            for group, start, stop in self._row_groups(int(file)):
                inside = chosen[(rows[chosen] >= start) & (rows[chosen] < stop)]
                if len(inside):
                    parts.append(self._row_group(int(file), group).take(pa.array(rows[inside] - start)))
                    order.append(inside)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back))

    def outcomes(self, keys: Keys) -> Iterator[tuple[str | None, str | None]]:
        """Yield the outcome and the error of each key's best response, (None, None) where there is none."""
        places = self.find(keys)
        answered = places[places >= 0]
        codes = self._index.outcome[answered]
        outcomes = iter(codes.tolist())
        # A success has no error: its row, the answer with it, need not be read.
        errors = iter(self.fetch(answered[codes != _CODES[Outcome.SUCCEEDED]])["error"].to_pylist())
        for place in places:
            outcome = _OUTCOMES[next(outcomes)] if place >= 0 else None
            yield outcome, None if outcome in (None, Outcome.SUCCEEDED) else next(errors)

    def ended_as(self, keys: Keys, outcome: Outcome) -> Mask:
        """Tell which keys have this outcome as their best response's."""
        places = self.find(keys)
        found = places >= 0
        found[found] = self._index.outcome[places[found]] == _CODES[outcome]
        return found

    def _load(self) -> _Located:
        parts: list[tuple[Keys, Mask, Mask, npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int32]]] = []
        for path in self._paths:
            table = pq.ParquetFile(self._store.open(path)).read(columns=_RANK_COLUMNS)
            outcomes = table["outcome"].to_pylist()
            codes = np.fromiter((_CODES[outcome] for outcome in outcomes), np.uint8, len(outcomes))
            usable = codes == _CODES[Outcome.SUCCEEDED]
            final = np.fromiter(
                (is_final(o, e) for o, e in zip(outcomes, table["error"].to_pylist(), strict=True)), np.bool_, len(outcomes)
            )
            retryable = _read_marks(table)
            stamps = table["answered_at"].cast(pa.int64()).to_numpy()
            parts.append((keys_from_arrow(table["request_key"]), final, retryable, codes, stamps, table["round"].to_numpy()))
            self._answered += int(usable.sum())
            self._output_tokens += int(pc.sum(pc.if_else(pa.array(usable), table["output_tokens"], 0)).as_py() or 0)
        if not parts:
            empty = np.empty(0, np.int64)
            return _Located(
                keys=pack_keys([]), final=empty.astype(np.bool_), outcome=empty.astype(np.uint8), file=empty.astype(np.int32), row=empty
            )
        keys, final, retryable, codes, stamps, rounds = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        lengths = [len(part[0]) for part in parts]
        files = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
        rows = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
        order = np.lexsort((files, rounds, stamps, final, codes == _CODES[Outcome.SUCCEEDED], keys[:, 1], keys[:, 0]))
        last = np.ones(len(order), np.bool_)
        last[:-1] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
        best = order[last]
        return _Located(keys=keys[best], final=(final & ~retryable)[best], outcome=codes[best], file=files[best], row=rows[best])

    def _row_groups(self, file: int) -> list[tuple[int, int, int]]:
        metadata = self._opened(file).metadata
        stops = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        return [(group, int(stop) - metadata.row_group(group).num_rows, int(stop)) for group, stop in enumerate(stops)]

    def _row_group(self, file: int, group: int) -> pa.Table:
        place = (file, group)
        table = self._cache.pop(place, None)
        if table is None:
            table = self._opened(file).read_row_group(group, columns=ANSWER_SCHEMA.names)
        self._cache[place] = table
        if len(self._cache) > CACHED_ROW_GROUPS:
            self._cache.popitem(last=False)
        return table

    def _opened(self, file: int) -> pq.ParquetFile:
        if file not in self._files:
            self._files[file] = pq.ParquetFile(self._store.open(self._paths[file]))
        return self._files[file]


def _read_marks(table: pa.Table) -> Mask:
    """Return which rows are retryable; a file from before there was the column says it of none."""
    if "retryable" not in table.column_names:
        return np.zeros(table.num_rows, np.bool_)
    return np.asarray(pc.fill_null(table["retryable"], False).to_numpy(), np.bool_)


def _search(sorted_keys: Keys, keys: Keys) -> npt.NDArray[np.int64]:
    """Return the place of each key in an array that is sorted by its first column, -1 for none."""
    if not len(sorted_keys):
        return np.full(len(keys), -1, np.int64)
    place = np.searchsorted(sorted_keys[:, 0], keys[:, 0])
    found = np.full(len(keys), -1, np.int64)
    pending = np.arange(len(keys))
    while len(pending):
        at = place[pending]
        inside = at < len(sorted_keys)
        pending, at = pending[inside], at[inside]
        near = sorted_keys[at]
        same = (near == keys[pending]).all(axis=1)
        found[pending[same]] = at[same]
        going = ~same & (near[:, 0] == keys[pending, 0])
        pending = pending[going]
        place[pending] += 1
    return found
