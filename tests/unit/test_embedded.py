"""The embedded stack without its processes: who uses it, whom it is for, what its worker is told."""

import os
import subprocess
import sys

import pytest

from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.embedded import find_stack, server, stack_folder, stop_stack
from claude_batch_dagster.embedded.folder import Folder, Ports, StackRecord, State
from claude_batch_dagster.embedded.processes import identify
from claude_batch_dagster.embedded.supervisor import worker_environment

PORTS = Ports(temporal=1, temporal_ui=2, simulator=3)


@pytest.fixture
def folder(tmp_path):
    found = Folder(stack_folder(str(tmp_path)))
    found.create()
    return found


def test_local_root_holds_its_stack_and_a_remote_one_has_it_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stack_folder("/data/root") != stack_folder("/data/root/simulated")
    assert str(stack_folder("/data/root")) == "/data/root/embedded"
    assert stack_folder("s3://lake/a").is_relative_to(tmp_path)
    assert stack_folder("s3://lake/a") != stack_folder("s3://lake/b")


def test_clients_count_while_their_process_lives(folder):
    token = folder.add_client()
    assert folder.clients() == 1
    code = f"from pathlib import Path; from claude_batch_dagster.embedded.folder import Folder; Folder(Path({str(folder.path)!r})).add_client()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert folder.clients() == 1
    folder.remove_client(token)
    assert folder.clients() == 0


def test_process_of_the_same_pid_is_another_process():
    me = identify(os.getpid())
    assert me is not None
    assert me.alive
    assert not type(me)(pid=me.pid, born="1").alive


def test_stack_of_a_dead_supervisor_is_none(folder, tmp_path):
    dead = type(identify(os.getpid()))(pid=os.getpid(), born="1")  # type: ignore[call-arg, misc]
    folder.write(StackRecord(state=State.READY, supervisor=dead, ports=PORTS))
    assert find_stack(str(tmp_path)) is None
    assert stop_stack(str(tmp_path)) is None


def test_unreadable_record_is_no_record(folder):
    (folder.path / "stack.json").write_text('{"format": 9}')
    assert folder.read() is None


def test_simulated_worker_never_sees_a_key_and_looks_every_second():
    environ = worker_environment({"ANTHROPIC_API_KEY": "sk-ant-real", "TEMPORAL_TLS": "1", "PATH": "/bin"}, PORTS, simulate=True)
    assert environ["ANTHROPIC_API_KEY"] == "simulated"
    assert environ["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:3"
    assert environ["CLAUDE_BATCH_POLL_SECONDS"] == "1"
    assert environ["TEMPORAL_ADDRESS"] == "127.0.0.1:1"
    assert "TEMPORAL_TLS" not in environ
    assert environ["PATH"] == "/bin"


def test_worker_of_real_work_keeps_the_key_and_a_simulated_one_its_own_poll():
    assert worker_environment({"ANTHROPIC_API_KEY": "k"}, PORTS, simulate=False)["ANTHROPIC_API_KEY"] == "k"
    assert worker_environment({"CLAUDE_BATCH_POLL_SECONDS": "0.2"}, PORTS, simulate=True)["CLAUDE_BATCH_POLL_SECONDS"] == "0.2"


def test_missing_temporal_program_is_refused_with_both_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TemporalUnavailableError, match=r"claude-batch-dagster\[local\].*TEMPORAL_ADDRESS"):
        server.find_temporal()
