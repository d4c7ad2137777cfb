"""`demo`, `dev`, `worker` and `simulator` as processes: what they start is gone when they end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest

from claude_batch_dagster.cli.interruption import SAME_PRESS_S
from claude_batch_dagster.embedded import find_stack, stack_folder
from claude_batch_dagster.embedded.folder import Folder
from tests.cli_shell import Terminal

PROGRAM = Path(sys.executable).with_name("claude-batch")


def test_demo_answers_all_reviews_and_leaves_nothing_running(tmp_path):
    ended = subprocess.run(
        [PROGRAM, "demo"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "SIMULATED" in ended.stderr
    for part in ("claude-batch dev", "make dev", "pd.read_parquet", "ANTHROPIC_API_KEY"):
        assert part in ended.stdout
    root = tmp_path / ".claude_batch" / "simulated"
    assert ds.dataset(root / "output" / "review_labels", partitioning="hive", exclude_invalid_files=True).count_rows() == 300
    assert find_stack(str(root)) is None


def test_dev_serves_the_ui_until_it_is_told_to_end(tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    process = subprocess.Popen(
        [PROGRAM, "dev", "--port", str(port)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Dagster UI" in line:
            break
    assert f"http://127.0.0.1:{port}" in lines[-1]
    assert "SIMULATED" in lines[-1]
    record = Folder(stack_folder(str(tmp_path / ".claude_batch" / "simulated"))).read()
    assert record is not None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not any(one.alive for one in (record.supervisor, *record.children.values()))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("how", ["closed", "killed", "ctrl_c_twice"])
def test_dev_leaves_nothing_running_however_it_ends(shell, how):
    terminal = Terminal(shell, "dev")
    try:
        terminal.wait_for("Dagster UI  http", 120)
        record = Folder(stack_folder(shell.root)).read()
        assert record is not None
        started = psutil.Process(terminal.pid).children(recursive=True)
        # The supervisor and its children have a session of their own; Dagster has another one.
        assert len(started) > 3
        match how:
            case "closed":
                terminal.close()
            case "killed":
                os.kill(terminal.pid, signal.SIGKILL)
            case _:
                terminal.type("\x03")
                time.sleep(SAME_PRESS_S + 0.2)
                terminal.type("\x03")
        code = terminal.end(90)
        assert code == {"closed": 0, "killed": -signal.SIGKILL, "ctrl_c_twice": 130}[how]
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left
        shell.wait_until_nothing_runs()
    finally:
        terminal.kill()


@pytest.mark.usefixtures("slow_simulator")
def test_dev_stopped_and_started_goes_on_with_the_run_that_was_out(shell):
    shell.type(*shell.run_arguments("--detach"))
    shell.wait_for_batch()
    shell.type("stop")
    for _ in range(2):
        terminal = Terminal(shell, "dev")
        try:
            terminal.wait_for("Dagster UI  http", 120)
            assert "in progress" in shell.type("status")
            terminal.type("\x03")
            assert terminal.end(90) == 0
            assert "Not over yet: r1" in terminal.text
        finally:
            terminal.kill()
        shell.wait_until_nothing_runs()
    assert "is canceled: 1 batch" in shell.type("cancel", "r1")


def test_simulator_becomes_the_simulator():
    process = subprocess.Popen(
        [PROGRAM, "simulator", "--port", "0", "--exit-with-parent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("simulator ready on http://127.0.0.1:")
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_worker_without_a_key_ends_with_a_reason():
    ended = subprocess.run(
        [PROGRAM, "worker"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TEMPORAL_ADDRESS": "127.0.0.1:9"},
    )
    assert ended.returncode == 1
    assert "ANTHROPIC_API_KEY" in ended.stderr
