"""`claude-batch` as a process: run, detach, interrupt, cancel, and again."""

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.embedded import find_stack, stack_folder
from claude_batch_dagster.embedded.folder import Folder
from claude_batch_dagster.storage.plans import read_done
from claude_batch_dagster.storage.store import Store
from tests.cli_shell import ROWS


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


@pytest.mark.usefixtures("held_simulator")
def test_ctrl_c_detaches_and_the_same_command_again_publishes(shell):
    process = shell.start(*shell.run_arguments())
    shell.wait_for_batch()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Batch run r1 goes on in the background" in err
    assert "claude-batch cancel r1 --simulate" in err
    assert "r1 " in shell.type("status")
    shell.let_batches_go()
    shell.type(*shell.run_arguments())
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == ROWS
    assert shell.batches() == 1


@pytest.mark.usefixtures("held_simulator")
def test_killed_client_loses_nothing_and_nothing_is_asked_twice(shell):
    process = shell.start(*shell.run_arguments())
    shell.wait_for_batch()
    process.kill()
    process.communicate()
    shell.let_batches_go()
    found = json.loads(shell.type(*shell.run_arguments("--json")))
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
    shell.wait_for_batch()
    assert "1 submitted, 1 in progress" in shell.type("status", "r1")
    assert "is canceled: 1 batch" in shell.type("cancel", "r1")
    assert "canceled" in shell.type("status")
    assert "had ended before (canceled)" in shell.type("cancel", "r1")


@pytest.mark.usefixtures("slow_simulator")
def test_run_whose_temporal_database_is_lost_can_be_canceled(shell):
    shell.type(*shell.run_arguments("--detach"))
    shell.wait_for_batch()
    assert "is ended" in shell.type("stop")
    for file in stack_folder(shell.root).glob("temporal.db*"):
        file.unlink()
    assert "open, no worker answers" in shell.type("status")
    assert "1 batch" in shell.type("cancel", "r1")
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.batches == 1
    assert "No embedded stack runs" in shell.type("stop")


@pytest.mark.usefixtures("held_simulator")
def test_run_whose_output_cannot_be_written_tells_programs_what_was_paid(shell):
    process = shell.start(*shell.run_arguments("--json"))
    shell.wait_for_batch()
    (shell.folder / "out").write_text("in the way")
    shell.let_batches_go()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    found = json.loads(out)
    assert (found["error"]["type"], found["run"], found["batches"]) == ("OutputError", "r1", 1)
    assert found["requests"] == {"asked": ROWS - 1, "already_answered": 0, "in_flight": 0}
    assert found["rows"]["total"] == 0
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.cost_nano_usd
    assert found["cost_usd"] == done.cost_nano_usd / 1e9
    assert found["tokens"]["output"] == sum(line.output_tokens for line in done.usage) > 0


def test_worst_case_over_the_cap_is_refused_before_anything_starts(shell):
    found = json.loads(shell.type(*shell.run_arguments("--simulate", "--json", "--max-cost-usd", "0.000001"), code=1))
    assert found["error"]["type"] == "CostError"
    assert "Temporal" not in shell.err
    assert not (Path(shell.root) / "log").exists()
