"""The HTTP server: routes, what every call passes, start and stop."""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from aiohttp import web

from claude_batch_dagster.simulator import VERSION, messages_api
from claude_batch_dagster.simulator.batches_api import BatchesApi
from claude_batch_dagster.simulator.books import Books
from claude_batch_dagster.simulator.control import Control
from claude_batch_dagster.simulator.envelope import MAX_BODY_BYTES
from claude_batch_dagster.simulator.faults import Fault, FaultBoard
from claude_batch_dagster.simulator.upload import BodyIncompleteError, receive_body, receive_half
from claude_batch_dagster.simulator.wire import WireError, error_body, invalid_request, new_id

SERVER = f"claude-batch-simulator/{VERSION}"
VERSIONS = ("2023-06-01", "2026-10-21")
WORKSPACE = "wrkspc_simulated"
ORGANIZATION = "00000000-0000-4000-8000-000000000000"
_WRONG_KEYS = frozenset({"wrong", "revoked"})
_STOP_S = 0.2
_REQUEST_ID = web.RequestKey("request_id", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AddressError(OSError):
    """The simulator cannot listen where it was told to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """A running server."""

    url: str
    port: int
    books: Books
    faults: FaultBoard
    calls: dict[str, int]
    """Calls since the start by verb, and `retries`."""


@asynccontextmanager
async def serve(
    *,
    books: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    seconds: float = 2.0,
    faults: Iterable[str] = (),
    workspace: str = WORKSPACE,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Simulator]:
    """Run the simulator on this event loop; it listens when the block begins and has stopped when it ends.

    Args:
        books: The folder that is kept; None for a temporary one.
        port: 0 picks a free one.
        seconds: How long a batch takes to end.
        faults: Switches, `NAME[=N]`; see `faults.py`.
        clock: Epoch seconds; everything that takes time goes by it.

    Raises:
        BooksInUseError: another simulator has the books open.
        ValueError: an unknown fault.
        AddressError: the address is taken, or none of this machine's.
    """
    board = FaultBoard(faults)
    with tempfile.TemporaryDirectory(prefix="claude-batch-simulator-") if books is None else _kept(books) as folder:
        ledger = Books(Path(folder))
        try:
            gate = Gate(ledger, board, seconds, workspace, clock)
            # The access log would name nothing that the counters do not, at 50 us a call.
            runner = web.AppRunner(gate.app(), access_log=None, shutdown_timeout=_STOP_S, handle_signals=False)
            await runner.setup()
            try:
                await _listen(runner, host, port)
                bound: int = runner.addresses[0][1]
                shown = f"[{host}]" if ":" in host else host
                yield Simulator(url=f"http://{shown}:{bound}", port=bound, books=ledger, faults=board, calls=gate.control.calls)
            finally:
                await runner.cleanup()
        finally:
            ledger.close()


@contextmanager
def serve_in_thread(
    *,
    books: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    seconds: float = 2.0,
    faults: Iterable[str] = (),
    workspace: str = WORKSPACE,
    clock: Callable[[], float] = time.time,
) -> Iterator[Simulator]:
    """`serve` on a thread and event loop of its own, for synchronous callers."""
    running: list[Simulator] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        try:
            async with serve(
                books=books, host=host, port=port, seconds=seconds, faults=faults, workspace=workspace, clock=clock
            ) as simulator:
                running.append(simulator)
                ready.set()
                await stop.wait()
        finally:
            ready.set()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run())
        except (OSError, ValueError, RuntimeError) as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="claude-batch-simulator", daemon=True)
    thread.start()
    ready.wait()
    if not running:
        thread.join()
        raise failed[0]
    try:
        yield running[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        if failed:
            raise failed[0]


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except (OSError, OverflowError) as error:
        # asyncio puts the whole address into the text of some of its errors.
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else str(error)
        raise AddressError(f"cannot listen on {host}:{port}: {reason}.") from error


@contextmanager
def _kept(folder: Path | str) -> Iterator[str]:
    yield str(folder)


class Gate:
    """What every call passes: ids and headers, the key, the version, the faults, errors in the API's words."""

    def __init__(self, books: Books, faults: FaultBoard, seconds: float, workspace: str, clock: Callable[[], float]) -> None:
        self.books = books
        self.faults = faults
        self.workspace = workspace
        self._clock = clock
        self.batches = BatchesApi(books=books, faults=faults, takes_s=seconds, clock=self.now)
        self.control = Control(books=books, faults=faults, clock=self.now)

    def now(self) -> float:
        """The simulator's time, skewed or not."""
        return self._clock() + (self.faults.setting("clock-skew") or 0.0)

    def app(self) -> web.Application:
        """The application with all routes."""
        app = web.Application(middlewares=[self._middleware], client_max_size=0)
        app.on_response_prepare.append(self._write_headers)
        batches = "/v1/messages/batches"
        add = app.router.add_route
        add("POST", batches, self._create, name="create")
        add("GET", batches, self.batches.list_page, name="list")
        add("GET", batches + "/{batch_id}", self.batches.retrieve, name="get")
        add("DELETE", batches + "/{batch_id}", self.batches.delete, name="delete")
        add("POST", batches + "/{batch_id}/cancel", self.batches.cancel, name="cancel")
        add("GET", batches + "/{batch_id}/results", self.batches.results, name="results")
        add("POST", "/v1/messages", self._ask, name="message")
        add("POST", "/v1/messages/count_tokens", messages_api.count_tokens, name="count_tokens")
        add("GET", "/v1/models", messages_api.list_models, name="models")
        add("GET", "/v1/models/{model_id}", messages_api.retrieve_model, name="models-one")
        add("GET", "/simulator/books", self.control.summary)
        add("GET", "/simulator/outcomes", self.control.outcomes)
        add("GET", "/simulator/messages", self.control.messages)
        add("GET", "/simulator/faults", self.control.show_faults)
        add("POST", "/simulator/faults", self.control.switch_fault)
        add("DELETE", "/simulator/faults", self.control.clear_faults)
        return app

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = new_id("req_01")
        request[_REQUEST_ID] = request_id
        try:
            if request.path.startswith("/v1/"):
                return await self._vendor_call(request, handler)
            return await handler(request)
        except WireError as error:
            return _error_response(error, request_id, request)
        except web.HTTPNotFound:
            return _error_response(WireError(404, "not_found_error", "Not found"), request_id, request)
        except web.HTTPMethodNotAllowed:
            return _error_response(WireError(405, "invalid_request_error", "Method Not Allowed"), request_id, request)
        except (BodyIncompleteError, ConnectionError):
            # The client went away: there is nobody to answer.
            return _drop(request)

    async def _vendor_call(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        verb = (request.match_info.route.name or "unknown").removesuffix("-one")
        self.control.calls[verb] += 1
        if request.headers.get("x-stainless-retry-count", "0") != "0":
            self.control.calls["retries"] += 1
        self._check_key(request)
        if request.headers.get("anthropic-version") not in VERSIONS:
            raise invalid_request(f"anthropic-version: header is required, one of {', '.join(VERSIONS)}")
        if verb == "create":
            # The body is read before a fault strikes: a reply in mid-upload would reset the connection.
            return await self._create(request)
        if fault := self.faults.strike("before", verb):
            return _strike(fault, request)
        response = await handler(request)
        if fault := self.faults.strike("after", verb):
            return _strike(fault, request)
        return response

    async def _create(self, request: web.Request) -> web.StreamResponse:
        if delay_s := self.faults.setting("slow-upload"):
            await asyncio.sleep(delay_s)
        if self.faults.strike("upload", "create"):
            await receive_half(request)
            return _drop(request)
        upload = await receive_body(request, self.books.spool, MAX_BODY_BYTES)
        with upload.file:
            if fault := self.faults.strike("before", "create"):
                return _strike(fault, request)
            response = await self.batches.create(request, upload)
            if fault := self.faults.strike("after", "create"):
                return _strike(fault, request)
            return response

    async def _ask(self, request: web.Request) -> web.Response:
        return await messages_api.create_message(request, self.faults, self.control.asked)

    def _check_key(self, request: web.Request) -> None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        if not key:
            raise WireError(401, "authentication_error", "x-api-key header is required")
        if self.faults.is_revoked() or key in _WRONG_KEYS:
            raise WireError(401, "authentication_error", "invalid x-api-key")

    async def _write_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["Server"] = SERVER
        headers["Date"] = formatdate(self.now(), usegmt=True)
        headers["request-id"] = request.get(_REQUEST_ID, "")
        headers["anthropic-organization-id"] = ORGANIZATION
        headers["anthropic-workspace-id"] = self.workspace
        if "content-disposition" in headers:
            # The recorded results carry no content-type; aiohttp would add one.
            headers.popall("Content-Type", None)


def _strike(fault: Fault, request: web.Request) -> web.StreamResponse:
    if fault.status == 0:
        return _drop(request)
    if fault.status == 200:
        return web.Response(body=b'{"id": "msgbatch_01', content_type="application/json")
    raise fault.error()


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=499)


def _error_response(error: WireError, request_id: str, request: web.Request) -> web.Response:
    headers = {name: value or str(request.rel_url) for name, value in error.headers.items()}
    return web.Response(status=error.status, body=error_body(error, request_id), content_type="application/json", headers=headers)
