import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anthropic
import pytest

from claude_batch_dagster.simulator import Simulator, serve_in_thread

HEADERS = {"authorization": "Bearer k", "anthropic-version": "2026-10-21"}


@dataclass
class Clock:
    now: float = 1_790_000_000.25

    def __call__(self) -> float:
        return self.now


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A simulator whose clock stands still until a test moves it."""

    server: Simulator
    clock: Clock
    clients: list[anthropic.Anthropic] = field(default_factory=list)

    def client(self, **options: Any) -> anthropic.Anthropic:
        client = anthropic.Anthropic(base_url=self.server.url, **{"api_key": "k", "max_retries": 0, **options})
        self.clients.append(client)
        return client

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request(method, path, body, HEADERS if headers is None else headers)
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def create(self, requests: list[dict[str, Any]], **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = self.call(
            "POST", "/v1/messages/batches", json.dumps({"requests": requests}, separators=(",", ":")).encode(), {**HEADERS, **named}
        )
        assert reply.status == 200, reply.body
        return reply.json

    def results(self, batch_id: str) -> dict[str, Any]:
        body = self.call("GET", f"/v1/messages/batches/{batch_id}/results").body
        return {line["custom_id"]: line["result"] for line in map(json.loads, body.splitlines())}

    def ended(self, requests: list[dict[str, Any]], **headers: str) -> dict[str, Any]:
        """The results of a batch of these requests."""
        batch = self.create(requests, **headers)
        self.clock.now += 10
        return self.results(batch["id"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a simulator on books of this test; batches take 10 s of a clock that tests move."""
    with ExitStack() as stack:

        def run(*faults: str, seconds: float = 10.0) -> Running:
            clock = Clock()
            server = stack.enter_context(serve_in_thread(books=tmp_path / "books", seconds=seconds, faults=faults, clock=clock))
            running = Running(server, clock)
            stack.callback(lambda: [client.close() for client in running.clients])
            return running

        yield run


@pytest.fixture
def simulator(start: Callable[..., Running]) -> Running:
    return start()


def ask(custom_id: str, text: str = "Great player. I love it.", **params: Any) -> dict[str, Any]:
    """One request; a param of None is left out."""
    merged = {"model": "claude-haiku-5-5", "max_tokens": 300, "messages": [{"role": "user", "content": text}], **params}
    return {"custom_id": custom_id, "params": {name: value for name, value in merged.items() if value is not None}}


@pytest.fixture(name="ask")
def _ask() -> Callable[..., dict[str, Any]]:
    return ask
