"""The books: every batch on disk, so that kill -9 and a restart lose nothing.

- A batch is a folder `batches/{id}/`: `batch.json`, `index.bin` (a fixed-size record a request) and `params.bin` (their params).
- It appears whole, by one rename; a folder that was not finished lies in `incoming/` and is swept at the start.
- `batch.json` is replaced atomically. Deleting removes `params.bin` and keeps the rest, so that a judge still counts what was paid.
- Requests are never held as Python objects: they are mapped from disk and read one at a time.
"""

import array
import fcntl
import mmap
import os
import random
import shutil
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from claude_batch_dagster.simulator.batch import EXPIRY_S, Batch, cancel, final_outcome
from claude_batch_dagster.simulator.envelope import Item
from claude_batch_dagster.simulator.wire import new_id

# custom_id padded with NULs, first letter of the outcome, offset and bytes of the params.
_RECORD = struct.Struct("<64scQI")
_OUTCOME_OF = {b"s": "succeeded", b"e": "errored", b"x": "expired"}
_CODE_OF = {outcome: code for code, outcome in _OUTCOME_OF.items()}


class BooksInUseError(RuntimeError):
    """Another simulator runs on the same books."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request of a batch with what became of it."""

    custom_id: str
    outcome: str
    params: bytes


class Books:
    """All batches of a folder. One process at a time; threads of it may call any method."""

    def __init__(self, folder: Path) -> None:
        """Open or create the books.

        Raises:
            BooksInUseError: another process has them open.
        """
        self.folder = folder
        self._batches: dict[str, Batch] = {}
        self._lock = threading.Lock()
        for name in ("batches", "incoming"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._guard = (folder / "lock").open("w")
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._guard.close()
            raise BooksInUseError(
                f"The books in {folder} are open in another simulator. Nothing was started. Give another --books."
            ) from None
        for leftover in (folder / "incoming").iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        decoder = msgspec.json.Decoder(Batch)
        found = [decoder.decode(path.read_bytes()) for path in (folder / "batches").glob("*/batch.json")]
        for batch in sorted(found, key=lambda batch: batch.number):
            self._batches[batch.id] = batch
        self._last_number = max((batch.number for batch in found), default=0)

    def close(self) -> None:
        """Let another process open the books."""
        self._guard.close()

    def spool(self) -> BinaryIO:
        """A nameless file in the books' folder for an upload; it is gone when closed."""
        return tempfile.TemporaryFile(dir=self.folder / "incoming")

    def add(self, template: Batch, items: list[Item], judge: Callable[[str, memoryview], str], clock: Callable[[], float]) -> Batch:
        """Store a batch of these requests, whole or not at all.

        `template` gives all but id, number, created_at, count and tallies; `judge` says from custom_id and params how a request will end.
        """
        batch_id = new_id("msgbatch_01")
        incoming = self.folder / "incoming" / batch_id
        incoming.mkdir()
        share = min(1.0, EXPIRY_S / template.takes_s) if template.takes_s else 1.0
        batch = replace(template, id=batch_id, count=len(items), answered_share=share)
        tallies: Counter[str] = Counter()
        try:
            with (incoming / "params.bin").open("wb") as params_file, (incoming / "index.bin").open("wb") as index_file:
                offset = 0
                for item in items:
                    params = memoryview(item.params)
                    outcome = judge(item.custom_id, params)
                    tallies[final_outcome(batch, item.custom_id, outcome)] += 1
                    index_file.write(_RECORD.pack(item.custom_id.encode(), _CODE_OF[outcome], offset, len(params)))
                    params_file.write(params)
                    offset += len(params)
            with self._lock:
                batch = replace(batch, number=self._last_number + 1, created_at=clock(), tallies=dict(tallies))
                (incoming / "batch.json").write_bytes(msgspec.json.encode(batch))
                incoming.rename(self.folder / "batches" / batch_id)
                self._last_number = batch.number
                self._batches[batch_id] = batch
        except BaseException:
            shutil.rmtree(incoming, ignore_errors=True)
            raise
        return batch

    def find(self, batch_id: str) -> Batch | None:
        """The batch, None when there is none or it was deleted."""
        batch = self._batches.get(batch_id)
        return None if batch is None or batch.deleted_at is not None else batch

    def number_of(self, batch_id: str) -> int | None:
        """The place of a batch in the order of creation, also when it was deleted."""
        batch = self._batches.get(batch_id)
        return None if batch is None else batch.number

    def newest_first(self, *, deleted: bool = False) -> list[Batch]:
        """All batches, the deleted ones only if asked for."""
        with self._lock:
            batches = list(self._batches.values())
        return [batch for batch in reversed(batches) if deleted or batch.deleted_at is None]

    def cancel(self, batch_id: str, now: float) -> Batch:
        """Begin the cancellation of a batch that has not ended; a second one changes nothing."""
        batch = self._batches[batch_id]
        if batch.cancel_initiated_at is not None:
            return batch
        batch = cancel(batch, now)
        tallies = Counter(final_outcome(batch, custom_id, outcome) for custom_id, outcome in self._own_outcomes(batch_id))
        return self._replace(replace(batch, tallies=dict(tallies)))

    def delete(self, batch_id: str, now: float) -> None:
        """Forget the requests and hide the batch; downloads that run go on."""
        self._replace(replace(self._batches[batch_id], deleted_at=now))
        (self.folder / "batches" / batch_id / "params.bin").unlink(missing_ok=True)

    def outcomes(self, batch_id: str) -> Iterator[tuple[str, str]]:
        """custom_id and outcome of every request as it ends or ended, in the order sent."""
        batch = self._batches[batch_id]
        for custom_id, outcome in self._own_outcomes(batch_id):
            yield custom_id, final_outcome(batch, custom_id, outcome)

    def shuffled_entries(self, batch_id: str) -> Iterator[Entry]:
        """Every request in an order that is not the one sent, and always the same.

        Raises:
            FileNotFoundError: the batch was deleted.
        """
        batch = self._batches[batch_id]
        order = array.array("I", range(batch.count))
        random.Random(batch_id).shuffle(order)
        with _mapped(self._path(batch_id, "index.bin")) as index, _mapped(self._path(batch_id, "params.bin")) as params:
            for position in order:
                name, code, offset, size = _RECORD.unpack_from(index, position * _RECORD.size)
                custom_id = name.rstrip(b"\0").decode()
                outcome = final_outcome(batch, custom_id, _OUTCOME_OF[code])
                yield Entry(custom_id=custom_id, outcome=outcome, params=params[offset : offset + size])

    def _own_outcomes(self, batch_id: str) -> Iterator[tuple[str, str]]:
        with self._path(batch_id, "index.bin").open("rb") as index:
            while record := index.read(_RECORD.size):
                name, code, _, _ = _RECORD.unpack(record)
                yield name.rstrip(b"\0").decode(), _OUTCOME_OF[code]

    def _replace(self, batch: Batch) -> Batch:
        with self._lock:
            path = self._path(batch.id, "batch.json")
            fresh = path.with_suffix(".fresh")
            fresh.write_bytes(msgspec.json.encode(batch))
            os.replace(fresh, path)
            self._batches[batch.id] = batch
        return batch

    def _path(self, batch_id: str, name: str) -> Path:
        return self.folder / "batches" / batch_id / name


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped
