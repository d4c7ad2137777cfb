"""A local root whose writer is killed at any moment, whose disk is full, or which is read-only."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.disk import PART_PREFIX
from claude_batch_dagster.storage.store import Store

BIG_BYTES = 50_000_000
REPOSITORY = Path(__file__).parents[2]
# Writes a large object again and again, each time of one other byte; says so before the first.
BIG_WRITER = """
import sys
from pathlib import Path
from claude_batch_dagster.storage.store import Store
store, files = Store(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
print("ready", flush=True)
while True:
    for file in files:
        store.put_file("plans/r/big", file)
"""
RECORD_WRITER = """
import sys
from claude_batch_dagster.storage.store import Store
store = Store(sys.argv[1])
getattr(store, sys.argv[2])("log/1.json", b"new" * 1000)
"""


def start(script: str, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=REPOSITORY, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("verb", ["put", "put_if_absent"])
@pytest.mark.parametrize(("point", "written"), [("put:log.before", False), ("put:log.after", True)])
def test_killed_around_a_record_it_is_whole_or_not_there(tmp_path: Path, verb: str, point: str, written: bool) -> None:
    with start(RECORD_WRITER, str(tmp_path), verb, CLAUDE_BATCH_FAULT_POINTS=f"{point}=kill") as writer:
        assert writer.wait(60) == -signal.SIGKILL
    assert Store(str(tmp_path)).get("log/1.json") == (b"new" * 1000 if written else None)


def test_killed_in_the_middle_of_a_large_object_a_reader_sees_it_whole_or_not_at_all(tmp_path: Path) -> None:
    """Fifteen times, at any moment, and a reader looks all the while; what the dead left is in nobody's way."""
    store = Store(str(tmp_path / "root"))
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(file.name.encode() * BIG_BYTES)
    moments = random.Random(7)
    seen: set[bytes] = set()
    for _ in range(15):
        writer = start(BIG_WRITER, store.uri, *map(str, files))
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            end_s = time.monotonic() + moments.uniform(0, 0.4)
            while time.monotonic() < end_s:
                seen.add(_look(store))
        finally:
            writer.kill()
            writer.communicate()
        seen.add(_look(store))
        assert store.list("") in ([], ["plans/r/big"])
    left = [name for name in os.listdir(tmp_path / "root" / "plans" / "r") if name != "big"]
    assert left, "no process was killed in the middle of a put"
    assert all(name.startswith(PART_PREFIX) for name in left)
    assert seen <= {b"", b"a", b"b"}
    store.put_file("plans/r/big", files[0])
    assert _look(store) == b"a"
    for file in (*files, *(tmp_path / "root" / "plans" / "r").iterdir()):
        file.unlink()


def _look(store: Store) -> bytes:
    """Return the byte that the object is made of, none where it is not there."""
    content = store.get("plans/r/big")
    if content is None:
        return b""
    assert len(content) == BIG_BYTES
    assert content.count(content[:1]) == BIG_BYTES
    return content[:1]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of this size."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left; return the file to remove."""
    filler = disk / "filler"
    # Again after a moment: a process that is just ending gives pages back.
    for pause_s in (0.0, 0.3, 0.3):
        time.sleep(pause_s)
        with filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue
    return filler


def test_a_full_disk_refuses_a_write_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    with small_disk(tmp_path / "disk", "4m") as disk:
        store = Store(str(disk / "root"))
        store.put("log/1.json", b"before")
        filler = fill(disk)
        told = r"cannot be written: no space is left there\. What was there before is as it was\. Free some space there\."
        with pytest.raises(RootError, match=rf"log/1\.json {told}"):
            store.put("log/1.json", b"after" * 1_000)
        with pytest.raises(RootError, match=rf"log/2\.json {told}"):
            store.put_if_absent("log/2.json", b"x" * 5_000)
        with pytest.raises(RootError, match=rf"plans/r/big {told}"):
            store.put_file("plans/r/big", tmp_path / "big")
        assert store.get("log/1.json") == b"before"
        assert store.list("") == ["log/1.json"]
        assert [name for _, _, names in os.walk(disk / "root") for name in names] == ["1.json"]

        filler.unlink()
        assert store.put_if_absent("log/2.json", b"x" * 5_000)
        store.put_file("plans/r/big", tmp_path / "big")
        assert store.get("plans/r/big") == b"x" * 3_000_000


def test_a_read_only_root_is_read_and_refuses_a_write(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        store = Store(str(disk / "root"))
        store.put("log/1.json", b"before")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert store.get("log/1.json") == b"before"
        for write in (lambda: store.put("log/1.json", b"x"), lambda: store.put_if_absent("new/2.json", b"x")):
            with pytest.raises(RootError, match=r"cannot be written: the file system is read-only\. .*Make it writable"):
                write()
        with pytest.raises(RootError, match=r"log/1\.json cannot be removed: the file system is read-only"):
            store.delete("log/1.json")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        store.put("log/1.json", b"after")
        assert store.get("log/1.json") == b"after"
