"""The files of one root's stack: who uses it, which processes it has, where it listens.

lock                  held for moments, by whoever reads and then writes
supervisor.lock       held by the supervisor for its life: one stack a root
stack.json            where the stack stands; its ports are taken again the next time, so that links stay good
clients/{token}.json  one for each attachment
stay                  there while the stack outlives its clients, until no run is open
*.log temporal.db books/
"""

import hashlib
import os
import uuid
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from claude_batch_dagster.embedded.processes import ProcessId, identify
from claude_batch_dagster.storage.store import absolute_uri

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_TIMEOUT_S = 30.0


class State(StrEnum):
    """Where a stack stands; after `ending` whoever comes starts a new one, which waits for the old one's end."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    ENDING = "ending"


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """TCP ports on 127.0.0.1."""

    temporal: int
    temporal_ui: int
    simulator: int


class StackRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`stack.json`.

    Attributes:
        supervisor: Who runs the stack.
        children: By name, as they were last started.
        error: Why the stack failed.
    """

    state: State
    supervisor: ProcessId | None = None
    simulate: bool = False
    task_queue: str = ""
    ports: Ports | None = None
    children: dict[str, ProcessId] = {}
    error: str | None = None
    format: int = 1

    @property
    def running(self) -> bool:
        """Whether a client may attach."""
        return self.state in (State.STARTING, State.READY) and self.supervisor is not None and self.supervisor.alive


def stack_folder(root: str) -> Path:
    """Return where a root's stack keeps its files: in a local root, for a remote one in the user's cache."""
    uri = absolute_uri(root)
    if "://" not in uri:
        return Path(uri) / "embedded"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "claude-batch" / hashlib.sha256(uri.encode()).hexdigest()[:16] / "embedded"


class Folder:
    """The files of one stack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clients = path / "clients"
        self._stay = path / "stay"

    def create(self) -> None:
        """Make the folder."""
        self._clients.mkdir(parents=True, exist_ok=True)

    def lock(self) -> "FileLock":
        """Return the lock under which what is read may be acted upon."""
        from filelock import FileLock

        return FileLock(self.path / "lock", timeout=LOCK_TIMEOUT_S)

    def supervisor_lock(self, timeout_s: float) -> "FileLock":
        """Return the lock that the supervisor holds for its life."""
        from filelock import FileLock

        return FileLock(self.path / "supervisor.lock", timeout=timeout_s)

    def log(self, name: str) -> Path:
        """Return a process's log file."""
        return self.path / f"{name}.log"

    def read(self) -> StackRecord | None:
        """Read `stack.json`, None where there never was a stack or the file is of another version."""
        try:
            return msgspec.json.decode((self.path / "stack.json").read_bytes(), type=StackRecord)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, record: StackRecord) -> None:
        """Write `stack.json` whole."""
        draft = self.path / f".stack.{os.getpid()}"
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(self.path / "stack.json")

    def add_client(self) -> str:
        """Register the calling process; return the token that ends it."""
        me = identify(os.getpid())
        token = uuid.uuid4().hex
        draft = self.path / f".client.{token}"
        draft.write_bytes(msgspec.json.encode(me))
        draft.replace(self._clients / f"{token}.json")
        return token

    def remove_client(self, token: str) -> None:
        """Forget an attachment."""
        (self._clients / f"{token}.json").unlink(missing_ok=True)

    def clients(self) -> int:
        """Count the attachments whose process lives, and forget the others."""
        living = 0
        for path in self._clients.glob("*.json"):
            try:
                client = msgspec.json.decode(path.read_bytes(), type=ProcessId)
            except (FileNotFoundError, msgspec.DecodeError):
                continue
            if client.alive:
                living += 1
            else:
                path.unlink(missing_ok=True)
        return living

    @property
    def stays(self) -> bool:
        """Whether the stack outlives its clients, until no run is open."""
        return self._stay.exists()

    def set_stay(self, stay: bool) -> None:
        """Say whether the stack outlives its clients."""
        if stay:
            self._stay.touch()
        else:
            self._stay.unlink(missing_ok=True)
