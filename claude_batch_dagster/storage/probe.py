"""What the doctor's two sides share: a root looked at without using it, the space left, the versions. Leaves nothing behind.

An object store that is not reachable is retried by its client for minutes; whoever looks waits no longer than it was told.
"""

import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.store import Store

T = TypeVar("T")

PRODUCT = "claude-batch-dagster"
PROBE_FOLDER = "doctor"
LOW_SPACE_BYTES = 2_000_000_000
"""Two bodies of a batch, the results of one and room for the answers."""
NO_SPACE_BYTES = 300_000_000
"""One body of a batch does not fit."""


def call_within(timeout_s: float, work: Callable[[], T]) -> T | None:
    """Return what `work` returns, None where it takes longer: then it goes on by itself, and ends with the process at the latest."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failures:
        raise failures[0]
    return results[0] if results else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A small object in a root that others can look for.

    Attributes:
        path: Below the root.
        made: Local folders that it needed, deepest first.
    """

    path: str
    made: tuple[Path, ...] = ()


def write_token(store: Store) -> Token:
    """Write a token; `remove_token` takes it away.

    Raises:
        RootError: Terminal. The root cannot be written or not be read.
        TransientError: The object store does not answer.
    """
    path = f"{PROBE_FOLDER}/{uuid.uuid4().hex}.json"
    folder = store.folder
    wanted = () if folder is None else (folder / PROBE_FOLDER, folder, *folder.parents)
    token = Token(path=path, made=tuple(place for place in wanted if not place.exists()))
    content = msgspec.json.encode({"format": 1})
    if store.put_if_absent(path, content) and store.put_if_absent(path, content):
        raise RootError(
            f"{store.uri} does not keep put-if-absent (If-None-Match): there, two processes could pay for the same requests. Use a store that keeps it."
        )
    if store.get(path) != content:
        raise RootError(f"{store.uri}/{path} was written and cannot be read back. Check the permissions to read.")
    return token


def remove_token(store: Store, token: Token) -> None:
    """Remove a token, and the folders that were made for it.

    Raises:
        RootError: Terminal. The root takes objects and does not let them go.
        TransientError: The object store does not answer.
    """
    store.delete(token.path)
    for place in token.made:
        # Not empty where somebody else began to work meanwhile; who is about to, makes it again (storage/disk.py).
        with suppress(OSError):
            place.rmdir()


def read_versions(*distributions: str) -> dict[str, str]:
    """Return the versions of this process' Python and of distributions, by name."""
    return {"python": platform.python_version()} | {name: _version_of(name) for name in distributions}


def describe_versions(versions: Mapping[str, str]) -> str:
    """Return versions in a line."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def examine_space(name: str, *folders: Path | None) -> tuple[Finding, ...]:
    """Say how much space is left where local files are made: in these folders and the one for temporary files.

    Args:
        name: Of the findings.
        folders: A folder that does not exist yet stands for the nearest one above it; None is skipped.
    """
    places = [_nearest(folder) for folder in (*folders, Path(tempfile.gettempdir())) if folder is not None]
    # One finding a file system: the first folder on it stands for the others.
    first = {place.stat().st_dev: place for place in reversed(places)}
    return tuple(_weigh_space(name, place) for place in reversed(first.values()))


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _weigh_space(name: str, place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    detail = f"{free / 1e9:,.1f} GB free at {place}"
    if free >= LOW_SPACE_BYTES:
        return Finding(name=name, status=Health.OK, detail=detail)
    return Finding(
        name=name,
        status=Health.WARN if free >= NO_SPACE_BYTES else Health.FAIL,
        detail=f"{detail}, {LOW_SPACE_BYTES / 1e9:,.1f} GB should be",
        remedy="Free some space, or choose another place: CLAUDE_BATCH_ROOT for the root, TMPDIR for temporary files.",
    )


def _nearest(folder: Path) -> Path:
    for place in (folder, *folder.parents):
        if place.is_dir():
            return place
    return Path("/")
