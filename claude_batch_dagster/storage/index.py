"""The index of a task's responses: of every key the place of its best response, sorted by key. It can always be made again.

- `index/{endpoint}/{task_key}/{generation}.json`: put-if-absent; the response files that the index covers, and those that others replaced.
- `index/{endpoint}/{task_key}/{generation}-{id}.keys`: the columns one after the other, 23 bytes a key, written before the record.
- The newest generation counts. A damaged index is no index; one of a newer format is refused.
"""

import hashlib
import logging
import mmap
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from claude_batch_dagster.storage.entries import Column, Entries, no_entries
from claude_batch_dagster.storage.formats import check_format
from claude_batch_dagster.storage.responses import Stretch
from claude_batch_dagster.storage.store import Store, join_uri

log = logging.getLogger(__name__)

FORMAT = 1
CHUNK_BYTES = 4 << 20
NARROW_FILES = 1 << 16
GENERATION_DIGITS = 8


class IndexedFile(msgspec.Struct, kw_only=True, frozen=True):
    """A response file that an index covers.

    Attributes:
        name: In the task's folder.
        version: Of the object when it was read; of another one the rows may be others.
        answered: Rows that are usable answers.
        output_tokens: Of these.
    """

    name: str
    version: str
    rows: int
    answered: int
    output_tokens: int
    stretches: tuple[Stretch, ...]


class ReplacedFile(msgspec.Struct, kw_only=True, frozen=True):
    """A response file whose rows stand in a compacted one too."""

    name: str
    version: str
    since: datetime


class IndexRecord(msgspec.Struct, kw_only=True, frozen=True):
    """`{generation}.json`.

    Attributes:
        columns: Name of the object with the columns, in the same folder; empty where there is no key.
        keys: How many.
        checksum: Of the columns.
    """

    generation: int
    written_at: datetime
    columns: str
    keys: int
    checksum: str
    files: tuple[IndexedFile, ...]
    replaced: tuple[ReplacedFile, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest generation of an index; 0 for none. The record is None where there is none that can be read."""

    generation: int
    record: IndexRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """All that there is of an index.

    Attributes:
        records: By generation.
        columns: Names of all objects with columns.
        named: Those that a record names.
    """

    records: tuple[IndexRecord, ...]
    columns: set[str]
    named: set[str]


def index_folder(endpoint: str, task_key: str) -> str:
    """Return where the index of a task's responses is kept."""
    return f"index/{endpoint}/{task_key}"


def record_name(generation: int) -> str:
    """Return the name of a generation's record."""
    return f"{generation:0{GENERATION_DIGITS}d}.json"


def find_generation(store: Store, folder: str) -> int:
    """Return the number of the newest generation, 0 for none."""
    names = [path.rpartition("/")[2] for path in store.list(folder)]
    return max((int(name.removesuffix(".json")) for name in names if name.endswith(".json") and name[:-5].isdecimal()), default=0)


def read_newest(store: Store, folder: str) -> Newest:
    """Return the newest generation of an index.

    Raises:
        RootError: Terminal. A newer version wrote it.
    """
    generation = find_generation(store, folder)
    if not generation:
        return Newest(generation=0, record=None)
    path = f"{folder}/{record_name(generation)}"
    content = store.get(path)
    record = None
    if content is not None:
        try:
            check_format(store, path, content, FORMAT)
            record = msgspec.json.decode(content, type=IndexRecord)
        except msgspec.DecodeError as error:
            log.warning("%s is damaged (%s): the responses are read without it", join_uri(store.uri, path), error)
    return Newest(generation=generation, record=record)


def read_generations(store: Store, folder: str) -> Generations:
    """Return everything that there is of an index; records that cannot be read are left out."""
    names = [path.rpartition("/")[2] for path in store.list(folder)]
    records = []
    for name in sorted(name for name in names if name.endswith(".json")):
        content = store.get(f"{folder}/{name}")
        with suppress(msgspec.DecodeError):
            if content is not None:
                records.append(msgspec.json.decode(content, type=IndexRecord))
    columns = {name for name in names if name.endswith(".keys") and name[:GENERATION_DIGITS].isdecimal()}
    return Generations(records=tuple(records), columns=columns, named={record.columns for record in records})


def open_columns(store: Store, folder: str, record: IndexRecord) -> Entries | None:
    """Return what an index holds, backed by its file; None where it is missing or damaged.

    An index of an object store is copied to a temporary file, which is gone with the last reference to it.
    """
    if not record.keys:
        return no_entries()
    path = f"{folder}/{record.columns}"
    entries: Entries | None = None
    with suppress(FileNotFoundError):
        if store.folder is not None:
            entries = _open_checked(store.folder / path, record)
        else:
            with store.scratch() as scratch:
                file = scratch / "index.keys"
                with file.open("wb") as out:
                    out.writelines(store.stream(path, CHUNK_BYTES))
                entries = _open_checked(file, record)
    if entries is None:
        log.warning("%s is missing or damaged: the responses are read without it", join_uri(store.uri, path))
    return entries


def write_columns(file: Path, files: int, pieces: Callable[[str, npt.DTypeLike], Iterable[Column]]) -> None:
    """Write a local file of columns.

    Args:
        file: The file to make.
        files: How many files the index covers.
        pieces: Yields the column of a name in a type, some entries at a time.
    """
    with file.open("wb") as out:
        for name, dtype in _dtypes(files):
            for piece in pieces(name, dtype):
                piece.tofile(out)


def map_columns(file: Path, keys: int, files: int) -> Entries:
    """Return what a file of columns holds, backed by it, also after it was removed."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    columns: dict[str, Column] = {}
    start = 0
    for name, dtype in _dtypes(files):
        columns[name] = np.frombuffer(mapped, dtype, keys, start)
        start += columns[name].nbytes
    return Entries(**columns)


def sum_columns(file: Path) -> str:
    """Return the checksum of a file of columns: to find damage, not forgery, at the speed of memory."""
    sums = []
    with file.open("rb") as opened:
        # By plain reads: what is only summed up here need not stay mapped.
        while chunk := opened.read(CHUNK_BYTES):
            words = np.frombuffer(chunk + bytes(-len(chunk) % 8) if len(chunk) % 8 else chunk, np.uint64)
            sums += [int(np.add.reduce(words)), int(np.bitwise_xor.reduce(words)), len(chunk)]
    return hashlib.sha256(msgspec.json.encode(sums)).hexdigest()


def _dtypes(files: int) -> list[tuple[str, npt.DTypeLike]]:
    number = np.uint16 if files <= NARROW_FILES else np.uint32
    return [("high", np.uint64), ("low", np.uint64), ("row", np.uint32), ("file", number), ("code", np.uint8)]


def _open_checked(file: Path, record: IndexRecord) -> Entries | None:
    size = sum(record.keys * np.dtype(dtype).itemsize for _, dtype in _dtypes(len(record.files)))
    if file.stat().st_size != size or sum_columns(file) != record.checksum:
        return None
    return map_columns(file, record.keys, len(record.files))
