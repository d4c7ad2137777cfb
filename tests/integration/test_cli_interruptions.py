"""Ctrl-C at a real terminal, a closed terminal, SIGTERM, a killed client: nothing is lost, nothing is left running."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.cli.interruption import SAME_PRESS_S
from claude_batch_dagster.storage.plans import read_done
from claude_batch_dagster.storage.store import Store
from tests.cli_shell import ROWS, Shell, Terminal

CTRL_C = "\x03"


@pytest.fixture
def open_terminal(shell: Shell) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(shell, *arguments))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.kill()


@pytest.mark.usefixtures("held_simulator")
@pytest.mark.parametrize("answer", ["\n", "d\n"])
def test_ctrl_c_at_a_terminal_asks_and_enter_detaches(shell, open_terminal, answer):
    terminal = open_terminal(*shell.run_arguments())
    shell.wait_for_batch()
    terminal.type(CTRL_C)
    terminal.wait_for("Detach or cancel?")
    terminal.type(answer)
    assert terminal.end() == 130
    for part in (
        "Batch run r1 is out",
        "Detached. Batch run r1 goes on in the background",
        "claude-batch cancel r1",
        "stay until it has ended",
    ):
        assert part in terminal.text
    shell.let_batches_go()
    shell.wait_until_nothing_runs()
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.outcome == "finished"
    assert json.loads(shell.type(*shell.run_arguments("--json")))["requests"]["asked"] == 0


@pytest.mark.usefixtures("slow_simulator")
def test_ctrl_c_and_c_cancels_and_shows_how_far_that_is(shell, open_terminal):
    terminal = open_terminal(*shell.run_arguments())
    shell.wait_for_batch()
    terminal.type(CTRL_C)
    terminal.wait_for("Detach or cancel?")
    terminal.type("x\nc\n")
    assert terminal.end() == 130
    assert "of 1 batch ended" in terminal.text
    assert "Batch run r1 is canceled: 1 batch" in terminal.text
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.outcome == "canceled"
    assert not (shell.folder / "out" / "part-0.parquet").exists()
    shell.wait_until_nothing_runs()


@pytest.mark.usefixtures("slow_simulator")
def test_second_ctrl_c_leaves_at_once_and_the_run_goes_on(shell, open_terminal):
    terminal = open_terminal(*shell.run_arguments("--json"))
    shell.wait_for_batch()
    terminal.type(CTRL_C)
    terminal.wait_for("Detach or cancel?")
    time.sleep(SAME_PRESS_S + 0.1)
    began_s = time.monotonic()
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert time.monotonic() - began_s < 2.0
    assert "Left at once. Batch run r1 loses nothing" in terminal.text
    assert json.loads(terminal.text.splitlines()[-1])["run"] == "r1"
    time.sleep(1.0)
    assert "1 submitted, 1 in progress" in shell.type("status", "r1")
    assert "is canceled: 1 batch" in shell.type("cancel", "r1")
    shell.wait_until_nothing_runs()


@pytest.mark.usefixtures("held_simulator")
def test_ctrl_c_of_a_command_that_waits_for_anothers_run_leaves_it_alone_and_says_whose_it_is(shell, open_terminal):
    shell.type(*shell.run_arguments("--detach"))
    shell.wait_for_batch()
    terminal = open_terminal(*shell.run_arguments())
    terminal.wait_for("Waiting for r1, which already asks for some of these rows.")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    for part in ("This command sent nothing: it waited for batch run r1", "goes on and is not canceled", "claude-batch status r1"):
        assert part in terminal.text
    assert "Detach or cancel?" not in terminal.text
    shell.let_batches_go()
    shell.wait_until_nothing_runs()
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.outcome == "finished"


def test_ctrl_c_before_anything_was_sent_says_so_and_ends_the_stack(shell, open_terminal):
    terminal = open_terminal(*shell.run_arguments("--simulate"))
    terminal.wait_for("Starting a local Temporal server and worker")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "Interrupted. Nothing was sent." in terminal.text
    assert "Detach or cancel?" not in terminal.text
    assert not Store(shell.root).list("log")
    shell.wait_until_nothing_runs()


@pytest.mark.usefixtures("held_simulator")
def test_closed_terminal_detaches(shell, open_terminal):
    terminal = open_terminal(*shell.run_arguments())
    shell.wait_for_batch()
    terminal.wait_for("submitted")
    terminal.close()
    assert terminal.end() == 130
    shell.let_batches_go()
    shell.wait_until_nothing_runs()
    done = read_done(Store(shell.root), 1)
    assert done is not None
    assert done.outcome == "finished"


@pytest.mark.usefixtures("held_simulator")
def test_terminal_closed_while_it_asks_detaches(shell, open_terminal):
    terminal = open_terminal(*shell.run_arguments())
    shell.wait_for_batch()
    terminal.type(CTRL_C)
    terminal.wait_for("Detach or cancel?")
    terminal.close()
    assert terminal.end() == 130
    shell.let_batches_go()
    shell.wait_until_nothing_runs()
    assert read_done(Store(shell.root), 1) is not None


@pytest.mark.usefixtures("held_simulator")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_without_a_terminal_detaches(shell, number):
    process = shell.start(*shell.run_arguments())
    shell.wait_for_batch()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Detached. Batch run r1 goes on in the background" in err
    shell.let_batches_go()
    shell.wait_until_nothing_runs()
    shell.type(*shell.run_arguments())
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == ROWS
    assert shell.batches() == 1


@pytest.mark.usefixtures("slow_simulator")
def test_killed_client_leaves_nothing_running_and_its_run_can_be_canceled(shell):
    process = shell.start(*shell.run_arguments())
    shell.wait_for_batch()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    shell.wait_until_nothing_runs(20)
    assert "open, no worker answers" in shell.type("status")
    assert "is canceled: 1 batch" in shell.type("cancel", "r1")


def test_person_who_says_no_sends_nothing(shell, open_terminal):
    shell.environ |= {"ANTHROPIC_API_KEY": "any", "TEMPORAL_ADDRESS": "127.0.0.1:9"}
    terminal = open_terminal(*shell.run_arguments("--model", "claude-unknown-9"))
    terminal.wait_for("Send them?")
    terminal.type("n\n")
    assert terminal.end() == 1
    for part in ("11 requests of 12 rows to claude-unknown-9", "11 new", "expected unknown", "none of 11 requests was sent", "--limit 20"):
        assert part in terminal.text


def test_ctrl_c_at_the_question_sends_nothing(shell, open_terminal):
    shell.environ |= {"ANTHROPIC_API_KEY": "any", "TEMPORAL_ADDRESS": "127.0.0.1:9"}
    terminal = open_terminal(*shell.run_arguments("--model", "claude-unknown-9"))
    terminal.wait_for("Send them?")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "Nothing was sent" in terminal.text
