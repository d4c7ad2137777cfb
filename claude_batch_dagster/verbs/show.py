"""Show: everything that is known of one row of an output: what was asked, what came back, each time, and what it cost. Writes nothing.

The output says what a row is; the root's records say the rest. What they do not hold any more is rendered from the source again, and
the story says so.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import cast
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import ClaudeBatchError, OutputError, TaskError, UsageError
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.request import Renderer, parse_custom_id
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.keys import keys_from_arrow, pack_keys, read_owned_keys
from claude_batch_dagster.storage.output import MARKER, METADATA_KEY, STATUS_FIELDS, Marker
from claude_batch_dagster.storage.plans import list_submissions, read_entries, read_log, read_round, read_task
from claude_batch_dagster.storage.source import Source, SourceFile
from claude_batch_dagster.storage.store import Store, join_uri
from claude_batch_dagster.storage.stored import read_stored_files
from claude_batch_dagster.verbs.endpoint import root_for
from claude_batch_dagster.verbs.select import FileRows, row_key_texts

SHOWN_NEAR = 5
COMPARED_KEYS = 50_000
SCANNED_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One response to the row's request.

    Attributes:
        run: `r42`; None where the root has no record of the batch (it was recovered, or the records are lost).
        shard: `{round}-{shard}` of that run.
        answer: JSON for a task with a schema, else text; None unless it succeeded.
        shown: Whether this is the one in the output.
    """

    batch_id: str
    round: int
    run: str | None
    shard: str | None
    outcome: str
    error: str | None
    stop_reason: str | None
    model: str | None
    answer: str | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    max_tokens: int | None
    cost_nano_usd: int | None
    answered_at: datetime | None
    shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStory:
    """What is known of one row.

    Attributes:
        file: The output's file that holds the row.
        partition: None for an output without partitions.
        key: The key's columns with their values.
        row: The row as it stands in the output.
        task: The task's name.
        run: The run that published the row; None where nothing had to be asked.
        limit: Set where the output holds the first rows only.
        request: The Messages parameters; None where nothing is asked or they cannot be found.
        request_origin: Where the request comes from, or why there is none.
        waits_for: The open run that asks for it now, None for none.
        attempts: Every response in the root, in the order in which they came.
    """

    output: str
    file: str
    partition: str | None
    key: dict[str, object]
    row: dict[str, object]
    task: str
    endpoint: str
    root: str
    source: str
    run: str | None
    limit: int | None
    request: dict[str, object] | None
    request_origin: str
    waits_for: str | None
    attempts: tuple[Attempt, ...]

    @property
    def cost_nano_usd(self) -> int | None:
        """What all attempts cost; None where one of them has no known price."""
        costs = [attempt.cost_nano_usd for attempt in self.attempts]
        return None if None in costs else sum(cost or 0 for cost in costs)


def show_row(output: str, key: str, root: str, *, partition: str | None = None, key_columns: Sequence[str] = ()) -> RowStory:
    """Return the story of one row.

    Args:
        output: URI of the folder of one output.
        key: Of the row, columns joined by commas.
        root: As a person names it; simulated answers are looked for in the root below it.
        partition: Where the key is in several.
        key_columns: The key's columns, where the output does not say and they are not what it carries.

    Raises:
        OutputError: Terminal. There is no such output, or it is none of ours.
        UsageError: Terminal. No row, or several, have this key.
    """
    marker = _read_marker(Store(output))
    store = Store(root_for(root, marker.endpoint))
    found = _find_row(Store(output), marker, store, key, partition, tuple(key_columns))
    return _Storyteller(store, found).tell()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What a file says of itself."""

    task_key: str
    task: str
    source: str
    run: str | None
    limit: int | None
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: str
    partition: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoundRow:
    output: str
    marker: Marker
    file: _File
    facts: _Facts
    key: dict[str, object]
    row: dict[str, object]


def _find_row(output: Store, marker: Marker, store: Store, key: str, partition: str | None, key_columns: tuple[str, ...]) -> _FoundRow:
    files = _list_files(output, marker)
    if partition is not None:
        there = sorted(file.partition or "" for file in files)
        files = [file for file in files if file.partition == partition]
        if not files:
            near = difflib.get_close_matches(partition, there, n=SHOWN_NEAR) or there[:SHOWN_NEAR]
            has = f"it has {len(there):,}, for instance {', '.join(near)}" if marker.partition_column else "it is not partitioned"
            raise UsageError(f"The output {output.uri} has no partition {partition!r}; {has}. Name one of them.")
    found: list[_FoundRow] = []
    seen: list[str] = []
    limit = None
    for file in files:
        facts = _read_facts(output, file)
        limit = limit or facts.limit
        for columns in _possible_keys(output, file, store, facts, key_columns):
            rows, texts = _rows_with_key(output, file, columns, key, marker, room=COMPARED_KEYS - len(seen))
            if rows:
                break
        found += [_FoundRow(output=output.uri, marker=marker, file=file, facts=facts, key=shown, row=row) for shown, row in rows]
        seen += texts
    if not found:
        near = difflib.get_close_matches(key, seen, n=SHOWN_NEAR, cutoff=0.5) or seen[:SHOWN_NEAR]
        rows_said = f"{len(seen):,} rows" if len(seen) < COMPARED_KEYS else f"more than {COMPARED_KEYS:,} rows"
        rows_said += f", the first ones of its source: it was written with limit {limit}" if limit is not None else ""
        raise UsageError(
            f"No row of the output {output.uri} has the key {key!r} (of {rows_said}). The nearest are {', '.join(near) or 'none: it is empty'}. "
            "Several key columns are joined by commas; where the output carries more than its key, name the key's columns: --key NAME."
        )
    if len(found) > 1:
        if marker.partition_column is None:
            raise UsageError(
                f"{len(found)} rows of {output.uri} have {key!r} in a column that it carries. Say which is the key: --key NAME."
            )
        partitions = ", ".join(sorted({one.file.partition or "" for one in found}))
        raise UsageError(f"The key {key!r} is in several partitions of {output.uri}: {partitions}. Name one: --partition VALUE.")
    return found[0]


def _read_marker(output: Store) -> Marker:
    content = output.get(MARKER)
    if content is None:
        what = "does not exist" if not output.list("") else f"was not written by this tool (there is no {MARKER} in it)"
        raise OutputError(
            f"The output {output.uri} {what}. Nothing can be shown of it. Give the folder that `run --output` was given, "
            "in Dagster {output}/{asset key}."
        )
    try:
        return msgspec.json.decode(content, type=Marker)
    except msgspec.DecodeError as error:
        raise OutputError(f"The marker {output.uri}/{MARKER} cannot be read: {error}. Publish the output again.") from error


def _list_files(output: Store, marker: Marker) -> list[_File]:
    files = []
    for path in output.list(""):
        folder, _, name = path.rpartition("/")
        column, _, value = folder.partition("=")
        if name == "part-0.parquet" and (column if folder else None) == marker.partition_column:
            files.append(_File(path=path, partition=unquote(value) if folder else None))
    if not files:
        raise OutputError(f"The output {output.uri} holds no rows yet: it was begun and not written. Type the run command again.")
    return files


def _read_facts(output: Store, file: _File) -> _Facts:
    content = (pq.read_metadata(output.open(file.path)).metadata or {}).get(METADATA_KEY.encode())
    if content is None:
        raise OutputError(
            f"{join_uri(output.uri, file.path)} was not written by this tool: it does not say which task wrote it. Nothing is shown. Name a folder that `run --output` wrote."
        )
    return msgspec.json.decode(content, type=_FactsRecord).facts()


class _FactsRecord(msgspec.Struct, frozen=True, kw_only=True):
    task_key: str
    task: str
    source: str
    run: str | None = None
    limit: int | None = None
    key: tuple[str, ...] = ()

    def facts(self) -> _Facts:
        return _Facts(task_key=self.task_key, task=self.task, source=self.source, run=self.run, limit=self.limit, key=self.key)


def _possible_keys(output: Store, file: _File, store: Store, facts: _Facts, said: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return what the key's columns may be, best guess first: what was said or recorded, all that is carried, the first of that."""
    if said or facts.key:
        return [said or facts.key]
    names = pq.read_schema(output.open(file.path)).names
    carried = tuple(names[: names.index(STATUS_FIELDS[0].name)])
    try:
        own = {field.name for field in _rebuild_task(facts.task, read_task(store, facts.task_key)).fields}
    except ClaudeBatchError:
        # Another root: which columns are the task's is not known there.
        return [carried[:1]]
    carried = tuple(name for name in carried if name not in own)
    return [carried, carried[:1]] if len(carried) > 1 else [carried]


def _rows_with_key(
    output: Store, file: _File, columns: Sequence[str], key: str, marker: Marker, *, room: int
) -> tuple[list[tuple[dict[str, object], dict[str, object]]], list[str]]:
    """Return the rows whose key reads like this, and the keys of the first rows."""
    parquet = pq.ParquetFile(output.open(file.path))
    names = parquet.schema_arrow.names
    stored = [column for column in columns if column in names]
    if missing := [column for column in columns if column not in names and column != marker.partition_column]:
        raise UsageError(f"The output {output.uri} has no column {missing[0]!r}; it has {', '.join(names)}. Name one that it carries.")
    rows: list[tuple[dict[str, object], dict[str, object]]] = []
    seen: list[str] = []
    start = 0
    for batch in parquet.iter_batches(SCANNED_ROWS, columns=stored):
        values = {column: batch.column(column).to_pylist() for column in stored}
        values |= {column: [file.partition] * batch.num_rows for column in columns if column not in stored}
        texts = [",".join(str(value) for value in row) for row in zip(*(values[column] for column in columns), strict=True)]
        seen += islice(texts, max(0, room - len(seen)))
        for at in (at for at, text in enumerate(texts) if text == key):
            row = next(islice(parquet.read().slice(start + at, 1).to_pylist(), 1))
            rows.append(({column: values[column][at] for column in columns}, row))
        start += batch.num_rows
    return rows, seen


class _Storyteller:
    """Puts together what the root and the source tell of a row."""

    def __init__(self, store: Store, found: _FoundRow) -> None:
        self._store = store
        self._found = found
        self._facts = replace(found.facts, task_key=str(found.row["task_key"]))
        request_key = found.row["request_key"]
        self._request_key = bytes.fromhex(str(request_key)) if request_key else None

    def tell(self) -> RowStory:
        found, facts = self._found, self._facts
        entries = [entry for entry in read_entries(self._store) if any(task.task_key == facts.task_key for task in entry.tasks)]
        attempts = self._read_attempts(entries)
        request, origin = self._find_request(entries, attempts)
        return RowStory(
            output=found.output,
            file=join_uri(found.output, found.file.path),
            partition=found.file.partition,
            key=found.key,
            row=found.row,
            task=facts.task,
            endpoint=found.marker.endpoint,
            root=self._store.uri,
            source=facts.source,
            run=facts.run,
            limit=facts.limit,
            request=request,
            request_origin=origin,
            waits_for=self._find_open_run(),
            attempts=tuple(attempts),
        )

    def _read_attempts(self, entries: list[LogEntry]) -> list[Attempt]:
        if self._request_key is None:
            return []
        rows = [row for path in self._response_paths() for row in self._read_responses(path)]
        places = self._place_batches(entries, {str(row["batch_id"]) for row in rows})
        shown = self._found.row["batch_id"]
        attempts = [_describe_attempt(row, places.get(str(row["batch_id"])), shown) for row in rows]
        return sorted(attempts, key=lambda one: (one.answered_at is not None, one.answered_at, one.round))

    def _response_paths(self) -> list[str]:
        return [
            file.path for file in read_stored_files(self._store, self._found.marker.endpoint, self._facts.task_key, lost_too=True).files
        ]

    def _read_responses(self, path: str) -> Iterator[dict[str, object]]:
        assert self._request_key is not None, "only a row with a request has responses"
        wanted = pack_keys([self._request_key])
        parquet = pq.ParquetFile(self._store.open(path))
        for group in range(parquet.metadata.num_row_groups):
            keys = keys_from_arrow(parquet.read_row_group(group, columns=["request_key"])["request_key"])
            if len(rows := np.flatnonzero((keys == wanted).all(axis=1))):
                yield from parquet.read_row_group(group).take(pa.array(rows)).to_pylist()

    def _place_batches(self, entries: list[LogEntry], batch_ids: set[str]) -> dict[str, tuple[LogEntry, int, int]]:
        """Return of each batch its run, round and shard, newest runs first, until all are found."""
        places: dict[str, tuple[LogEntry, int, int]] = {}
        for entry in entries:
            if batch_ids <= places.keys():
                break
            for (round_number, shard), records in list_submissions(self._store, entry.run_id).items():
                for record in records:
                    if isinstance(record, Accepted) and record.id in batch_ids:
                        places[record.id] = (entry, round_number, shard)
        return places

    def _find_open_run(self) -> str | None:
        if self._request_key is None:
            return None
        return next((entry.label for entry in read_log(self._store).open if self._owns(entry)), None)

    def _owns(self, entry: LogEntry) -> bool:
        assert self._request_key is not None, "only a request has an owner"
        wanted = pack_keys([self._request_key])
        owned = (keys for task_key, keys in read_owned_keys(self._store, entry.run_id) if task_key == self._facts.task_key)
        return any((keys == wanted).all(axis=1).any() for keys in owned)

    def _find_request(self, entries: list[LogEntry], attempts: list[Attempt]) -> tuple[dict[str, object] | None, str]:
        if self._request_key is not None:
            sent = {attempt.run for attempt in attempts if attempt.run is not None}
            for entry in sorted(entries, key=lambda entry: entry.label not in sent):
                if self._owns(entry) and (staged := self._read_staged(entry)) is not None:
                    return staged, f"as it was staged for batch run {entry.label}"
        return self._render_again()

    def _read_staged(self, entry: LogEntry) -> dict[str, object] | None:
        """Return the request from the first round's bodies, which hold all that a run owns."""
        found = read_round(self._store, entry, 1)
        for shard in found.shards if found else ():
            try:
                for line in iter_lines(self._store.stream(shard.path)):
                    if parse_custom_id(line_custom_id(line)).request_key == self._found.row["request_key"]:
                        return cast(dict[str, object], json.loads(line)["params"])
            except FileNotFoundError:
                continue
        return None

    def _render_again(self) -> tuple[dict[str, object] | None, str]:
        """Return the row's request from the source as it is now, and what there is to say about it."""
        try:
            task = _rebuild_task(self._facts.task, read_task(self._store, self._facts.task_key))
            values = self._read_source_row(task)
        except ClaudeBatchError as error:
            return None, f"it cannot be shown: {error}"
        if values is None:
            return None, f"it cannot be shown: no row of {self._facts.source} has this key any more"
        columns, row = values
        (request,) = Renderer(task, columns).render([row])
        if request is None:
            return None, "nothing is asked: what the prompt shows of this row is null or blank"
        origin = "as the source renders now; no run has staged it"
        if self._request_key is not None and request.key != self._request_key:
            origin = "as the source renders now: the row has changed since the output was written"
        return cast(dict[str, object], json.loads(request.params)), origin

    def _read_source_row(self, task: ClaudeTask) -> tuple[list[str], list[object]] | None:
        found = self._found
        dataset = ParquetDataset(path=self._facts.source, key=tuple(found.key), partition_column=found.marker.partition_column)
        source = Source(dataset)
        wanted = ",".join(str(value) for value in found.key.values())
        for file in source.files_of(found.file.partition):
            part = FileRows(file=file, rows=source.row_count(file), whole=True)
            for at, text in enumerate(row_key_texts(source, part, tuple(found.key))):
                if text == wanted:
                    names = source.schema(file).names
                    return names, self._values(source, file, list(Renderer(task, names).columns), at)
        return None

    def _values(self, source: Source, file: SourceFile, columns: list[str], at: int) -> list[object]:
        unique = list(dict.fromkeys(columns))
        for piece in source.pieces(file, unique):
            if at < piece.num_rows:
                row = piece.slice(at, 1).to_pylist()[0]
                return [row[column] for column in columns]
            at -= piece.num_rows
        raise AssertionError("the row was counted in this file")


def _describe_attempt(row: dict[str, object], place: tuple[LogEntry, int, int] | None, shown_batch_id: object) -> Attempt:
    entry, round_number, shard = place if place is not None else (None, 0, 0)
    fields = {name: row[name] for name in Attempt.__slots__ if name in row}
    return Attempt(
        run=entry.label if entry else None,
        shard=f"{round_number}-{shard}" if entry else None,
        shown=row["batch_id"] == shown_batch_id,
        **fields,  # type: ignore[arg-type]
    )


def _rebuild_task(name: str, document: dict[str, object]) -> ClaudeTask:
    """Return the task that a canonical document describes; raise TaskError where a function wrote its prompts."""
    if not isinstance(document["prompt"], str):
        raise TaskError(f"the prompt of {name} is a function, which the root does not keep. Run the task's definition again to see it.")
    arguments = {field: document[field] for field in ("kind", "version", "column", "model", "prompt", "system", "max_tokens", "effort")}
    schema, thinking, params = (cast("dict[str, object] | None", document[field]) for field in ("schema", "thinking", "params"))
    return ClaudeTask(name=name, output=schema, thinking=thinking, params=params or {}, **arguments)  # type: ignore[arg-type]
