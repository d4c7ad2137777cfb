"""Files of a local store: whole or not there, and still there after a power loss.

A file is made beside its final name, forced to the disk, and then takes that name in one step; the folder is forced to the disk too.
What a killed process leaves behind has a name that no listing shows (obstore skips `#` and digits, DuckDB and pyarrow a leading dot).
"""

import fcntl
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

PART_PREFIX = ".claude-batch#"
STALE_AFTER_S = 86_400.0
"""A file that was being made so long ago has nobody who makes it."""
COPY_CHUNK_BYTES = 1 << 20
FOLDER_TRIES = 5


def write_file(target: Path, content: bytes | Path, *, replace: bool) -> bool:
    """Write a file with all or nothing of the content; it survives a power loss once this returns.

    Args:
        target: Its folders are made where they are missing.
        content: What to write, or the file to copy; one that was made beside its place (`part_beside`) is moved.
        replace: Whether to take the place of a file that is there.

    Returns:
        False where there is a file already and `replace` is not set.

    Raises:
        OSError: The operating system's; what was there is as it was, unless only the last step failed, to force the folder to the disk.
    """
    if isinstance(content, Path) and content.name.startswith(PART_PREFIX) and content.parent == target.parent:
        return _finish(content, target, replace=replace)
    part = target.with_name(f"{PART_PREFIX}{uuid.uuid4().int}")
    try:
        with _create(part) as file:
            if isinstance(content, Path):
                with content.open("rb") as origin:
                    shutil.copyfileobj(origin, file, COPY_CHUNK_BYTES)
            else:
                file.write(content)
        return _finish(part, target, replace=replace)
    finally:
        with suppress(OSError):
            part.unlink()


def part_beside(target: Path) -> Path:
    """Return a name for a file that is being made beside its place, in a folder that is there."""
    _make_folder(target.parent)
    return target.with_name(f"{PART_PREFIX}{uuid.uuid4().int}")


def forget_pages(file: IO[bytes], end: int = 0) -> None:
    """Leave nothing of a file in the system's page cache, but for what is not on the disk yet; as good as never written or read.

    Args:
        file: An open file.
        end: Only of its first bytes; 0 for all.
    """
    advise = getattr(os, "posix_fadvise", None)
    if advise is not None:
        # A file system may not know it, and macOS does not have it: then the pages stay, as they do anyway.
        with suppress(OSError):
            advise(file.fileno(), 0, end, os.POSIX_FADV_DONTNEED)


def remove_stale_parts(folder: Path) -> None:
    """Remove what processes that were killed a day ago or earlier left half made."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PART_PREFIX) and time.time() - entry.stat().st_mtime > STALE_AFTER_S:
                os.unlink(entry.path)


def _finish(part: Path, target: Path, *, replace: bool) -> bool:
    with part.open("rb") as file:
        _force(file.fileno())
    written = _take_name(part, target, replace=replace)
    # Also of a file that somebody else put there: whoever lost acts on it.
    _force_folder(target.parent)
    return written


def _create(part: Path) -> BinaryIO:
    """Open a new file, in a folder that others may take away while it is empty: who looks at a root leaves nothing behind."""
    for _ in range(FOLDER_TRIES - 1):
        with suppress(FileNotFoundError):
            _make_folder(part.parent)
            return part.open("xb")
    _make_folder(part.parent)
    return part.open("xb")


def _take_name(part: Path, target: Path, *, replace: bool) -> bool:
    if replace:
        part.replace(target)
        return True
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    return True


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _force_folder(folder.parent)


def _force_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _force(descriptor)
    finally:
        os.close(descriptor)


def _force(descriptor: int) -> None:
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is None:
        os.fsync(descriptor)
    else:
        # macOS: fsync leaves the data in the drive's own cache.
        fcntl.fcntl(descriptor, full_sync)
