"""Starts our programs as forks of one process that has imported them: their imports are three CPU seconds a worker, and the suites start hundreds.

    process = popen([sys.executable, "-m", "temporal_worker"], env=environ, stdout=PIPE)

A fork runs the program's `__main__` as `python -m` does, with its own environment, folder, pipes and signals; whoever started it gets
its exit code, and a kill is a kill. Any other command, and one whose environment says something to the interpreter, is started as it
stands. So is every command with TESTS_PREFORK=0. What people type is typed whole in tests/docs, tests/e2e, and at the
terminals of tests/integration.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module, reload
from pathlib import Path
from typing import Any

from claude_batch_dagster import fault_points

REPOSITORY = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("claude-batch"))
PROGRAMS = {"temporal_worker", "claude_batch_dagster.cli", "claude_batch_dagster.simulator"}
IMPORTED = (
    "temporal_worker.worker",
    "claude_batch_dagster.cli.app",
    "claude_batch_dagster.embedded.client",
    "claude_batch_dagster.simulator.server",
    "claude_batch_dagster.verbs.doctor",
    "claude_batch_dagster.verbs.recover",
    "claude_batch_dagster.verbs.run",
    "filelock",
    "pandas",
    "pyarrow.dataset",
)
READ_BY_PYTHON = ("PYTHONWARNINGS", "PYTHONHASHSEED", "PYTHONDEVMODE")
NUMBER = struct.Struct("=i")


def popen(command: Sequence[str | Path], *, env: Mapping[str, str], **options: Any) -> "subprocess.Popen[str]":
    """Start a command as `subprocess.Popen(command, text=True)` does, as a fork where it is a program of ours."""
    words = [str(word) for word in command]
    if words[0] == COMMAND:
        words[:1] = [sys.executable, "-m", "claude_batch_dagster.cli"]
    is_ours = len(words) > 2 and words[:2] == [sys.executable, "-m"] and words[2] in PROGRAMS
    is_plain = not any(env.get(name) != os.environ.get(name) for name in READ_BY_PYTHON)
    kind = Forked if is_ours and is_plain and os.environ.get("TESTS_PREFORK") != "0" else subprocess.Popen
    return kind(words if kind is Forked else list(command), env=dict(env), text=True, **options)


def run(command: Sequence[str | Path], *, env: Mapping[str, str], timeout: float, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, without input, as `subprocess.run(..., capture_output=True, text=True)` does."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with popen(command, env=env, **pipes, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class Forked(subprocess.Popen[str]):
    """A child of the host instead of a child of ours: only how it starts and how its end is learned differ."""

    _link: socket.socket

    def _execute_child(  # type: ignore[override]
        self,
        args: list[str],
        executable: object,
        preexec_fn: object,
        close_fds: object,
        pass_fds: object,
        cwd: "str | Path | None",
        env: dict[str, str],
        startupinfo: object,
        creationflags: object,
        shell: object,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *_: object,
    ) -> None:
        try:
            self._link, theirs = socket.socketpair()
            order = {"module": args[2], "arguments": args[3:], "folder": str(cwd or Path.cwd()), "environ": env}
            streams = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
            with theirs:
                Host.running().send(order, [*streams, theirs.fileno()])
            (self.pid,) = NUMBER.unpack(self._link.recv(NUMBER.size))
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        self._link.setblocking(not wait_flags & os.WNOHANG)
        try:
            said = self._link.recv(NUMBER.size)
        except BlockingIOError:
            return 0, 0
        assert said, "the host of the forks has gone"
        self._link.close()
        return self.pid, NUMBER.unpack(said)[0]

    def _internal_poll(self, _deadstate: int | None = None, **_: object) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class Host:
    """The process with the imports: one for each process of pytest, started at the first fork, ended with pytest."""

    _instance: "Host | None" = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.prefork", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        atexit.register(self._end)

    @classmethod
    def running(cls) -> "Host":
        with cls._lock:
            cls._instance = cls._instance or cls()
            return cls._instance

    def send(self, order: dict[str, Any], descriptors: list[int]) -> None:
        body = json.dumps(order).encode()
        with self._lock:
            socket.send_fds(self._orders, [NUMBER.pack(len(body))], descriptors)
            self._orders.sendall(body)

    def _end(self) -> None:
        self._orders.close()
        self._process.wait(10)


def serve(orders: socket.socket) -> dict[str, Any]:
    """Fork for each order; return only in forks, with theirs."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # Ctrl-C is pytest's: it ends the tests, these end the forks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    for source in (orders, woken):
        selector.register(source, selectors.EVENT_READ)
    living: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is woken:
                woken.recv(4096)
                tell_ends(living)
                continue
            head, descriptors, _, _ = socket.recv_fds(orders, NUMBER.size, 4)
            if not head:
                os._exit(0)
            body = b""
            (size,) = NUMBER.unpack(head)
            while len(body) < size:
                body += orders.recv(size - len(body))
            link = socket.socket(fileno=descriptors[3])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                selector.close()
                for own in (orders, woken, wakes, link, *living.values()):
                    own.close()
                take_streams(descriptors[:3])
                return dict(json.loads(body))
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            living[pid] = link
            link.sendall(NUMBER.pack(pid))


def tell_ends(living: dict[int, socket.socket]) -> None:
    """Tell of each fork that ended how it ended."""
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with living.pop(pid) as link:
            try:
                link.sendall(NUMBER.pack(status))
            except OSError:
                # Its starter has gone.
                continue


def take_streams(descriptors: Sequence[int]) -> None:
    """Make these the process's standard input, output and error."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors) - {0, 1, 2}:
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 - the process's own
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def main() -> None:
    for module in IMPORTED:
        import_module(module)
    gc.collect()
    # A fork's own collections would copy every page of these.
    gc.freeze()
    order = serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environ"])
    # The one module that reads the environment as it is imported.
    reload(fault_points)
    sys.argv = [order["module"], *order["arguments"]]
    sys.path[0] = order["folder"]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
