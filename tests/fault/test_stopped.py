"""SIGSTOP and SIGCONT: the Dagster step, the worker and the Temporal server sleep for a while, one after another and all at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.fault.clients import kept_temporal, own_bench, wait_until
from tests.fault.judge import answered_twice, sent
from tests.fault.test_overlap_dagster import DAYS, ROWS_A_DAY, assert_published, materialize, write_days
from tests.stack import RunningSimulator

StartSimulator = Callable[..., RunningSimulator]
ASLEEP_S = 6.0


def test_what_slept_goes_on_where_it_was(start_simulator: StartSimulator, tmp_path: Path) -> None:
    """The server sleeps while a batch is out, the step while the run ends without it, then everything at once: one materialization, paid once."""
    simulator = start_simulator("hold")
    with kept_temporal(tmp_path) as temporal, own_bench(temporal.address, tmp_path) as bench:
        worker = bench.start_worker(simulator)
        write_days(tmp_path)
        step = materialize(bench, simulator, tmp_path, "out", DAYS[0], DAYS[0])
        wait_until(lambda: len(simulator.batches()) == 1)

        sleep(temporal.pid, for_s=ASLEEP_S)
        sleep(step.popen.pid, temporal.pid, worker.popen.pid, for_s=1.0)
        os.kill(step.popen.pid, signal.SIGSTOP)
        simulator.clear()
        wait_until((tmp_path / "root" / "simulated" / "done" / "1.json").exists)
        os.kill(step.popen.pid, signal.SIGCONT)

        assert step.popen.wait(120) == 0, step.output
    assert_published(tmp_path / "out", DAYS[0])
    assert sent(simulator) == [ROWS_A_DAY]
    assert answered_twice(simulator) == {}


def sleep(*pids: int, for_s: float) -> None:
    """Suspend processes for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(for_s)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
