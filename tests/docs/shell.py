"""A shell in a folder of a page's own, with the demo's reviews, a simulator instead of Claude, and one embedded stack for all commands."""

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.embedded import find_stack, stack_folder, stop_stack
from claude_batch_dagster.embedded.folder import Folder

SHIPPED = Path(__file__).parents[2] / "claude_batch_dagster" / "demo" / "data" / "product_reviews.parquet"
BIN = Path(sys.executable).parent
HOME = "/home/you"
"""How a page names its folder."""
BLOCK_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
HOLD_STACK = """
import sys
from claude_batch_dagster.embedded import supervisor
from claude_batch_dagster.embedded.folder import Folder, stack_folder
supervisor.SIMULATED_BATCH_S = float(sys.argv[2])
folder = Folder(stack_folder(sys.argv[1]))
folder.create()
folder.add_client()
sys.exit(supervisor.main([sys.argv[1], "--simulate"]))
"""
"""A root's supervisor that is a client of its own, so that the stack stays between two commands; its batches end sooner."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Shell:
    """Runs what a page says, one block after the other.

    Args:
        folder: Empty.
        batch_s: How long a simulated batch takes, in an embedded stack that every command finds running; None for no such stack.
    """

    def __init__(self, folder: Path, *, batch_s: float | None) -> None:
        self.folder = folder
        self.root = folder / ".claude_batch" / "simulated"
        lay_out_reviews(folder)
        self.environ = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "CLAUDE_BATCH_SIMULATE": "1",
            "CLAUDE_BATCH_POLL_SECONDS": "0.2",
            "DAGSTER_HOME": str(folder / ".dagster"),
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
        (folder / ".dagster").mkdir()
        self._holder = None if batch_s is None else self._hold_stack(batch_s)
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def run(self, script: str) -> tuple[int, str]:
        """Run some lines; return the first exit code that is not 0, and what they printed. Variables and background jobs stay."""
        mark = f"-- end of block {time.monotonic_ns()} --"
        assert self._bash.stdin is not None
        self._bash.stdin.write(
            f"__code=0; trap '__code=${{__code/#0/$?}}' ERR\n{{\n{script}\n}} </dev/null\nprintf '\\n%s %s\\n' {shlex.quote(mark)} $__code\n"
        )
        self._bash.stdin.flush()
        printed: list[str] = []
        deadline = time.monotonic() + BLOCK_TIMEOUT_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"not over within {BLOCK_TIMEOUT_S:.0f} s:\n{script}\n{''.join(printed)}") from None
            if mark in line:
                return int(line.rsplit(" ", 1)[1]), self.tell("".join(printed))
            printed.append(line)

    @contextmanager
    def holding_batches(self) -> Iterator[None]:
        """No batch ends in this block, however long a machine takes to come to the Ctrl-C."""
        record = Folder(stack_folder(str(self.root))).read()
        assert record is not None, "a page on which somebody types has a stack"
        assert record.ports is not None, "it is ready"
        faults = f"http://127.0.0.1:{record.ports.simulator}/simulator/faults"
        _call("POST", faults, b'{"name": "hold"}')
        yield
        _call("DELETE", f"{faults}?name=hold")

    def tell(self, text: str) -> str:
        """Return what a command printed as a page shows it."""
        return _ESCAPES.sub("", text).replace(str(self.folder), HOME)

    def close(self) -> None:
        """End everything that was started."""
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        if self._holder is not None:
            self._holder.terminate()
        for process in (self._bash, self._holder):
            if process is not None:
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with suppress(OSError):
                            pipe.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
        for folder in {self.root, *(path.parent for path in self.folder.glob("**/embedded"))}:
            stop_stack(str(folder))

    def _hold_stack(self, batch_s: float) -> "subprocess.Popen[str]":
        self.root.mkdir(parents=True)
        log = (self.folder / ".stack.log").open("w")
        command = [sys.executable, "-c", HOLD_STACK, str(self.root), str(batch_s)]
        process = subprocess.Popen(command, env=self.environ, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
        log.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        while find_stack(str(self.root)) is None:
            assert process.poll() is None, (self.folder / ".stack.log").read_text()
            assert time.monotonic() < deadline, (self.folder / ".stack.log").read_text()
            time.sleep(0.05)
        return process

    def _read(self) -> None:
        assert self._bash.stdout is not None
        with suppress(ValueError):
            for line in self._bash.stdout:
                self._lines.put(line)


def _call(method: str, url: str, body: bytes | None = None) -> None:
    request = urllib.request.Request(url, data=body, method=method, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        reply.read()


def lay_out_reviews(folder: Path) -> None:
    """Write `reviews.parquet`, and the same rows by day in `reviews/` and `lake/reviews/`."""
    reviews = pq.read_table(SHIPPED).replace_schema_metadata(None)
    pq.write_table(reviews, folder / "reviews.parquet")
    for day in pc.unique(reviews["day"]).to_pylist():
        rows = reviews.filter(pc.equal(reviews["day"], day)).drop_columns("day")
        for place in ("reviews", "lake/reviews"):
            path = folder / place / f"day={day}" / "part-0.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(rows, path)
