"""The worker as a program: how it starts, what it says, how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stack import REPOSITORY, Bench, RunningSimulator, texts

StartSimulator = Callable[..., RunningSimulator]


def test_it_says_where_it_works_and_ends_on_a_signal(bench: Bench, start_simulator: StartSimulator) -> None:
    """One line when ready; exit 0 on SIGTERM; the key is nowhere."""
    worker = bench.start_worker(start_simulator(), key="sk-ant-secret")
    assert f"worker ready on task queue {bench.task_queue} at {bench.address} (endpoint simulator)" in worker.output

    worker.popen.send_signal(signal.SIGTERM)
    assert worker.popen.wait(20) == 0
    assert "sk-ant-secret" not in worker.output


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells which libraries another process holds")
def test_it_carries_a_run_out_without_pandas(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its import would be half a second of every worker's first run, and 50 MB. A request is asked again, so that all paths are taken."""
    # A setting of the interpreter's has it started afresh: the forks of our tests have imported everything.
    worker = bench.start_worker(start_simulator("errored-api=2"), PYTHONHASHSEED="1")
    report = bench.finish(bench.stage(texts(4)))
    assert (report.counts.by_outcome, report.batches) == ({"succeeded": 4}, 2)

    libraries = {Path(line.split()[-1]).parts for line in Path(f"/proc/{worker.popen.pid}/maps").read_text().splitlines()}
    assert any("pyarrow" in parts for parts in libraries)
    assert not any("pandas" in parts for parts in libraries)


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
