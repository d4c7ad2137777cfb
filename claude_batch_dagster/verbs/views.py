"""Outputs, answers and runs as views of a DuckDB in memory, which nothing is written through.

- An output is a view by its asset's key; a response that was replaced by a better one is in `responses` and not in `answers`.
- Only statements that read are carried out; the files are read as they are while the statement runs.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from claude_batch_dagster.core.errors import RootError, UsageError
from claude_batch_dagster.core.outcome import FINAL_ERRORS, FINAL_OUTCOMES, Outcome
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.status import STATUS_DESCRIPTIONS
from claude_batch_dagster.storage.output import MARKER
from claude_batch_dagster.storage.plans import read_done, read_entries, read_root
from claude_batch_dagster.storage.store import Store, absolute_uri, join_uri
from claude_batch_dagster.storage.stored import find_batches, list_task_keys, read_stored_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NANO = 1_000_000_000
READERS = 16
FETCHED_ROWS = 10_000
MISSING = "DuckDB is not installed, which reads the views. Nothing was read. Install it: pip install 'claude-batch-dagster[duckdb]'."
EXPLAIN = re.compile(r"EXPLAIN\s+(\([^)]*\)\s*)?(ANALYZE\s+)?(\([^)]*\)\s*)?", re.IGNORECASE)
PIVOT = re.compile(r"(PIVOT|FROM|SELECT|WITH|\()", re.IGNORECASE)
RESPONSE_COLUMNS = {
    "task": ("VARCHAR", "The task's name: the last part of the asset's key. Of several names of one task the latest."),
    "task_key": ("VARCHAR", STATUS_DESCRIPTIONS["task_key"]),
    "request_key": ("VARCHAR", STATUS_DESCRIPTIONS["request_key"]),
    "outcome": ("VARCHAR", "What became of the request: " + " | ".join(one.value for one in Outcome if one is not Outcome.PENDING) + "."),
    "answer": ("VARCHAR", "What Claude answered: JSON of the task's fields, or text."),
    "stop_reason": ("VARCHAR", STATUS_DESCRIPTIONS["stop_reason"]),
    "error": ("VARCHAR", STATUS_DESCRIPTIONS["error"]),
    "model": ("VARCHAR", STATUS_DESCRIPTIONS["model"]),
    "input_tokens": ("BIGINT", STATUS_DESCRIPTIONS["input_tokens"]),
    "output_tokens": ("BIGINT", STATUS_DESCRIPTIONS["output_tokens"]),
    "cache_read_tokens": ("BIGINT", STATUS_DESCRIPTIONS["cache_read_tokens"]),
    "cache_write_tokens": ("BIGINT", STATUS_DESCRIPTIONS["cache_write_tokens"]),
    "cost_usd": ("DOUBLE", "At batch price; null where the model has no known price."),
    "batch_id": ("VARCHAR", STATUS_DESCRIPTIONS["batch_id"]),
    "round": ("INTEGER", "The round of its run in which it was asked, from 1."),
    "answered_at": ("TIMESTAMP WITH TIME ZONE", STATUS_DESCRIPTIONS["answered_at"]),
}
RUN_COLUMNS = {
    "run": ("VARCHAR", "Batch run, as `claude-batch status` names it: r42."),
    "run_id": ("VARCHAR", "Its id; the workflow's id ends with it."),
    "outcome": ("VARCHAR", "finished | canceled | failed | open."),
    "admitted_at": ("TIMESTAMP WITH TIME ZONE", "When its requests became its own."),
    "finished_at": ("TIMESTAMP WITH TIME ZONE", "When its answers were in the root; null while it is open."),
    "tasks": ("VARCHAR", "Names, joined by commas."),
    "source": ("VARCHAR", "Where its rows were read."),
    "requests": ("BIGINT", "That it owned."),
    "succeeded": ("BIGINT", "Of these; null while it is open."),
    "batches": ("BIGINT", "That were created; null while it is open."),
    "cost_usd": ("DOUBLE", "What it cost, with the tries of new tasks; null while it is open, or without a known price."),
    "expected_usd": ("DOUBLE", "What its plan expected."),
    "worst_usd": ("DOUBLE", "What its plan allowed at most."),
    "dagster_run_id": ("VARCHAR", "The Dagster run that admitted it."),
    "error": ("VARCHAR", "Why it failed."),
}
_FINAL = (
    f"outcome IN ({', '.join(repr(one.value) for one in sorted(FINAL_OUTCOMES))}) OR (outcome = 'errored' AND "
    f"trim(split_part(coalesce(error, ''), ':', 1)) IN ({', '.join(repr(one) for one in sorted(FINAL_ERRORS))}))"
)
ANSWERS_SQL = f"""SELECT * FROM responses
QUALIFY row_number() OVER (
    PARTITION BY task_key, request_key
    ORDER BY outcome = 'succeeded' DESC, ({_FINAL}) DESC, answered_at DESC, round DESC, batch_id DESC
) = 1"""
"""The rule of publishing, in `storage.entries`."""
FAILURES_SQL = """SELECT task, outcome, trim(split_part(coalesce(error, ''), ':', 1)) AS reason, count(*) AS requests,
    any_value(error) AS example, sum(cost_usd) AS cost_usd, min(answered_at) AS first_at, max(answered_at) AS last_at
FROM answers WHERE outcome <> 'succeeded' GROUP BY ALL ORDER BY requests DESC, task, outcome, reason"""
COST_SQL = """SELECT CAST(answered_at AS DATE) AS day, task, model, count(*) AS responses, CAST(sum(input_tokens) AS BIGINT) AS input_tokens,
    CAST(sum(output_tokens) AS BIGINT) AS output_tokens, CAST(sum(cache_read_tokens) AS BIGINT) AS cache_read_tokens, CAST(sum(cache_write_tokens) AS BIGINT) AS cache_write_tokens,
    sum(cost_usd) AS cost_usd, count(*) FILTER (model IS NOT NULL AND cost_usd IS NULL) AS without_price
FROM responses GROUP BY ALL ORDER BY day, task, model"""
BATCHES_SQL = """SELECT batch_id, string_agg(DISTINCT task, ', ' ORDER BY task) AS tasks, min(round) AS round, count(*) AS responses,
    count(*) FILTER (outcome = 'succeeded') AS succeeded, count(*) FILTER (outcome NOT IN ('succeeded', 'refused')) AS failed,
    CAST(sum(input_tokens) AS BIGINT) AS input_tokens, CAST(sum(output_tokens) AS BIGINT) AS output_tokens, sum(cost_usd) AS cost_usd, max(answered_at) AS answered_at
FROM responses GROUP BY batch_id ORDER BY answered_at, batch_id"""
DERIVED_COLUMNS = {
    "reason": "The type of the error, before its colon.",
    "example": "One of the errors, whole.",
    "requests": "How many.",
    "first_at": "The first answer of these.",
    "last_at": "The last answer of these.",
    "day": "The day on which the batch ended, UTC.",
    "responses": "How many.",
    "succeeded": "Of these, usable answers.",
    "failed": "Of these, neither usable nor refused.",
    "tasks": "Names, joined by commas.",
    "without_price": "Of these, answers of models without a known price, whose cost is not in the sum.",
}
DERIVED = {
    "answers": (
        ANSWERS_SQL,
        "The response that counts for each request, by the rule of publishing: a usable one, then a final one, then the latest.",
    ),
    "failures": (FAILURES_SQL, "Requests of `answers` that did not succeed, by task, outcome and reason; refusals are among them."),
    "cost_by_day": (COST_SQL, "What the responses of a day (UTC) cost, by task and model; tries of new tasks are in `runs` only."),
    "batches": (BATCHES_SQL, "Message Batches that answered, with the number of their answers."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view and what is in it.

    Attributes:
        columns: (name, type, description) in order; the description may be empty.
    """

    name: str
    description: str
    columns: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a statement gives: the rows as Python values, some thousand at a time."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[object, ...]]


@dataclass(slots=True)
class Views:
    """An open database. `connection` may be used directly; it is nobody else's."""

    connection: "DuckDBPyConnection"

    def query(self, sql: str) -> Found:
        """Return what a statement that reads gives; the former statement's rows end with it.

        Raises:
            UsageError: Terminal. It is no SQL, or does something else than read; with DuckDB's message.
            RootError: Terminal. A file cannot be read.
        """
        with _explained():
            statements = self.connection.extract_statements(sql)
            if len(statements) != 1:
                raise UsageError(f"{len(statements)} statements were given; one at a time is carried out. Nothing was read. Give one.")
            _refuse_writing(self.connection, sql)
            self.connection.execute(sql)
            return Found(columns=tuple(str(column[0]) for column in self.connection.description or ()), rows=self._iter_rows())

    def _iter_rows(self) -> Iterator[tuple[object, ...]]:
        while True:
            with _explained():
                rows = self.connection.fetchmany(FETCHED_ROWS)
            if not rows:
                return
            yield from rows

    def list(self) -> list[View]:
        """Return what there is."""
        rows = self.connection.execute(
            "SELECT v.view_name, coalesce(v.comment, ''), c.column_name, c.data_type, coalesce(c.comment, '') FROM duckdb_views() v "
            "JOIN duckdb_columns() c ON c.table_name = v.view_name AND c.database_name = v.database_name AND c.schema_name = v.schema_name "
            "WHERE NOT v.internal ORDER BY v.view_oid, c.column_index"
        ).fetchall()
        views: dict[str, tuple[str, list[tuple[str, str, str]]]] = {}
        for name, description, *column in rows:
            views.setdefault(name, (description, []))[1].append(cast("tuple[str, str, str]", tuple(column)))
        return [View(name=name, description=description, columns=tuple(columns)) for name, (description, columns) in views.items()]


@contextmanager
def open_views(root: str, outputs: Sequence[str] = ()) -> Iterator[Views]:
    """Open a root's views; nothing is written, not even to a root that does not exist.

    Args:
        root: URI, `/simulated` included where the work is simulated.
        outputs: Folders of outputs, or that hold outputs, beside `output` below the root.

    Raises:
        RootError: Terminal. DuckDB is not installed, or the root cannot be read.
        UsageError: Terminal. A folder holds no output.
    """
    try:
        import duckdb
    except ImportError as error:
        raise RootError(MISSING) from error
    store = Store(root)
    connection = duckdb.connect(":memory:")
    try:
        with _explained():
            # Answers are dated by the vendor's clock, which is UTC; and a query must not download anything.
            connection.execute("SET TimeZone = 'UTC'; SET autoinstall_known_extensions = false")
            for uri in (store.uri, *map(absolute_uri, outputs)):
                _reach(connection, uri)
            maker = _Maker(connection, store)
            maker.add_outputs(outputs)
            maker.add_records()
            connection.execute("SET lock_configuration = true")
        yield Views(connection)
    finally:
        connection.close()


@dataclass(slots=True)
class _Maker:
    connection: "DuckDBPyConnection"
    store: Store
    names: set[str] = field(default_factory=lambda: {"responses", "runs", *DERIVED})

    def add_outputs(self, folders: Sequence[str]) -> None:
        """Add a view for each output; one listing for each folder."""
        self._add_folder(Store(join_uri(self.store.uri, "output")))
        for folder in folders:
            if not self._add_folder(Store(folder)):
                raise UsageError(
                    f"{absolute_uri(folder)} holds no output: there is no {MARKER} in it or below it. Nothing was read. Check the path."
                )

    def _add_folder(self, store: Store) -> int:
        paths = store.list("")
        outputs = [path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == MARKER]
        added = 0
        for output in outputs:
            below = f"{output}/" if output else ""
            files = [path for path in paths if path.startswith(below) and _is_published(path.removeprefix(below))]
            if files:
                column = files[0].removeprefix(below).partition("=")[0] if "/" in files[0].removeprefix(below) else None
                name = self._free_name("_".join(output.split("/")) if output else store.uri.rpartition("/")[2])
                self._add_output(name, [join_uri(store.uri, path) for path in files], column, join_uri(store.uri, *filter(None, [output])))
            added += 1
        return added

    def _add_output(self, name: str, files: list[str], column: str | None, folder: str) -> None:
        hive = f", hive_partitioning = true, hive_types = {{{_quote_name(column)}: VARCHAR}}" if column else ", hive_partitioning = false"
        sql = f"SELECT * FROM read_parquet({_paths(files)}, union_by_name = true{hive})"
        self._add(name, sql, f"Output {folder}: the rows of its source, with the answers.", STATUS_DESCRIPTIONS)

    def add_records(self) -> None:
        """Add what the root holds."""
        record = read_root(self.store)
        entries, done = self._read_runs() if record is not None else ([], {})
        names = {task.task_key: task.name for entry in reversed(entries) for task in entry.tasks}
        parts = []
        for task_key in list_task_keys(self.store, record.endpoint) if record is not None else ():
            stored = read_stored_files(self.store, record.endpoint, task_key, lost_too=True)  # type: ignore[union-attr]
            # A file that was written again after it was joined with others: some of its rows are in both.
            twice = any(len(pieces) > 1 for pieces in find_batches(self.store, stored.endpoint, task_key).values())
            files = [join_uri(self.store.uri, file.path) for file in stored.files]
            parts.append(_select_responses(files, names.get(task_key, task_key), task_key, twice=twice))
        empty = f"SELECT {', '.join(f'CAST(NULL AS {kind}) AS {name}' for name, (kind, _) in RESPONSE_COLUMNS.items())} WHERE false"
        described = {name: text for name, (_, text) in RESPONSE_COLUMNS.items()}
        self._add(
            "responses",
            "\nUNION ALL\n".join(parts or [empty]),
            "Every response of this root; a request that was asked again has several.",
            described,
        )
        for name, (sql, description) in DERIVED.items():
            self._add(name, sql, description, {**described, **DERIVED_COLUMNS})
        self.connection.register("read_now", _tabulate(entries, done))
        # In a schema of its own: what is listed are the views.
        self.connection.execute("CREATE SCHEMA records; CREATE TABLE records.runs AS FROM read_now")
        self.connection.unregister("read_now")
        columns = ", ".join(f"CAST({name} AS {kind}) AS {name}" for name, (kind, _) in RUN_COLUMNS.items())
        self._add(
            "runs",
            f"SELECT {columns} FROM records.runs ORDER BY admitted_at",
            "Batch runs of this root.",
            {n: t for n, (_, t) in RUN_COLUMNS.items()},
        )

    def _read_runs(self) -> tuple[list[LogEntry], dict[int, DoneRecord | None]]:
        entries = read_entries(self.store)
        with ThreadPoolExecutor(READERS) as readers:
            done = dict(
                zip([one.number for one in entries], readers.map(lambda one: read_done(self.store, one.number), entries), strict=True)
            )
        return entries, done

    def _free_name(self, name: str) -> str:
        free, number = name if name not in self.names else f"{name}_output", 2
        while free in self.names:
            free, number = f"{name}_{number}", number + 1
        self.names.add(free)
        return free

    def _add(self, name: str, sql: str, description: str, columns: Any) -> None:
        view = _quote_name(name)
        self.connection.execute(f"CREATE VIEW {view} AS {sql}")
        self.connection.execute(f"COMMENT ON VIEW {view} IS {_quote(description)}")
        for column, *_ in self.connection.execute(f"DESCRIBE {view}").fetchall():
            if column in columns:
                self.connection.execute(f"COMMENT ON COLUMN {view}.{_quote_name(column)} IS {_quote(columns[column])}")


def _select_responses(files: list[str], task: str, task_key: str, *, twice: bool) -> str:
    expressions = {
        "task": _quote(task),
        "task_key": _quote(task_key),
        "request_key": "replace(CAST(request_key AS VARCHAR), '-', '')",
        "cost_usd": f"cost_nano_usd / {NANO}.0",
    }
    columns = ", ".join(f"CAST({expressions.get(name, name)} AS {kind}) AS {name}" for name, (kind, _) in RESPONSE_COLUMNS.items())
    once = "\nQUALIFY row_number() OVER (PARTITION BY request_key, batch_id) = 1" if twice else ""
    return f"SELECT {columns} FROM read_parquet({_paths(files)}, hive_partitioning = false){once}"


def _tabulate(entries: Sequence[LogEntry], done: dict[int, DoneRecord | None]) -> pa.Table:
    rows = []
    for entry in entries:
        end = done[entry.number]
        rows.append(
            {
                "run": entry.label,
                "run_id": entry.run_id,
                "outcome": end.outcome if end else "open",
                "admitted_at": entry.admitted_at,
                "finished_at": end.finished_at if end else None,
                "tasks": ", ".join(dict.fromkeys(task.name for task in entry.tasks)),
                "source": entry.source.uri,
                "requests": entry.keys.count,
                "succeeded": end.rows.get("succeeded", 0) if end else None,
                "batches": end.batches if end else None,
                "cost_usd": _usd(end.cost_nano_usd if end else None),
                "expected_usd": _usd(entry.cost_nano_usd.expected),
                "worst_usd": _usd(entry.cost_nano_usd.worst),
                "dagster_run_id": entry.owner.dagster_run_id,
                "error": end.error if end else None,
            }
        )
    kinds = {"BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, kinds.get(kind, pa.string())) for name, (kind, _) in RUN_COLUMNS.items()]))


def _refuse_writing(connection: "DuckDBPyConnection", sql: str) -> None:
    """Refuse what does more than read: COPY and INSERT, also where they are explained, for EXPLAIN ANALYZE carries them out."""
    inner = EXPLAIN.sub("", sql.strip())
    kinds = {statement.type.name for statement in connection.extract_statements(inner)}
    pivots = kinds == {"MULTI"} and PIVOT.match(inner) is not None
    if kinds != {"SELECT"} and not pivots:
        raise UsageError(
            f"The statement is {', '.join(sorted(kinds)) or 'a comment'}, and only what reads is carried out. Nothing was read. Write a SELECT."
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Raise DuckDB's refusals as ours: what is wrong with the statement, and what with the files."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.HTTPException, duckdb.OutOfMemoryException) as error:
        raise RootError(f"{error}") from error
    except duckdb.Error as error:
        raise UsageError(f"{error}") from error


def _reach(connection: "DuckDBPyConnection", uri: str) -> None:
    """Let DuckDB read an object store with the same credentials as everything else."""
    scheme = uri.partition("://")[0] if "://" in uri else None
    if scheme is not None and scheme not in connection.list_filesystems():
        from obstore.fsspec import FsspecStore

        connection.register_filesystem(FsspecStore(cast(Any, scheme)))


def _is_published(path: str) -> bool:
    """Tell whether a path below an output is one of its files: `part-0.parquet`, or that in a partition's folder."""
    return re.fullmatch(r"([^/]+=[^/]*/)?part-0\.parquet", path) is not None


def _paths(files: Sequence[str]) -> str:
    return f"[{', '.join(map(_quote, files))}]"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _usd(nano_usd: int | None) -> float | None:
    return None if nano_usd is None else nano_usd / NANO
