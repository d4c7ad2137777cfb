"""`claude-batch` as a process: run, detach, interrupt, cancel, and again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.embedded import find_stack, stack_folder, stop_stack
from claude_batch_dagster.embedded.folder import Folder
from claude_batch_dagster.storage.plans import read_done, read_entries
from claude_batch_dagster.storage.store import Store

PROGRAM = Path(sys.executable).with_name("claude-batch")
ROWS = 12


class Shell:
    """A folder with a source, in which `claude-batch` is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder / ".claude_batch" / "simulated")
        self.environ = dict(os.environ)
        pq.write_table(
            pa.table({"id": list(range(ROWS)), "text": [f"Review {n}: it works well and is cheap." for n in range(ROWS - 1)] + [" "]}),
            folder / "in.parquet",
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def type(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err + out
        self.err = err
        return out

    def run_arguments(self, *more: str) -> tuple[str, ...]:
        return ("run", "--source", "in.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", *more)

    def batches(self) -> int:
        store = Store(self.root)
        return sum(done.batches for entry in read_entries(store) if (done := read_done(store, entry.number)))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = Shell(tmp_path)
    yield found
    stop_stack(found.root)


@pytest.fixture
def slow_simulator(shell: Shell) -> Iterator[None]:
    """A simulator of the user's own, whose batches do not end by themselves."""
    command = [
        sys.executable,
        "-m",
        "claude_batch_dagster.simulator",
        "--port",
        "0",
        "--books",
        str(shell.folder / "books"),
        "--seconds",
        "600",
        "--exit-with-parent",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[-1]
    shell.environ |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any", "CLAUDE_BATCH_POLL_SECONDS": "0.5"}
    yield
    process.communicate(timeout=20)


def wait_for_batch(shell: Shell) -> None:
    deadline_s = time.monotonic() + 60
    while not any("batch" in path.read_text() for path in Path(shell.root).glob("submissions/*/*/1.json")):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_run_writes_every_row_and_says_so_to_programs(shell):
    out = shell.type(*shell.run_arguments("--simulate", "--json"))
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    assert (found["run"], found["exit_code"], found["error"], found["batches"]) == ("r1", 0, None, 1)
    assert found["rows"]["total"] == ROWS
    assert (found["rows"]["succeeded"], found["rows"]["skipped"]) == (ROWS - 1, 1)
    assert found["requests"] == {"asked": ROWS - 1, "already_answered": 0, "in_flight": 0}
    assert found["output"] == str(shell.folder / "out")
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == ROWS
    assert "SIMULATED" in shell.err
    assert "writing the output" in shell.err
    assert find_stack(shell.root) is None

    again = json.loads(shell.type(*shell.run_arguments("--simulate", "--json")))
    assert (again["run"], again["requests"]["asked"], again["cost_usd"]) == (None, 0, 0)
    assert "Temporal" not in shell.err


def test_ctrl_c_detaches_and_the_same_command_again_publishes(shell):
    process = shell.start(*shell.run_arguments("--simulate"))
    wait_for_batch(shell)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Batch run r1 goes on in the background" in err
    assert "claude-batch cancel r1 --simulate" in err
    assert "r1 " in shell.type("status")
    shell.type(*shell.run_arguments("--simulate"))
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == ROWS
    assert shell.batches() == 1


def test_killed_client_loses_nothing_and_nothing_is_asked_twice(shell):
    process = shell.start(*shell.run_arguments("--simulate"))
    wait_for_batch(shell)
    process.kill()
    process.communicate()
    found = json.loads(shell.type(*shell.run_arguments("--simulate", "--json")))
    assert found["rows"]["succeeded"] == ROWS - 1
    assert shell.batches() == 1


def test_detached_run_ends_by_itself_and_its_stack_with_it(shell):
    out = shell.type(*shell.run_arguments("--simulate", "--detach"))
    assert "Batch run r1 goes on in the background" in out
    record = Folder(stack_folder(shell.root)).read()
    assert record is not None
    assert record.running
    deadline_s = time.monotonic() + 60
    while record.supervisor is not None and record.supervisor.alive:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.outcome == "finished"
    assert not (shell.folder / "out" / "part-0.parquet").exists()
    assert json.loads(shell.type(*shell.run_arguments("--simulate", "--json")))["requests"]["asked"] == 0


@pytest.mark.usefixtures("slow_simulator")
def test_cancel_settles_a_run_and_status_and_stop_tell_of_it(shell):
    shell.type(*shell.run_arguments("--detach"))
    wait_for_batch(shell)
    assert "1 submitted, 1 in progress" in shell.type("status", "r1")
    assert "is canceled: 1 batch" in shell.type("cancel", "r1")
    assert "canceled" in shell.type("status")
    assert "had ended before (canceled)" in shell.type("cancel", "r1")


@pytest.mark.usefixtures("slow_simulator")
def test_run_whose_temporal_database_is_lost_can_be_canceled(shell):
    shell.type(*shell.run_arguments("--detach"))
    wait_for_batch(shell)
    assert "is ended" in shell.type("stop")
    for file in stack_folder(shell.root).glob("temporal.db*"):
        file.unlink()
    assert "open, no worker answers" in shell.type("status")
    assert "1 batch" in shell.type("cancel", "r1")
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.batches == 1
    assert "No embedded stack runs" in shell.type("stop")


def test_worst_case_over_the_cap_is_refused_before_anything_starts(shell):
    found = json.loads(shell.type(*shell.run_arguments("--simulate", "--json", "--max-cost-usd", "0.000001"), code=1))
    assert found["error"]["type"] == "CostError"
    assert "Temporal" not in shell.err
    assert not (Path(shell.root) / "log").exists()
