import os
import signal
import subprocess
import sys

import pytest

from claude_batch_dagster.fault_points import VARIABLE, reach

PASSES = """
from claude_batch_dagster.fault_points import reach
for i in range(3):
    print(i, flush=True)
    reach("put:log.before")
    reach("put:log.after")
print("end", flush=True)
"""


def run(traps: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PASSES], env={**os.environ, VARIABLE: traps}, capture_output=True, text=True, timeout=30, check=False
    )


def test_without_the_variable_a_point_does_nothing() -> None:
    assert VARIABLE not in os.environ
    reach("put:log.after")


@pytest.mark.parametrize(("traps", "lines"), [("put:log.after=kill", ["0"]), ("put:other.before=kill, put:log.before=kill@2", ["0", "1"])])
def test_a_process_is_killed_at_the_pass_that_is_named(traps: str, lines: list[str]) -> None:
    ended = run(traps)
    assert (ended.returncode, ended.stdout.split()) == (-signal.SIGKILL, lines)


def test_a_process_is_suspended_where_it_is_told_and_goes_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PASSES], env={**os.environ, VARIABLE: "put:log.before=stop@3"}, stdout=subprocess.PIPE, text=True
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed.split()) == (0, ["0", "1", "2", "end"])


@pytest.mark.parametrize("traps", ["put:log.after", "put:log.after=crash", "a=kill,b", "a=kill@x", "a=kill@0"])
def test_a_trap_that_cannot_be_read_is_refused(traps: str) -> None:
    ended = run(traps)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Nothing was started. Write NAME=kill[@N]" in ended.stderr
