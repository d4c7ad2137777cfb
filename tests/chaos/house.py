"""The processes of a round: those that this program starts and starts again, and those of an embedded stack."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from claude_batch_dagster.embedded.folder import Folder

REPOSITORY = Path(__file__).parents[2]
TEMPORAL = Path(sys.executable).with_name("temporal")
MARK = "CLAUDE_BATCH_CHAOS"
FOREIGN_VARIABLES = ("ANTHROPIC_", "AWS_", "AZURE_", "CLAUDE_BATCH_", "DAGSTER_", "GOOGLE_", "TEMPORAL_")
RESUME_AFTER_S = 2.5
"""How long a process stays suspended that a fault point suspended."""


def clean_environment(mark: str) -> dict[str, str]:
    """Return this process's environment without what would decide a round, and with a mark by which its processes are found."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environ.pop(name, None)
        environ.pop(name.upper(), None)
    return {**environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1", MARK: mark}


def end_marked(mark: str) -> int:
    """Kill every process that carries the mark, also those that were started by others of them; return how many there were."""
    killed = 0
    for _ in range(20):
        found = [process for process in psutil.process_iter() if _is_marked(process, mark)]
        if not found:
            break
        for process in found:
            with suppress(psutil.Error):
                process.kill()
                killed += 1
        time.sleep(0.05)
    return killed


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark)
    except psutil.Error:
        return False


@dataclass(slots=True, kw_only=True)
class Member:
    """A process of this program's own, one at a time.

    Attributes:
        traps: Fault points of its first process only.
        restart_at_s: When it is started again, on the monotonic clock; None while it runs, or shall not.
    """

    name: str
    command: Sequence[str]
    environ: dict[str, str]
    log: Path
    cwd: Path
    traps: str = ""
    popen: "subprocess.Popen[bytes] | None" = None
    starts: int = 0
    restart_at_s: float | None = None
    resume_at_s: float | None = None

    def start(self) -> None:
        environ = dict(self.environ)
        if self.traps and self.starts == 0:
            environ["CLAUDE_BATCH_FAULT_POINTS"] = self.traps
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts + 1}\n".encode())
            log.flush()
            self.popen = subprocess.Popen(
                self.command, cwd=self.cwd, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.starts += 1
        self.restart_at_s = self.resume_at_s = None

    @property
    def exit_code(self) -> int | None:
        return None if self.popen is None else self.popen.poll()

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen is not None and self.popen.poll() is None else None

    def resume_where_trapped(self, now_s: float) -> None:
        """Resume the process some time after a fault point suspended it."""
        if not self.traps or self.starts != 1 or self.pid is None:
            return
        with suppress(psutil.Error):
            if psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
                self.resume_at_s = None
            elif self.resume_at_s is None:
                self.resume_at_s = now_s + RESUME_AFTER_S
            elif now_s >= self.resume_at_s:
                os.kill(self.pid, signal.SIGCONT)


@dataclass(slots=True, kw_only=True)
class House:
    """Who runs in a round.

    Attributes:
        members: Servers and workers of this program, none where each root has its embedded stack.
        stack_folder: Of the embedded stack.
    """

    members: dict[str, Member] = field(default_factory=dict)
    stack_folder: Path | None = None

    def find_pid(self, name: str) -> int | None:
        if name in self.members:
            return self.members[name].pid
        if self.stack_folder is None:
            return None
        record = Folder(self.stack_folder).read()
        if record is None:
            return None
        found = record.supervisor if name == "supervisor" else record.children.get(name)
        return found.pid if found is not None and found.alive else None

    def temporal_address(self) -> str | None:
        """Return where Temporal itself listens, without a proxy."""
        if self.stack_folder is None:
            return self.members["temporal"].environ["CHAOS_TEMPORAL_ADDRESS"]
        record = Folder(self.stack_folder).read()
        return f"127.0.0.1:{record.ports.temporal}" if record and record.ports and record.running else None

    def lose_temporal(self) -> None:
        """Delete the database of a server that was just killed; embedded, its supervisor goes first, or it would start it again."""
        if self.stack_folder is not None:
            for name in ("supervisor", "temporal", "worker"):
                send_signal(self.find_pid(name), signal.SIGKILL)
        folder = self.stack_folder or self.members["temporal"].cwd
        for path in folder.glob("temporal.db*"):
            path.unlink(missing_ok=True)

    def tend(self, now_s: float, pauses_s: "list[float]") -> None:
        """Start ended members again after a pause."""
        for member in self.members.values():
            member.resume_where_trapped(now_s)
            if member.pid is None and member.restart_at_s is None:
                member.restart_at_s = now_s + (pauses_s[member.starts % len(pauses_s)] if member.starts else 0.0)
            if member.restart_at_s is not None and now_s >= member.restart_at_s:
                member.start()


def send_signal(pid: int | None, number: signal.Signals) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def python_module(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def temporal_server(port: int, database: Path) -> list[str]:
    """Return the command of a server that keeps its state in a file."""
    return [
        str(TEMPORAL),
        *("server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port), "--db-filename", str(database)),
        *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL", "--log-level", "error"),
    ]
