"""Processes by identity, since a pid alone may be somebody else's by now; and the supervisor's children."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT_BYTES = 5_000_000
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A pid with what tells its process from a later one of the same number."""

    pid: int
    born: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _birth(self.pid) == self.born

    def end(self, grace_s: float) -> None:
        """Ask the process to end, kill it after the grace; return when it is gone."""
        for sent, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if not self.alive:
                return
            os.kill(self.pid, sent)
            self.await_end(patience_s)

    def await_end(self, timeout_s: float) -> bool:
        """Wait for the process's end; return whether it came."""
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.03)
        return True


def identify(pid: int) -> ProcessId | None:
    """Return a running process's identity, None where there is none (a zombie is none)."""
    born = _birth(pid)
    return None if born is None else ProcessId(pid=pid, born=born)


def _birth(pid: int) -> str | None:
    return _birth_from_proc(pid) if Path("/proc/self/stat").exists() else _birth_from_psutil(pid)


def _birth_from_proc(pid: int) -> str | None:
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Clock ticks since boot: unlike a creation time they do not move when the clock is set.
    return None if state in "ZX" else fields[18]


def _birth_from_psutil(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(int(process.create_time()))
    except psutil.NoSuchProcess:
        return None


class Child:
    """A process of the supervisor: started, watched, started again with growing pauses, ended with it.

    Args:
        name: Names its log file.
        command: What to run; asked again at every start.
        environ: The process's whole environment.
        log: Where its output is appended.
        ready_line: What its output says once it can be used.
    """

    def __init__(self, name: str, command: Callable[[], Sequence[str]], environ: Mapping[str, str], log: Path, ready_line: str) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environ = environ
        self._ready_line = ready_line
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start_bytes = 0
        self._failures = 0
        self._started_s = 0.0
        self._restart_s: float | None = None

    @property
    def identity(self) -> ProcessId | None:
        """Of the running process, None while there is none."""
        return None if self._process is None else identify(self._process.pid)

    @property
    def exit_code(self) -> int | None:
        """Of the last process, None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process; its output goes to the end of the log."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._log_start_bytes = log.tell()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self._environ),
                preexec_fn=die_with_parent,
            )
        self._started_s = time.monotonic()
        self._restart_s = None

    @property
    def ready(self) -> bool:
        """Whether the running process has said that it can be used."""
        return self._ready_line in self.output()

    def output(self) -> str:
        """Return what the process wrote since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start_bytes)
            return log.read().decode(errors="replace")

    def revive(self) -> str | None:
        """Start an ended process again when its pause is over; return a line for the log where something happened."""
        code = self.exit_code
        if code is None:
            return None
        now_s = time.monotonic()
        if self._restart_s is None:
            self._failures = 1 if now_s - self._started_s > HEALTHY_AFTER_S else self._failures + 1
            pause_s = min(LONGEST_BACKOFF_S, 0.5 * 2 ** (self._failures - 1))
            self._restart_s = now_s + pause_s
            return f"{self.name} ended with exit code {code}; it is started again in {pause_s:g} s (its output: {self.log})"
        if now_s < self._restart_s:
            return None
        self.start()
        return f"{self.name} was started again"

    def end(self, grace_s: float) -> None:
        """End the process, with force after the grace."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """Let this process end when its parent is killed: on Linux, for programs that do not watch their standard input."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
