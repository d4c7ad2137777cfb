"""Which response files of a task count, and where in them each batch's rows are.

- The index is read before the files are listed, and must still be the newest after it: what was answered before is in what is found.
- A file that the index does not cover, or covers as another version of it, is to be read: an old index hides nothing.
- A file that was replaced by a compacted one is passed over, as long as it is the version that was compacted; so is a compacted file
  that no index names, as long as the files that it joined are known.
- A file that the index covers and that is gone is an error, never "not answered".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import RootError, TransientError
from claude_batch_dagster.storage.index import IndexRecord, Newest, find_generation, index_folder, read_newest
from claude_batch_dagster.storage.keys import Keys, KeySet, keys_from_arrow
from claude_batch_dagster.storage.responses import COMPACTED, Stretch, read_origin, responses_folder
from claude_batch_dagster.storage.store import Store, join_uri

LOOKS = 20
ADDED = "+"
"""Ends the batch's id in the name of a file that holds more of its responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A response file.

    Attributes:
        version: As it was listed.
        is_covered: Whether the index has its rows, of this version.
    """

    path: str
    version: str
    is_covered: bool

    @property
    def name(self) -> str:
        """In the task's folder."""
        return self.path.rpartition("/")[2]

    @property
    def batch_id(self) -> str:
        """Whom a file that is not compacted is named by."""
        return self.name.removesuffix(".parquet").partition(ADDED)[0]

    @property
    def is_compacted(self) -> bool:
        """Whether it holds the rows of several batches."""
        return self.name.startswith(COMPACTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFiles:
    """The response files of a task as they are now.

    Attributes:
        newest: The index.
        files: Those that count; first those that the index knows, in its order.
        replaced: Those that are passed over, since the index says what replaced them.
        redundant: Compacted files that no index names, and whose rows others have: passed over too.
        lost: Names of those that the index covers and that are gone; empty unless they were asked for.
    """

    store: Store
    endpoint: str
    task_key: str
    newest: Newest
    files: tuple[StoredFile, ...]
    replaced: tuple[StoredFile, ...]
    redundant: tuple[StoredFile, ...]
    lost: tuple[str, ...]

    @property
    def record(self) -> IndexRecord | None:
        """The index's record, None where there is no index that can be used."""
        return None if self.lost else self.newest.record

    def stretches(self, number: int) -> tuple[Stretch, ...] | None:
        """Return from which batches a file's rows come, None for all from the batch that it is named by."""
        file = self.files[number]
        if not file.is_compacted:
            return None
        if file.is_covered and self.record is not None:
            return self.record.files[number].stretches
        return read_origin(self.store, file.path).stretches


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Where a batch's responses to one task are: rows that follow each other, all of the file where `rows` is None."""

    path: str
    start: int = 0
    rows: int | None = None

    def read(self, store: Store, columns: list[str]) -> pa.Table:
        """Read some columns of the rows."""
        with pq.ParquetFile(store.open(self.path)) as file:
            return file.read(columns).slice(self.start, self.rows)


def read_stored_files(store: Store, endpoint: str, task_key: str, *, lost_too: bool = False) -> StoredFiles:
    """Find the response files of a task.

    Args:
        store: The root.
        endpoint: Whose answers.
        task_key: To which task.
        lost_too: Name the files that are gone instead of refusing.

    Raises:
        RootError: Terminal. A file that the index covers is gone, or the index is of a newer version.
        TransientError: Others change the store faster than it can be listed.
    """
    index, folder = index_folder(endpoint, task_key), responses_folder(endpoint, task_key)
    for _ in range(LOOKS):
        newest = read_newest(store, index)
        listed = dict(_name(path, version) for path, version in store.list_versions(folder) if path.endswith(".parquet"))
        if find_generation(store, index) != newest.generation:
            # Files may have been removed since, which only the newer one knows the successors of.
            continue
        record = newest.record
        covered = dict(_name(file.name, file.version) for file in record.files) if record else {}
        lost = tuple(name for name in covered if name not in listed)
        if lost and any(store.exists(f"{folder}/{name}") for name in lost):
            continue
        if lost and not lost_too:
            raise RootError(_explain_lost(store, folder, index, newest, lost))
        # What replaced a file may be among what is lost: then nothing was replaced.
        replaced = dict(_name(file.name, file.version) for file in record.replaced) if record and not lost else {}
        # What is lost holds nothing: a compacted file of it is no repetition, but the last copy.
        seen = listed.items() | ({} if lost else covered).items() | replaced.items()

        def find(name: str, version: str, folder: str = folder, covered: dict[str, str] = covered) -> StoredFile:
            return StoredFile(path=f"{folder}/{name}", version=version, is_covered=covered.get(name) == version)

        fresh = [find(name, version) for name, version in listed.items() if name not in covered and replaced.get(name) != version]
        redundant = [
            file
            for file in fresh
            if file.is_compacted and seen.issuperset(_name(*source) for source in read_origin(store, file.path).sources)
        ]
        return StoredFiles(
            store=store,
            endpoint=endpoint,
            task_key=task_key,
            newest=newest,
            files=(*(find(name, listed[name]) for name in covered if name in listed), *(file for file in fresh if file not in redundant)),
            replaced=tuple(find(name, version) for name, version in replaced.items() if listed.get(name) == version),
            redundant=tuple(redundant),
            lost=lost,
        )
    raise TransientError(
        f"{join_uri(store.uri, index)} and {join_uri(store.uri, folder)} changed {LOOKS} times while they were listed. Nothing was sent. Run again."
    )


def find_version(store: Store, path: str) -> str | None:
    """Return the version that a response file is known by, None where another client has removed it."""
    try:
        return _name(path, store.version(path))[1]
    except FileNotFoundError:
        return None


def _name(path: str, version: str) -> tuple[str, str]:
    """Return a file's name and the version that it is known by.

    A compacted one is known by its name, which no other ever has: a copy of the root, whose files have other versions, does not join it
    a second time.
    """
    name = path.rpartition("/")[2]
    return name, COMPACTED if name.startswith(COMPACTED) else version


def list_task_keys(store: Store, endpoint: str) -> list[str]:
    """Return the tasks that have responses."""
    return sorted({path.split("/")[2] for path in store.list(f"responses/{endpoint}") if path.endswith(".parquet")})


def find_batches(store: Store, endpoint: str, task_key: str) -> dict[str, list[Piece]]:
    """Return where each batch's responses to a task are, by its id.

    A batch has more than one piece where its file was written again after it was compacted: then some rows are in both.
    """
    stored = read_stored_files(store, endpoint, task_key, lost_too=True)
    found: dict[str, list[Piece]] = {}
    for number, file in enumerate(stored.files):
        stretches = stored.stretches(number)
        if stretches is None:
            found.setdefault(file.batch_id, []).append(Piece(path=file.path))
            continue
        start = 0
        for stretch in stretches:
            found.setdefault(stretch.batch_id, []).append(Piece(path=file.path, start=start, rows=stretch.rows))
            start += stretch.rows
    return found


def read_batches(store: Store, endpoint: str, task_key: str, batch_ids: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of what batches answered to a task, every response once; nothing for a batch without any."""
    found = find_batches(store, endpoint, task_key)
    return (table for batch_id in batch_ids for table in read_once(store, found.get(batch_id, []), columns))


def read_once(store: Store, pieces: Sequence[Piece], columns: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of a batch's pieces, every response once."""
    if len(pieces) == 1:
        yield pieces[0].read(store, columns)
        return
    seen = KeySet()
    for piece in pieces:
        table = piece.read(store, list(dict.fromkeys(("request_key", *columns))))
        yield table.filter(pa.array(seen.add(keys_from_arrow(table["request_key"])))).select(columns)


def read_batch_keys(store: Store, pieces: Iterable[Piece]) -> Keys:
    """Return the requests whose responses some pieces hold; one in two pieces comes twice."""
    tables = [piece.read(store, ["request_key"]) for piece in pieces]
    return keys_from_arrow(pa.concat_tables(tables)["request_key"])


def count_rows(store: Store, pieces: Iterable[Piece]) -> int:
    """Return how many requests have a response in pieces of one batch and task."""
    pieces = list(pieces)
    if len(pieces) > 1:
        return int(KeySet().add(read_batch_keys(store, pieces)).sum())
    return sum(piece.rows if piece.rows is not None else pq.read_metadata(store.open(piece.path)).num_rows for piece in pieces)


def _explain_lost(store: Store, folder: str, index: str, newest: Newest, lost: tuple[str, ...]) -> str:
    assert newest.record is not None, "what is lost is known from a record"
    rows = sum(file.rows for file in newest.record.files if file.name in lost)
    return (
        f"{len(lost):,} {'file is' if len(lost) == 1 else 'files are'} missing below {join_uri(store.uri, folder)} ({', '.join(lost[:3])}"
        f"{', ...' if len(lost) > 3 else ''}) with {rows:,} responses that are paid for. Nothing was sent. Restore the folder, or harvest what "
        f"Anthropic still has: claude-batch recover. If they were deleted on purpose, delete {join_uri(store.uri, index)} too."
    )
