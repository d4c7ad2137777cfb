"""A real Temporal dev server and the product's worker, as processes."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO

from bench.measure import REPOSITORY, memory_mb, process_cpu_s
from claude_batch_dagster.embedded.server import find_temporal

START_S = 60.0


@dataclass(kw_only=True)
class Program:
    """A child process whose output is read as it comes."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def cpu_s(self) -> float:
        """Return its user and system seconds."""
        return process_cpu_s(self.pid)

    def memory_mb(self, field_name: str = "VmRSS") -> float:
        """Return its VmRSS or VmHWM."""
        return memory_mb(field_name, self.pid)

    def wait_for(self, text: str) -> None:
        """Wait until a line of its output holds a text."""
        deadline = time.monotonic() + START_S
        while not any(text in line for line in self.lines):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{text!r} did not come (exit {self.process.poll()}):\n" + "\n".join(self.lines))
            time.sleep(0.02)

    def read(self, output: IO[str]) -> None:
        """Read the output to its end."""
        for line in output:
            self.lines.append(line.rstrip("\n"))


@contextmanager
def run_program(command: Sequence[str], **environ: str) -> Iterator[Program]:
    """Run a program; it ends with the block."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    program = Program(process=process)
    threading.Thread(target=program.read, args=(process.stdout,), daemon=True).start()
    try:
        yield program
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def run_temporal() -> Iterator[str]:
    """Run a Temporal dev server that keeps nothing; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    arguments = ("server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port), "--log-level", "error")
    with run_program([find_temporal(), *arguments]):
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"no Temporal server on port {port} within {START_S:.0f} s")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"


@contextmanager
def run_worker(address: str, url: str, *, poll_s: float = 0.2) -> Iterator[Program]:
    """Run the product's worker until it is ready."""
    with run_program(
        [sys.executable, "-m", "temporal_worker"],
        TEMPORAL_ADDRESS=address,
        ANTHROPIC_BASE_URL=url,
        ANTHROPIC_API_KEY="bench",
        CLAUDE_BATCH_POLL_SECONDS=str(poll_s),
    ) as worker:
        worker.wait_for("worker ready on task queue")
        yield worker
