"""A folder with a source in which `claude-batch` is typed: by programs, and by a person at a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.embedded import stack_folder, stop_stack
from claude_batch_dagster.embedded.folder import Folder
from claude_batch_dagster.storage.plans import read_done, read_entries
from claude_batch_dagster.storage.store import Store
from tests.prefork import popen

PROGRAM = Path(sys.executable).with_name("claude-batch")
ROWS = 12


class Shell:
    """A folder with a source, in which `claude-batch` is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = str(folder / ".claude_batch" / "simulated")
        self.environ = dict(os.environ)
        self.err = ""
        pq.write_table(
            pa.table({"id": list(range(ROWS)), "text": [f"Review {n}: it works well and is cheap." for n in range(ROWS - 1)] + [" "]}),
            folder / "in.parquet",
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return popen(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def type(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err + out
        self.err = err
        return out

    def type_failing(self, *arguments: str, code: int = 1) -> str:
        """Return what standard error says."""
        self.type(*arguments, code=code)
        return self.err

    def run_arguments(self, *more: str) -> tuple[str, ...]:
        return ("run", *self.job_arguments(*more))

    def job_arguments(self, *more: str) -> tuple[str, ...]:
        return ("--source", "in.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", *more)

    def batches(self) -> int:
        store = Store(self.root)
        return sum(done.batches for entry in read_entries(store) if (done := read_done(store, entry.number)))

    def let_batches_go(self) -> None:
        """Let the batches of `held_simulator` end."""
        request = urllib.request.Request(f"{self.environ['ANTHROPIC_BASE_URL']}/simulator/faults", method="DELETE")
        with urllib.request.urlopen(request, timeout=10) as reply:
            reply.read()

    def wait_for_batch(self) -> None:
        deadline_s = time.monotonic() + 60
        while not any("batch" in path.read_text() for path in Path(self.root).glob("submissions/*/*/1.json")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def wait_until_nothing_runs(self, timeout_s: float = 60) -> None:
        record = Folder(stack_folder(self.root)).read()
        if record is None:
            return
        deadline_s = time.monotonic() + timeout_s
        while any(one.alive for one in (record.supervisor, *record.children.values()) if one is not None):
            assert time.monotonic() < deadline_s, "a process of the stack is left"
            time.sleep(0.1)


class Terminal:
    """A process with a controlling terminal of its own."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(shell.folder)
                os.execve(PROGRAM, [str(PROGRAM), *arguments], shell.environ)
            finally:
                os._exit(127)
        self.text = ""
        self._code: int | None = None

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Read until the terminal has shown a text."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < deadline_s, f"{text!r} was not shown:\n{self.text}"
            assert self._read(), f"it ended without {text!r}:\n{self.text}"

    def type(self, keys: str) -> None:
        """Press keys; \\x03 is Ctrl-C."""
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """Close the terminal, as its window does."""
        os.close(self._master)

    def end(self, timeout_s: float = 60) -> int:
        """Return the exit code; what the process shows until then is read."""
        deadline_s = time.monotonic() + timeout_s
        while self._code is None:
            assert time.monotonic() < deadline_s, f"it did not end:\n{self.text}"
            with suppress(OSError):
                self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        with suppress(OSError):
            while self._read(0.05):
                pass
        return self._code

    def kill(self) -> None:
        """End the process whatever it does."""
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self, timeout_s: float = 1.0) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout_s)
        if not ready:
            return timeout_s >= 1.0
        try:
            read = os.read(self._master, 65_536)
        except OSError:
            return False
        self.text += read.decode(errors="replace")
        return bool(read)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    found = Shell(tmp_path)
    yield found
    stop_stack(found.root)


@pytest.fixture
def slow_simulator(shell: Shell) -> Iterator[None]:
    """A simulator of the user's own, whose batches take ten minutes."""
    yield from run_simulator(shell, "--seconds", "600")


@pytest.fixture
def held_simulator(shell: Shell) -> Iterator[None]:
    """A simulator of the user's own, whose batches end when the test lets them go."""
    yield from run_simulator(shell, "--seconds", "0.3", "--fault", "hold")


def run_simulator(shell: Shell, *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", "claude_batch_dagster.simulator", "--port", "0", "--books", str(shell.folder / "books")]
    process = popen([*command, *arguments, "--exit-with-parent"], env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    shell.environ |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any", "CLAUDE_BATCH_POLL_SECONDS": "0.5"}
    yield
    process.communicate(timeout=20)
