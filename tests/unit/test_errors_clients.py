"""Errors of storage, verbs, embedded stack and command line that no other test provokes, each once."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.cli import local
from claude_batch_dagster.core.errors import OutputError, RootError, TemporalUnavailableError, UsageError
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.embedded import client
from claude_batch_dagster.embedded.folder import Folder, StackRecord, State
from claude_batch_dagster.storage import probe
from claude_batch_dagster.storage.plans import pin_root
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.run import cancel_run
from claude_batch_dagster.verbs.show import show_row


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def test_a_root_that_forgets_its_record_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "get", lambda *_: None)
    with pytest.raises(
        RootError, match=r"root\.json was written and cannot be read back\. Nothing was sent\. Check the root's permissions"
    ):
        pin_root(store, RootRecord(root_id="1", endpoint="simulator", temporal_namespace="default"))


def test_a_root_that_cannot_be_read_is_found_by_the_probe(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "get", lambda *_: None)
    with pytest.raises(RootError, match=r"was written and cannot be read back\. Check the permissions to read\."):
        probe.write_token(store)


def test_a_run_that_is_not_there_cannot_be_canceled(store: Store) -> None:
    with pytest.raises(
        UsageError, match=r"There is no batch run r7 in the root .*\. Nothing was canceled\. `claude-batch status` lists them"
    ):
        cancel_run(store.uri, "r7", Connection(address="127.0.0.1:9"))


def test_an_output_that_was_begun_and_not_written_is_told(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "_claude_batch.json").write_text('{"format":1,"source":"s","endpoint":"simulator","partition_column":null}')
    with pytest.raises(OutputError, match=r"holds no rows yet: it was begun and not written\. Type the run command again\."):
        show_row(str(output), "1", str(tmp_path / "root"))


def test_a_stack_that_cannot_start_quotes_why(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "embedded")
    folder.create()
    folder.write(StackRecord(state=State.FAILED, error="its temporal ended with exit code 1: no space left"))
    with pytest.raises(
        TemporalUnavailableError, match=r"cannot start: its temporal ended .*no space left\. Nothing was sent\. Look into .*\*\.log"
    ):
        client._await_ready(folder, str(tmp_path))


def test_a_port_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on port {port} of 127\.0\.0\.1: .*\. Nothing was started\. Choose another"):
            local._check_port(port)


def test_no_free_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(socket.socket):
        def bind(self, _: Any) -> None:
            raise OSError(98, os.strerror(98))

    monkeypatch.setattr(local.socket, "socket", Full)
    with pytest.raises(UsageError, match=r"No port of 127\.0\.0\.1 is free, 3000 included\. Nothing was started\. End another program"):
        local._free_port(3000)


def test_a_missing_ui_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from claude_batch_dagster.cli.app import run_command_line

    monkeypatch.setattr(local.shutil, "which", lambda *_, **__: None)
    assert run_command_line(["dev"]) == 2
    assert (
        "The Dagster UI is not installed. Nothing was started. Run `pip install 'claude-batch-dagster[local]'`." in capsys.readouterr().err
    )
