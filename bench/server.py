"""A fast Message Batches server on loopback: `python -m bench.server --port 0`. It costs little, so that what is measured is the client.

A batch has ended when its create is answered (or after `--seconds`). Answers are canned and come in a shuffled order; nothing is checked.
"""

import argparse
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from io import BufferedIOBase
from typing import Any

import numpy as np

from bench.data import make_answers
from bench.job import MODEL
from bench.measure import REPOSITORY, process_cpu_s

MARK = b'"custom_id":'
LONGEST_ID = 80
CHUNK = 4 << 20
PIECE_LINES = 2_048
LINES = 4_096
REFUSED_EVERY = 59
# It says simulator: these are not Claude's answers, and no root shall hold them for such.
HEADERS = "server: bench-simulator\r\nanthropic-workspace-id: wrkspc_bench\r\nrequest-id: req_bench\r\n"
SHOWN_MODEL = {
    "type": "model",
    "display_name": "Bench",
    "lifecycle": "active",
    "max_tokens": 64_000,
    "max_input_tokens": 1_000_000,
    "capabilities": {},
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch: its custom_ids, a line each."""

    custom_ids: bytes
    count: int
    created_s: float


@dataclass(kw_only=True)
class Books:
    """What the server was asked."""

    takes_s: float
    batches: dict[str, Batch] = field(default_factory=dict)
    body_bytes: int = 0
    calls: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, custom_ids: list[bytes], size: int) -> str:
        """Return the id of a new batch."""
        batch = Batch(custom_ids=b"\n".join(custom_ids), count=len(custom_ids), created_s=time.time())
        with self.lock:
            batch_id = f"msgbatch_{len(self.batches):08}"
            self.batches[batch_id] = batch
            self.body_bytes += size
        return batch_id

    def describe(self, batch_id: str) -> dict[str, Any]:
        """Return a MessageBatch."""
        batch = self.batches[batch_id]
        ended = time.time() >= batch.created_s + self.takes_s
        refused = count_refused(batch.count) if ended else 0
        counts = {"processing": 0 if ended else batch.count, "succeeded": batch.count - refused if ended else 0, "errored": refused}
        return {
            "id": batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "canceled": 0, "expired": 0},
            "created_at": _timestamp(batch.created_s),
            "expires_at": _timestamp(batch.created_s + 86_400),
            "ended_at": _timestamp(batch.created_s + self.takes_s) if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"/v1/messages/batches/{batch_id}/results" if ended else None,
        }


def make_lines() -> list[bytes]:
    """Return what follows the custom_id in 4,096 result lines of about 656 bytes, 1.7 % of them errored."""
    error = {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "the text cannot be processed"},
        "request_id": "req_bench",
    }
    answers = make_answers(LINES)
    lines = []
    for number, answer in enumerate(answers):
        usage = {
            "input_tokens": 400 + number % 300,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 60 + number % 40,
            "service_tier": "batch",
        }
        message = {
            "id": f"msg_{number:020}",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "content": [{"type": "text", "text": answer.decode()}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": usage,
        }
        is_refused = number % REFUSED_EVERY == 0
        result = {"type": "errored", "error": error} if is_refused else {"type": "succeeded", "message": message}
        lines.append(b'","result":' + json.dumps(result, separators=(",", ":")).encode() + b"}\n")
    return lines


def count_refused(count: int) -> int:
    """Return how many of so many requests are refused, 1.7 %: no round asks them again, so that every client does the same work."""
    cycles, rest = divmod(count, LINES)
    return cycles * -(-LINES // REFUSED_EVERY) + -(-rest // REFUSED_EVERY)


def read_custom_ids(body: BufferedIOBase, size: int) -> list[bytes]:
    """Read a body and return its custom_ids, in 4 MB of memory."""
    buffer = bytearray(CHUNK + LONGEST_ID)
    view = memoryview(buffer)
    custom_ids: list[bytes] = []
    held = 0
    while size:
        read = body.readinto(view[held : held + min(CHUNK, size)])
        if not read:
            raise ConnectionError("the body was cut")
        size -= read
        held += read
        at = 0
        # The last bytes may be the beginning of one: they wait for the next chunk.
        until = held if not size else held - LONGEST_ID
        while (found := buffer.find(MARK, at, until)) >= 0:
            start = buffer.index(b'"', found + len(MARK)) + 1
            at = buffer.index(b'"', start)
            custom_ids.append(bytes(view[start:at]))
        # A mark that only begins before `until` was not found.
        rest = max(at, until - len(MARK) + 1)
        buffer[: held - rest] = buffer[rest:held]
        held -= rest
    return custom_ids


class Handler(socketserver.StreamRequestHandler):
    """One connection, kept alive."""

    rbufsize = 1 << 20
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    books: Books
    lines: list[bytes]

    def handle(self) -> None:
        """Answer calls until the client goes."""
        try:
            while line := self.rfile.readline():
                method, path, _ = line.decode().split(" ", 2)
                size = 0
                while (header := self.rfile.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    if name.lower() == b"content-length":
                        size = int(value)
                self.books.calls += 1
                self._answer(method, path.partition("?")[0].rstrip("/"), size)
                self.wfile.flush()
        except (ConnectionError, TimeoutError):
            return

    def _answer(self, method: str, path: str, size: int) -> None:
        if method == "POST" and path == "/v1/messages/batches":
            return self._reply(self.books.describe(self.books.add(read_custom_ids(self.rfile, size), size)))
        self.rfile.read(size)
        if path == "/v1/messages/batches":
            newest = list(self.books.batches)[-20:][::-1]
            return self._reply({"data": [self.books.describe(one) for one in newest], "has_more": False, "first_id": None, "last_id": None})
        if found := re.fullmatch(r"/v1/messages/batches/(\w+)(/results|/cancel|)", path):
            if found[1] not in self.books.batches:
                return self._reply({"type": "error", "error": {"type": "not_found_error", "message": path}}, "404 Not Found")
            return (
                self._send_results(self.books.batches[found[1]]) if found[2] == "/results" else self._reply(self.books.describe(found[1]))
            )
        if path.startswith("/v1/models/"):
            return self._reply(SHOWN_MODEL | {"id": path.rpartition("/")[2]})
        if path == "/bench/books":
            books = self.books
            requests = sum(batch.count for batch in books.batches.values())
            shown = {"batches": len(books.batches), "requests": requests, "body_bytes": books.body_bytes, "calls": books.calls}
            return self._reply({**shown, "cpu_s": time.process_time()})
        return self._reply({"type": "error", "error": {"type": "not_found_error", "message": path}}, "404 Not Found")

    def _reply(self, content: dict[str, Any], status: str = "200 OK") -> None:
        body = json.dumps(content).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ndate: {formatdate(usegmt=True)}\r\n{HEADERS}"
        self.wfile.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def _send_results(self, batch: Batch) -> None:
        custom_ids = batch.custom_ids.split(b"\n")
        # Drawn ahead, and put in order as they are sent: nobody waits for it.
        order = np.random.default_rng(batch.count).permutation(len(custom_ids)).tolist()
        lines, step = self.lines, len(self.lines)
        size = len(batch.custom_ids) + len(custom_ids) * (len(b'{"custom_id":"') - 1)
        cycles, rest = divmod(len(custom_ids), step)
        size += cycles * sum(map(len, lines)) + sum(map(len, lines[:rest]))
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/x-jsonl\r\ndate: {formatdate(usegmt=True)}\r\n{HEADERS}"
        self.wfile.write(f"{head}content-length: {size}\r\n\r\n".encode())
        for start in range(0, len(custom_ids), PIECE_LINES):
            piece = [
                b'{"custom_id":"' + custom_ids[place] + lines[(start + at) % step]
                for at, place in enumerate(order[start : start + PIECE_LINES])
            ]
            content = b"".join(piece)
            self.wfile.write(content if start + PIECE_LINES < len(custom_ids) else content[:-1])


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """The server as a process."""

    url: str
    pid: int

    def books(self) -> dict[str, Any]:
        """Return what it was asked, and the CPU seconds that it took."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/bench/books", timeout=10) as reply:
            return dict(json.loads(reply.read()))

    def cpu_s(self) -> float:
        """Return its user and system seconds."""
        return process_cpu_s(self.pid)


@contextmanager
def run_server(*, seconds: float = 0.0) -> Iterator[RunningServer]:
    """Run the server as a process of its own."""
    command = [sys.executable, "-m", "bench.server", "--seconds", str(seconds)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield RunningServer(url=process.stdout.readline().strip(), pid=process.pid)
        finally:
            process.terminate()


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="after so long a batch has ended")
    options = parser.parse_args()
    Handler.books, Handler.lines = Books(takes_s=options.seconds), make_lines()
    with Server(("127.0.0.1", options.port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            os._exit(130)


def _timestamp(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat()


if __name__ == "__main__":
    main()
