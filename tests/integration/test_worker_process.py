"""The worker as a program: how it starts, what it says, how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from tests.stack import REPOSITORY, Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def test_it_says_where_it_works_and_ends_on_a_signal(bench: Bench, start_simulator: StartSimulator) -> None:
    """One line when ready; exit 0 on SIGTERM; the key is nowhere."""
    worker = bench.start_worker(start_simulator(), key="sk-ant-secret")
    assert f"worker ready on task queue {bench.task_queue} at {bench.address} (endpoint simulator)" in worker.output

    worker.popen.send_signal(signal.SIGTERM)
    assert worker.popen.wait(20) == 0
    assert "sk-ant-secret" not in worker.output


def test_it_ends_with_its_parent_where_asked(bench: Bench, start_simulator: StartSimulator) -> None:
    """The end of standard input is the parent's end, however the parent died."""
    worker = bench.start_worker(start_simulator(), arguments=("--exit-with-parent",))
    assert worker.popen.stdin is not None
    worker.popen.stdin.close()
    assert worker.popen.wait(20) == 0


def test_the_simulator_needs_no_key(bench: Bench, start_simulator: StartSimulator) -> None:
    """A server that says that it is one takes any."""
    bench.start_worker(start_simulator(), key="")


def test_without_a_key_it_does_not_start() -> None:
    """Exit 1, and the message names both ways out."""
    process = subprocess.run(
        [sys.executable, "-m", "temporal_worker"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert "ANTHROPIC_API_KEY" in process.stderr
    assert "CLAUDE_BATCH_SIMULATE" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_poll_pause_that_is_no_number_is_wrong_usage() -> None:
    """Exit 2."""
    process = subprocess.run(
        [sys.executable, "-m", "temporal_worker"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "CLAUDE_BATCH_POLL_SECONDS": "soon"},
        timeout=60,
        check=False,
    )
    assert process.returncode == 2
    assert "'soon'" in process.stderr
