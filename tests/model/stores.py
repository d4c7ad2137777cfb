"""An object store in memory, of which every state is a number: the test double of the file system, and of nothing else."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from claude_batch_dagster.storage.store import Store
from tests.model.replay import Operation, Programs, ask

ROOT = "/model/root"
KINDS = frozenset(("get", "list", "put", "put_if_absent", "delete"))
PRIVATE = ("plans/", "tasks/", "keys/", "preflights/", "root.json", "workspace.json")
"""Written before anybody else looks, or named by what they hold: nobody's next step depends on when."""


class ModelStore(Store):
    """The product's store, with every operation a step of the model."""

    def __init__(self) -> None:
        super().__init__(ROOT)

    @property
    def folder(self) -> None:
        """None: nothing is on a disk."""
        return

    def put(self, path: str, content: bytes) -> None:
        """Write an object."""
        ask("put", path, content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write an object that is not there."""
        return bool(ask("put_if_absent", path, content))

    def put_file(self, path: str, file: Path) -> None:
        """Write a file's content."""
        ask("put", path, file.read_bytes())

    def get(self, path: str) -> bytes | None:
        """Return an object's content."""
        found: bytes | None = ask("get", path)
        return found

    def stream(self, path: str, chunk_bytes: int = 0, *, forget: bool = False) -> Iterator[bytes]:
        """Yield an object's content."""
        yield self._read(path)

    def exists(self, path: str) -> bool:
        """Tell whether an object is there."""
        return ask("get", path) is not None

    def version(self, path: str) -> str:
        """Return the hash of what an object holds."""
        return hashlib.sha256(self._read(path)).hexdigest()

    def list_versions(self, prefix: str) -> list[tuple[str, str]]:
        """Return all objects below a folder."""
        return list(ask("list", prefix))

    def delete(self, path: str) -> None:
        """Remove an object."""
        ask("delete", path)

    def open(self, path: str) -> BinaryIO:
        """Return an object's content as a file."""
        return io.BytesIO(self._read(path))

    def _read(self, path: str) -> bytes:
        content = self.get(path)
        if content is None:
            raise FileNotFoundError(path)
        return content


class Contents:
    """Every content that the store ever had, as a number; 0 is the empty one.

    Args:
        overwrites: Folders in which put-if-absent is a plain put.

    Attributes:
        private: Folders that nobody else writes while it matters.
    """

    def __init__(self, *, overwrites: tuple[str, ...] = ()) -> None:
        self.private = PRIVATE
        self._overwrites = overwrites
        self._objects: list[dict[str, bytes]] = [{}]
        self._numbers: dict[frozenset[tuple[str, bytes]], int] = {frozenset(): 0}
        self._certain: dict[tuple[int, int], tuple[int, int]] = {}
        self._done: dict[tuple[int, Operation], tuple[Any, int]] = {}

    def __getitem__(self, number: int) -> dict[str, bytes]:
        return self._objects[number]

    def apply(self, number: int, operation: Operation) -> tuple[Any, int]:
        """Return an operation's answer and the content after it."""
        done = self._done.get((number, operation))
        if done is None:
            done = self._done[number, operation] = self._apply(number, operation)
        return done

    def is_certain(self, number: int, operation: Operation) -> bool:
        """Tell whether an operation has the same answer and effect whenever it is done from now on, so that it need not be a step of its own.

        Records are written once and never changed: what is there will be read the same later.
        """
        kind, path = operation[0], operation[1]
        if path.startswith(self.private):
            return True
        return not self._overwrites and kind in ("get", "put_if_absent") and path in self._objects[number]

    def run_certain(self, programs: Programs, local: int, number: int) -> tuple[int, int]:
        """Return where a process comes by operations that are certain, and the content then."""
        found = self._certain.get((local, number))
        if found is None:
            at, content = local, number
            while (operation := programs.operations[at]) is not None and operation[0] in KINDS and self.is_certain(content, operation):
                answer, content = self.apply(content, operation)
                at = programs.resume(at, answer)
            found = self._certain[local, number] = at, content
        return found

    def _apply(self, number: int, operation: Operation) -> tuple[Any, int]:
        objects = self._objects[number]
        match operation:
            case "get", path:
                return objects.get(path), number
            case "list", prefix:
                inside = sorted(path for path in objects if path.startswith(f"{prefix}/"))
                return tuple((path, hashlib.sha256(objects[path]).hexdigest()) for path in inside), number
            case "put_if_absent", path, _ if path in objects and not (self._overwrites and path.startswith(self._overwrites)):
                return False, number
            case (("put" | "put_if_absent"), path, content):
                return True, self._intern({**objects, path: content})
            case "delete", path:
                return None, self._intern({at: content for at, content in objects.items() if at != path})
            case _:
                raise AssertionError(operation)

    def _intern(self, objects: dict[str, bytes]) -> int:
        key = frozenset(objects.items())
        number = self._numbers.setdefault(key, len(self._objects))
        if number == len(self._objects):
            self._objects.append(objects)
        return number
