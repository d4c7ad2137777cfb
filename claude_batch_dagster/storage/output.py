"""The folder of an output: one Parquet file a partition, replaced whole, beside our marker.

- A reader sees a partition's old file or its new one, never a part of one.
- A folder that holds Parquet files and no marker of ours, or a marker of another endpoint, is refused.
"""

from collections.abc import Collection, Sequence
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.spelling import suggest
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answer_columns import arrow_field
from claude_batch_dagster.storage.store import Store

MARKER = "_claude_batch.json"
METADATA_KEY = "claude_batch"
SHOWN_FILES = 3
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


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """`_claude_batch.json`: this folder is ours to replace."""

    source: str
    endpoint: str
    partition_column: str | None = None
    format: int = 1


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
    """Return the columns of a task's output. Carried ones may be null: a later file may have nulls where the first one has none.

    Raises:
        OutputError: Terminal. Two of them have the same name.
    """
    fields = (
        [source.field(name).with_nullable(True) for name in carried] + [arrow_field(field) for field in task.fields] + list(STATUS_FIELDS)
    )
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


def read_marker(output: Store) -> Marker | None:
    """Return what claims a folder, None where nothing of ours does."""
    content = output.get(MARKER)
    return None if content is None else _read_marker(output, content)


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
