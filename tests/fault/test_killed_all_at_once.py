"""Everything is killed at once: the next command finds all it needs in the records."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from claude_batch_dagster.embedded import stack_folder
from claude_batch_dagster.embedded.folder import Folder
from tests.cli_shell import ROWS as SHELL_ROWS
from tests.cli_shell import Shell, shell
from tests.fault.clients import assert_answered, kept_temporal, own_bench, start_client, wait_until, write_rows
from tests.fault.judge import CommandLine, answered_twice, last_object, sent
from tests.stack import RunningSimulator

__all__ = ["shell"]

ROWS = 30


def test_client_worker_and_server_killed_at_once(start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> None:
    """Three batches, one of which was out: each is paid for once."""
    simulator = start_simulator("hold=2")
    with kept_temporal(tmp_path) as temporal, own_bench(temporal.address, tmp_path) as bench:
        command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path)
        worker = bench.start_worker(simulator)
        options = ("--max-requests-per-batch", "10", "--max-in-flight-batches", "1")
        client = start_client(command, write_rows(tmp_path, "source.parquet", 0, ROWS), tmp_path / "out", *options)
        wait_until(lambda: len(simulator.batches()) == 2)

        for process in (client, worker):
            process.popen.send_signal(signal.SIGKILL)
        temporal.kill()
        simulator.clear()
        temporal.start()
        bench.start_worker(simulator)
        again = command.run(*options, timeout_s=180)

        assert again.returncode == 0, again.stderr
        assert last_object(again)["rows"]["succeeded"] == ROWS
        assert_answered(tmp_path / "out", 0, ROWS)
        assert sent(simulator) == [10, 10, 10]
        assert answered_twice(simulator) == {}


def test_whole_embedded_stack_killed_with_its_client(
    shell: Shell, start_simulator: Callable[..., RunningSimulator], tmp_path: Path
) -> None:
    """Supervisor, server, worker and client: the same command starts a stack anew and goes on with the batch that is out."""
    simulator = start_simulator("hold")
    shell.environ |= {"ANTHROPIC_BASE_URL": simulator.url, "ANTHROPIC_API_KEY": "any", "CLAUDE_BATCH_POLL_SECONDS": "0.5"}
    client = shell.start(*shell.run_arguments("--json"))
    shell.wait_for_batch()
    record = Folder(stack_folder(shell.root)).read()
    assert record is not None
    assert record.supervisor is not None

    client.kill()
    for process in (record.supervisor, *record.children.values()):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process.pid).kill()
    client.communicate(timeout=30)
    time.sleep(0.2)
    simulator.clear()
    shell.type(*shell.run_arguments("--json"))

    assert sent(simulator) == [SHELL_ROWS - 1]
    assert answered_twice(simulator) == {}
    shell.wait_until_nothing_runs()
