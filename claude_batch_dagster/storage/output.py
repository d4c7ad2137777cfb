"""Writes outputs: one Parquet file a partition, replaced whole, in a folder that carries our marker.

- A reader sees a partition's old file or its new one, never a part of one.
- A folder that holds Parquet files and no marker of ours, or a marker of another endpoint, is refused.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.schema import Field, FieldType
from claude_batch_dagster.core.spelling import suggest
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import Keys, KeySet, has_key, key_hex
from claude_batch_dagster.storage.responses import Answers
from claude_batch_dagster.storage.store import Store

MARKER = "_claude_batch.json"
METADATA_KEY = "claude_batch"
ROW_GROUP_ROWS = 32_768
SHOWN_FILES = 3
TOO_LARGE = "too_large: the request alone exceeds what one Message Batch takes (256,000,000 bytes). Shorten the text or the prompt."
NO_ROOM = "out_of_range: the answer holds a number that its column has no room for."
STATUS_FIELDS = (
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("stop_reason", pa.string()),
    pa.field("model", pa.string()),
    pa.field("input_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("cache_read_tokens", pa.int64()),
    pa.field("cache_write_tokens", pa.int64()),
    pa.field("cost_usd", pa.float64()),
    pa.field("request_key", pa.string()),
    pa.field("task_key", pa.string(), nullable=False),
    pa.field("batch_id", pa.string()),
    pa.field("answered_at", pa.timestamp("us", "UTC")),
)
STATUS_DESCRIPTIONS: Mapping[str, str] = {
    "status": "What became of the row: " + " | ".join(STATUSES) + ".",
    "error": "Why there is no answer, as `{type}: {message}`.",
    "stop_reason": "Why Claude stopped, as the Messages API says it.",
    "model": "The model that answered.",
    "input_tokens": "Prompt tokens less cache reads and writes.",
    "output_tokens": "Tokens of the answer, thinking included.",
    "cache_read_tokens": "Prompt tokens read from the cache.",
    "cache_write_tokens": "Prompt tokens written to the cache.",
    "cost_usd": "Cost at batch price, on the first row that shares an answer; null where the model has no known price.",
    "request_key": "First 128 bits of SHA-256 over the request's params, in hex.",
    "task_key": "First 128 bits of SHA-256 over the task's definition, in hex.",
    "batch_id": "The Message Batch that answered.",
    "answered_at": "When that batch ended.",
}
_ARROW = {
    FieldType.STRING: pa.string(),
    FieldType.INTEGER: pa.int64(),
    FieldType.NUMBER: pa.float64(),
    FieldType.BOOLEAN: pa.bool_(),
    FieldType.JSON: pa.string(),
}


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """`_claude_batch.json`: this folder is ours to replace."""

    source: str
    endpoint: str
    partition_column: str | None = None
    format: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOutput:
    """What one partition's file holds.

    Attributes:
        uri: Of the file.
        rows: Rows by status; they add up to the source's.
        answers: Distinct requests in it.
        input_tokens: Of the answers that this invocation paid for, like all tokens here and the cost; the others were paid before.
        cost_nano_usd: None where such an answer's model has no price.
        batches: How many of this invocation's batches answered.
        preview: The first rows, as Python values.
    """

    uri: str
    rows: dict[str, int]
    answers: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano_usd: int | None
    batches: int
    schema: pa.Schema
    preview: tuple[dict[str, object], ...]


def arrow_field(field: Field) -> pa.Field:
    """Return a task's field as a column; every column is nullable, since a row may have no answer."""
    match field.type:
        case FieldType.LIST:
            assert field.item is not None, "a list has an item"
            kind: pa.DataType = pa.list_(arrow_field(field.item))
        case FieldType.STRUCT:
            kind = pa.struct([arrow_field(child) for child in field.children])
        case _:
            kind = _ARROW[field.type]
    metadata = {"description": field.description} if field.description else None
    return pa.field(field.name, kind, metadata=metadata)


def carried_columns(columns: str | Sequence[str], key: Sequence[str], source: pa.Schema, partition_column: str | None) -> tuple[str, ...]:
    """Return the source's columns that an output carries, in order.

    Args:
        columns: `key`, `all`, or names; among names `key` stands for the key's columns, where no column is called so.
        key: The key's columns.
        source: The source's columns.
        partition_column: Left out: it stands in the path.
    """
    if columns == "key":
        names = tuple(key)
    elif columns == "all":
        names = tuple(source.names)
    else:
        named = (columns,) if isinstance(columns, str) else tuple(columns)
        names = tuple(name for one in named for name in (key if one == "key" and one not in source.names else (one,)))
    missing = [name for name in (*names, *key) if name not in source.names]
    if missing:
        raise SourceError(
            f"The source has no column {missing[0]!r}; it has {', '.join(source.names)}. Nothing was sent. {suggest(missing[0], source.names)}",
            column=missing[0],
        )
    twice = [name for name in (*names, *key) if source.names.count(name) > 1]
    if twice:
        raise SourceError(f"The source has {source.names.count(twice[0])} columns named {twice[0]!r}. Nothing was sent. Rename one.")
    return tuple(name for name in dict.fromkeys(names) if name != partition_column)


def output_schema(task: ClaudeTask, carried: Sequence[str], source: pa.Schema) -> pa.Schema:
    """Return the columns of a task's output.

    Raises:
        OutputError: Terminal. Two of them have the same name.
    """
    fields = [source.field(name) for name in carried] + [arrow_field(field) for field in task.fields] + list(STATUS_FIELDS)
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OutputError(
            f"Output {task.name!r} would have two columns named {twice[0]!r}: one carried from the source or defined by the task, and one of this tool's own. "
            "Nothing was sent. Carry fewer columns (--columns), or rename the task's field."
        )
    return pa.schema(fields)


def check_output(output: Store, marker: Marker, *, replace: bool) -> None:
    """Refuse a folder that is not ours to write.

    Raises:
        OutputError: Terminal. It holds Parquet files that are not ours, or what another endpoint or layout wrote.
    """
    content = output.get(MARKER)
    if content is not None:
        found = _read_marker(output, content)
        if found.partition_column != marker.partition_column:
            was, now = (f"partitioned by {m.partition_column}" if m.partition_column else "one file" for m in (found, marker))
            raise OutputError(
                f"The output {output.uri} is {was}, and would become {now}: a reader would see both. Nothing was sent. Choose another folder."
            )
        if found.endpoint != marker.endpoint and not replace:
            raise OutputError(
                f"The output {output.uri} holds answers of {found.endpoint!r}, and would get answers of {marker.endpoint!r}. Nothing was sent. "
                "Choose another folder, or add --replace (in Dagster: replace=True)."
            )
    else:
        _check_unmarked(output, replace=replace)


def _check_unmarked(output: Store, *, replace: bool) -> None:
    """Refuse a folder without our marker where a reader would see others' rows among ours; nothing of others is ever removed."""
    found = [path for path in output.list("") if path.endswith((".parquet", ".pq"))]
    foreign = [path for path in found if _read_facts(output, path) is None]
    if foreign:
        more = f" and {len(foreign) - SHOWN_FILES:,} more" if len(foreign) > SHOWN_FILES else ""
        raise OutputError(
            f"The output {output.uri} holds Parquet files that this tool did not write: {', '.join(foreign[:SHOWN_FILES])}{more}. "
            "A reader would see both. Nothing was sent. Move them elsewhere, or choose another folder."
        )
    if found and not replace:
        raise OutputError(
            f"The output {output.uri} holds Parquet files of this tool, and its {MARKER} is missing. Nothing was sent. "
            "Choose another folder, or add --replace (in Dagster: replace=True)."
        )


def _read_facts(output: Store, path: str) -> bytes | None:
    """Return what a file of ours says of itself, None for one that is not ours."""
    try:
        return (pq.read_metadata(output.open(path)).metadata or {}).get(METADATA_KEY.encode())
    except pa.ArrowInvalid:
        return None


def _read_marker(output: Store, content: bytes) -> Marker:
    try:
        return msgspec.json.decode(content, type=Marker)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OutputError(
            f"The marker {output.uri}/{MARKER} cannot be read: {error}. Nothing was sent. Choose another folder, or delete this file and add --replace (in Dagster: replace=True)."
        ) from error


def is_whole_output(output: Store, path: str) -> bool:
    """Tell whether a file of ours is there and holds all rows of its source, not the first ones only."""
    if not output.exists(path):
        return False
    facts = _read_facts(output, path)
    return facts is not None and msgspec.json.decode(facts, type=dict[str, object]).get("limit") is None


def remove_other_answers(output: Store, marker: Marker, keep: Collection[str]) -> None:
    """Remove what another endpoint wrote into an output that this job takes over; the answers themselves stay in that root.

    Args:
        output: The folder.
        marker: This job's.
        keep: Paths that this job writes anew.
    """
    content = output.get(MARKER)
    if content is None or _read_marker(output, content).endpoint == marker.endpoint:
        return
    for path in output.list(""):
        if path.rpartition("/")[2] == "part-0.parquet" and path not in keep:
            output.delete(path)


def write_marker(output: Store, marker: Marker) -> None:
    """Claim the folder, before its first file."""
    output.put(MARKER, msgspec.json.encode(marker))


def output_path(partition_column: str | None, partition: str | None) -> str:
    """Return where a partition's file stands below its output."""
    return "part-0.parquet" if partition_column is None else f"{partition_column}={quote(partition or '', safe=' ')}/part-0.parquet"


class OutputWriter:
    """Writes one partition's file, piece by piece, and puts it whole at the end.

    Args:
        task: Whose fields the rows get.
        schema: Of the output.
        answers: Where the answers are.
        own_batch_ids: Batches that this invocation paid for.
        file: The local file to write.
        facts: What stands in the file's key-value metadata, together with `rows` by status.
    """

    def __init__(
        self, *, task: ClaudeTask, schema: pa.Schema, answers: Answers, own_batch_ids: Set[str], file: Path, facts: Mapping[str, object]
    ) -> None:
        self._task = task
        self._schema = schema
        self._facts = facts
        self._answers = answers
        self._own_batch_ids = own_batch_ids
        self._file = file
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", compression_level=3)
        self._shown = KeySet()
        self._batch_ids: set[str] = set()
        self._rows = dict.fromkeys(STATUSES, 0)
        self._sums = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"), 0)
        self._cost_nano_usd: int | None = 0
        self._preview: list[dict[str, object]] = []

    def append(self, carried: pa.Table, keys: Keys, reasons: Sequence[str | None]) -> None:
        """Append source rows with their keys; a reason says why a row without a key was not asked about."""
        places = self._answers.find(keys)
        places[~has_key(keys)] = -1
        fetched = _spread(self._answers.fetch(places[places >= 0]), places)
        status, error = _statuses(fetched, keys, reasons)
        first = self._shown.add(keys) & (places >= 0)
        columns: list[pa.Array | pa.ChunkedArray] = [carried.column(name) for name in carried.column_names]
        columns += self._task_columns(fetched["answer"].to_pylist(), status, error)
        columns += [pa.array(status), pa.array(error, pa.string())]
        columns += [
            fetched[name] for name in ("stop_reason", "model", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        ]
        nano_usd = fetched["cost_nano_usd"].to_pylist()
        columns.append(
            pa.array(
                [None if cost is None else cost / 1e9 if mine else 0.0 for cost, mine in zip(nano_usd, first, strict=True)], pa.float64()
            )
        )
        hexes = key_hex(keys)
        columns.append(pa.array([text if known else None for text, known in zip(hexes, has_key(keys), strict=True)], pa.string()))
        columns += [pa.array([self._task.task_key] * len(keys)), fetched["batch_id"], fetched["answered_at"]]
        table = pa.table(columns, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._count(table, fetched, status, first)

    def finish(self, output: Store, path: str) -> WrittenOutput:
        """Put the file; return what it holds."""
        self._writer.add_key_value_metadata({METADATA_KEY: msgspec.json.encode({**self._facts, "rows": self._rows}).decode()})
        self._writer.close()
        output.put_file(path, self._file)
        return WrittenOutput(
            uri=f"{output.uri}/{path}",
            rows=self._rows,
            answers=len(self._shown),
            cost_nano_usd=self._cost_nano_usd,
            batches=len(self._batch_ids),
            schema=self._schema,
            preview=tuple(self._preview),
            **self._sums,
        )

    def _count(self, table: pa.Table, fetched: pa.Table, status: list[str], first: npt.NDArray[np.bool_]) -> None:
        for word in status:
            self._rows[word] += 1
        batch_ids = fetched["batch_id"].to_pylist()
        paid = np.fromiter((batch_id in self._own_batch_ids for batch_id in batch_ids), np.bool_, len(batch_ids))
        mine = fetched.filter(pa.array(first & paid))
        for name in self._sums:
            self._sums[name] += sum(mine[name].to_pylist())
        costs = mine["cost_nano_usd"].to_pylist()
        self._cost_nano_usd = None if self._cost_nano_usd is None or None in costs else self._cost_nano_usd + sum(costs)
        self._batch_ids.update(mine["batch_id"].to_pylist())
        if len(self._preview) < 5:
            self._preview += table.slice(0, 5 - len(self._preview)).to_pylist()

    def _task_columns(self, answers: list[str | None], status: list[str], error: list[str | None]) -> list[pa.Array]:
        """Return the task's columns; a row whose answer has no room in them becomes invalid."""
        answered = [answer if word == "succeeded" else None for answer, word in zip(answers, status, strict=True)]
        if self._task.output is None:
            return [pa.array(answered, pa.string())]
        rows: list[dict[str, object]] = []
        for place, answer in enumerate(answered):
            value = {} if answer is None else msgspec.json.decode(answer)
            try:
                rows.append({f.name: _fit(value.get(f.name), f) for f in self._task.fields})
            except OverflowError:
                rows.append({})
                status[place], error[place] = "invalid", NO_ROOM
        return [pa.array([row.get(f.name) for row in rows], arrow_field(f).type) for f in self._task.fields]


def _fit(value: object, field: Field) -> object:
    """Give a validated JSON value the type of its column; raise OverflowError where it has no room there."""
    if value is None:
        return None
    match field.type:
        case FieldType.JSON:
            return msgspec.json.encode(value, order="sorted").decode()
        case FieldType.INTEGER:
            number = int(value) if isinstance(value, (int, float)) else None
            if number is not None and not -(2**63) <= number < 2**63:
                raise OverflowError
            return number
        case FieldType.NUMBER:
            return float(value) if isinstance(value, (int, float)) else None
        case FieldType.LIST if isinstance(value, list) and field.item is not None:
            return [_fit(item, field.item) for item in value]
        case FieldType.STRUCT if isinstance(value, dict):
            return {child.name: _fit(value.get(child.name), child) for child in field.children}
        case _:
            return value


def _spread(fetched: pa.Table, places: npt.NDArray[np.int64]) -> pa.Table:
    """Return one row a place, nulls where there is no response."""
    found = places >= 0
    indices = np.where(found, np.cumsum(found) - 1, 0)
    return fetched.take(pa.array(indices, pa.int64(), mask=~found))


def _statuses(fetched: pa.Table, keys: Keys, reasons: Sequence[str | None]) -> tuple[list[str], list[str | None]]:
    status: list[str] = []
    errors: list[str | None] = []
    rows: Iterable[tuple[str | None, str | None, str | None]] = zip(
        fetched["outcome"].to_pylist(), fetched["error"].to_pylist(), reasons, strict=True
    )
    for outcome, error, reason in rows:
        if reason == "skipped":
            status.append("skipped")
            errors.append(None)
        elif reason == "too_large":
            status.append("errored")
            errors.append(TOO_LARGE)
        elif outcome is None:
            status.append("pending")
            errors.append("pending: no answer yet; the next run asks again.")
        else:
            status.append(outcome)
            errors.append(error)
    return status, errors
