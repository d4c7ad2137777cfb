"""storage/disk.py: whole, forced to the disk, and without leftovers."""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.storage import disk
from claude_batch_dagster.storage.disk import PART_PREFIX, remove_stale_parts, write_file
from claude_batch_dagster.storage.store import Store


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, bool]]:
    """What was forced to the disk, in order, and whether the object had its name by then."""
    seen: list[tuple[str, bool]] = []
    real: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        what = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name if what == "folder" else what
        seen.append((name, (tmp_path / "root" / "log" / "1.json").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


@pytest.mark.parametrize("replace", [False, True])
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, forced: list[tuple[str, bool]], replace: bool
) -> None:
    assert write_file(tmp_path / "root" / "log" / "1.json", b"{}", replace=replace)
    assert forced == [(tmp_path.name, False), ("root", False), ("file", False), ("log", True)]


def test_every_way_to_write_an_object_of_a_local_store_forces_it(tmp_path: Path, forced: list[tuple[str, bool]]) -> None:
    store = Store(str(tmp_path / "root"))
    (tmp_path / "file").write_bytes(b"x")
    writes: tuple[Callable[[], object], ...] = (
        lambda: store.put("log/1.json", b"x"),
        lambda: store.put_if_absent("log/2.json", b"x"),
        lambda: store.put_file("log/3.json", tmp_path / "file"),
    )
    for write in writes:
        forced.clear()
        write()
        assert [name for name, _ in forced][-2:] == ["file", "log"]


def test_who_lost_relies_on_what_is_on_the_disk_too(tmp_path: Path, forced: list[tuple[str, bool]]) -> None:
    target = tmp_path / "root" / "log" / "1.json"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"theirs")
    assert not write_file(target, b"ours", replace=False)
    assert forced[-1] == ("log", True)
    assert target.read_bytes() == b"theirs"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"before")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for replace in (True, False):
        with pytest.raises(OSError, match="No space left"):
            write_file(target, b"after", replace=replace)
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_being_made_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    listed: list[list[str]] = []
    for name in ("b.parquet", "a#b"):
        monkeypatch.setattr(disk, "_force", lambda descriptor: listed.append(store.list("")))
        store.put(name, b"x")
        store.delete(name)
    assert listed == [[], ["b.parquet"], [], ["a#b"]]


def test_what_a_killed_process_left_is_removed_after_a_day_and_not_earlier(tmp_path: Path) -> None:
    old, young, other = tmp_path / f"{PART_PREFIX}1", tmp_path / f"{PART_PREFIX}2", tmp_path / "old"
    for file in (old, young, other):
        file.write_bytes(b"x")
    yesterday = time.time() - disk.STALE_AFTER_S - 60
    os.utime(old, (yesterday, yesterday))
    os.utime(other, (yesterday, yesterday))
    store = Store(str(tmp_path))
    assert store.list("") == ["old"]
    store.put_file("new", other)
    assert not old.exists()
    assert young.exists()
    assert store.list("") == ["new", "old"]
    remove_stale_parts(tmp_path / "nowhere")


@pytest.mark.parametrize("before", ["open", "mkdir"])
def test_a_folder_that_is_taken_away_while_it_is_empty_is_made_again(before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor removes the root that it made, just when a run begins to use it."""
    root = tmp_path / "root"
    real = getattr(Path, before)
    taken: list[bool] = []

    def take_away(path: Path, *arguments: Any, **options: Any) -> Any:
        if root in path.parents and not taken:
            taken.append(True)
            for folder in (root / "log", root):
                if folder.exists():
                    folder.rmdir()
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, before, take_away)
    assert write_file(root / "log" / "1.json", b"{}", replace=False)
    assert taken
    assert (root / "log" / "1.json").read_bytes() == b"{}"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(Path("/proc/nowhere/root/1.json"), b"{}", replace=False)
