"""storage/probe.py: looked at, and left as it was."""

import time
from pathlib import Path

import pytest

from claude_batch_dagster.core.contract import Health
from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage import probe
from claude_batch_dagster.storage.probe import call_within, describe_versions, examine_space, read_versions, remove_token, write_token
from claude_batch_dagster.storage.store import Store


def test_a_new_root_is_left_as_if_nobody_had_looked(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "a" / "root"))
    token = write_token(store)
    assert store.get(token.path) is not None
    remove_token(store, token)
    assert list(tmp_path.iterdir()) == []


def test_a_root_in_use_keeps_what_it_has(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("log/1.json", b"{}")
    first = write_token(store)
    second = write_token(store)
    remove_token(store, first)
    assert store.get(second.path) is not None
    remove_token(store, second)
    assert store.list("") == ["log/1.json"]


@pytest.mark.parametrize("place", ["/proc/nowhere/root", "file-in-place-of-it"])
def test_a_root_that_cannot_be_written_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file-in-place-of-it").write_text("")
    with pytest.raises(RootError, match="cannot be"):
        write_token(Store(str(tmp_path / place)))


def test_work_that_takes_too_long_is_left_alone() -> None:
    assert call_within(5, lambda: 7) == 7
    began_s = time.monotonic()
    assert call_within(0.01, lambda: time.sleep(1)) is None
    assert time.monotonic() - began_s < 0.9
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 // 0)


@pytest.mark.parametrize(("free_bytes", "status"), [(2_000_000_000, Health.OK), (1_999_999_999, Health.WARN), (299_999_999, Health.FAIL)])
def test_low_space_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, status: Health) -> None:
    monkeypatch.setattr(probe.shutil, "disk_usage", lambda place: type("Usage", (), {"free": free_bytes}))
    monkeypatch.setattr(probe.tempfile, "gettempdir", lambda: str(tmp_path))
    (found,) = examine_space("disk", tmp_path / "not" / "there", None)
    assert (found.name, found.status) == ("disk", status)
    assert str(tmp_path) in found.detail
    assert bool(found.remedy) == (status is not Health.OK)


def test_versions_in_a_line() -> None:
    found = read_versions("temporalio", "nonesuch-of-nobody")
    assert found["nonesuch-of-nobody"] == "not installed"
    assert describe_versions(found).startswith("python 3.")
