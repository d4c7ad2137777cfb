"""`recover`, `doctor --audit` and what `status` warns of, from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_batch_dagster.core.records import StrayRecord
from claude_batch_dagster.core.recovery_contract import AUDIT_WORKFLOW_TYPE, RECOVER_WORKFLOW_TYPE
from claude_batch_dagster.storage.plans import write_stray
from claude_batch_dagster.storage.store import Store
from tests.fault.judge import ROWS, CommandLine, assert_whole, last_object
from tests.stack import Bench, RunningSimulator

JOB = ("--source", "source.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", "--json")


@pytest.fixture
def command(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> CommandLine:
    """A command line whose run is over: every row is answered."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run().returncode == 0
    return command


def lose_root(command: CommandLine) -> None:
    shutil.rmtree(command.bench.store.uri)


def test_audit_before_and_after_a_recovery(command: CommandLine) -> None:
    """Accounted for; then lost, which it says with the remedy; then recovered, in part and whole."""
    healthy = command.call("doctor", "--audit", "--json")
    assert (healthy.returncode, last_object(healthy)["audit"]["recorded"]) == (0, 1)
    lose_root(command)
    lost = command.call("doctor", "--audit")
    assert lost.returncode == 1
    assert "claude-batch recover" in lost.stderr

    assert command.call("recover", *JOB, "--limit", "10").returncode == 0
    partly = command.call("doctor", "--audit")
    assert partly.returncode == 1
    assert f"10 of {ROWS} answers stored" in partly.stdout
    assert "Something is paid for and not accounted for." in partly.stdout

    assert command.call("recover", *JOB).returncode == 0
    whole = command.call("doctor", "--audit", "--json")
    assert (whole.returncode, last_object(whole)["audit"]["recovered"]) == (0, 1)
    command.bench.record(RECOVER_WORKFLOW_TYPE, "recovered")
    command.bench.record(AUDIT_WORKFLOW_TYPE, "audited")
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command)


def test_interrupted_while_it_waits_and_typed_again(command: CommandLine) -> None:
    """What was harvested is kept; nothing goes on behind its back."""
    command.write_source(ROWS + 5)
    command.simulator.switch_on("hold", 2)
    assert command.run("--detach").returncode == 0
    deadline_s = time.monotonic() + 60
    while len(command.simulator.batches()) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    lose_root(command)
    arguments = [sys.executable, "-m", "claude_batch_dagster.cli", "recover", *JOB]
    with subprocess.Popen(
        arguments, cwd=command.folder, env={**os.environ, **command.environ()}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "in progress" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "What was harvested is kept" in err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 130
    command.bench.record(RECOVER_WORKFLOW_TYPE, "recovery_canceled")
    command.simulator.clear()
    found = last_object(command.call("recover", *JOB))
    assert (found["batches"]["stored_before"], found["batches"]["harvested"]) == (1, 1)
    assert last_object(command.run())["requests"]["asked"] == 0
    assert_whole(command, ROWS + 5)


def test_no_worker_is_said(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """A recovery waits for a worker, and says how to start one."""
    command = CommandLine(bench=bench, simulator=start_simulator(), folder=tmp_path / "work")
    command.write_source()
    with subprocess.Popen(
        [sys.executable, "-m", "claude_batch_dagster.cli", "recover", *JOB],
        cwd=command.folder,
        env={**os.environ, **command.environ()},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "No worker polls" in line)
        assert "claude-batch worker" in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_status_tells_of_a_stray(command: CommandLine) -> None:
    """It is paid for, and nothing else would mention it."""
    store = Store(str(Path(command.bench.store.uri) / "simulated"))
    assert "came after" not in command.call("status").stdout
    write_stray(store, StrayRecord(batch_id="msgbatch_late", run_id="r", round=1, shard=0, found_at="2026-11-23T00:00:00+00:00"))
    told = command.call("status").stdout
    assert "A batch came after its shard was given up, and is paid for (msgbatch_late)" in told
    assert "claude-batch recover" in told


def test_a_partition_that_cannot_be_read_is_left_out_and_named(command: CommandLine) -> None:
    """The others' answers are looked for all the same."""
    for day in ("1", "2"):
        (command.folder / "days" / f"day={day}").mkdir(parents=True)
    shutil.copy(command.folder / "source.parquet", command.folder / "days" / "day=1" / "part-0.parquet")
    (command.folder / "days" / "day=2" / "part-0.parquet").write_bytes(b"no Parquet")
    lose_root(command)
    arguments = ["--source", "days", *JOB[2:]]
    found = last_object(command.call("recover", *arguments))
    assert list(found["left_out"]) == ["2"]
    assert (found["answers"], found["requests"]["asked"]) == ({"succeeded": ROWS}, 0)


def test_a_refused_key_ends_it_and_is_told(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """Nothing is waited for that does not come by itself; the audit says the same."""
    simulator = start_simulator()
    bench.start_worker(simulator, key="wrong")
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    for arguments, began in ((("recover", *JOB), "The recovery ended early: "), (("doctor", "--audit"), "The audit ended early: ")):
        ended = command.call(*arguments)
        assert ended.returncode == 1
        assert began in ended.stderr
        assert "refuses this key" in ended.stderr
