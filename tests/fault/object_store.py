"""An S3 server as a process (moto), and a gate before it that answers in its place while it is told to."""

import http.client
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.stack import Process, free_port

BUCKET = "lake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the gate sees of a request."""

    method: str
    path: str
    is_conditional: bool


@dataclass(kw_only=True)
class ObjectStore:
    """The server behind its gate.

    Attributes:
        port: The gate's.
        refuse: Returns the status and code to answer in the server's place, None to let a request pass.
        keeps_conditions: Whether `If-None-Match` reaches the server; some servers do not know it.
        spoil: Whether a request is passed on and its answer then lost: the client is told 503.
        requests: What came, in order.
    """

    port: int = 0
    refuse: Callable[[Request], tuple[int, str] | None] = lambda request: None
    spoil: Callable[[Request], bool] = lambda request: False
    keeps_conditions: bool = True
    requests: list[Request] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }

    def open(self) -> None:
        """Let everything pass again."""
        self.refuse, self.spoil, self.keeps_conditions = lambda request: None, lambda request: False, True


@contextmanager
def run_object_store() -> Iterator[ObjectStore]:
    """Run a server with one empty bucket."""
    port = free_port()
    process = Process.start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {})
    try:
        process.wait_for_line("Running on")
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"), timeout=10).close()
        store = ObjectStore()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _make_gate(store, port))
        server.daemon_threads = True
        store.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield store
        finally:
            server.shutdown()
            server.server_close()
    finally:
        process.stop()


def _make_gate(store: ObjectStore, port: int) -> type[BaseHTTPRequestHandler]:
    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            request = Request(method=self.command, path=self.path.partition("?")[0], is_conditional="if-none-match" in self.headers)
            store.requests.append(request)
            refused = store.refuse(request)
            if refused is not None:
                self.answer(refused[0], {}, f"<?xml version='1.0'?><Error><Code>{refused[1]}</Code></Error>".encode())
                return
            if not store.keeps_conditions:
                del self.headers["if-none-match"]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request(self.command, self.path, body=body, headers=dict(self.headers))
                reply = connection.getresponse()
                content, headers = reply.read(), dict(reply.getheaders())
            finally:
                connection.close()
            if store.spoil(request):
                self.answer(503, {}, b"<?xml version='1.0'?><Error><Code>ServiceUnavailable</Code></Error>")
            else:
                self.answer(reply.status, headers, content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on  # noqa: N815 - the names that http.server looks for

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            own = {"connection", "content-length", "date", "server", "transfer-encoding"}
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in own:
                        self.send_header(name, value)
                self.send_header("Content-Length", length or str(0 if self.command == "HEAD" else len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Gate
