"""The simulator's own routes under `/simulator`: fault switches, and the books as a judge of tests. They need no key."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import msgspec
import orjson
from aiohttp import web

from claude_batch_dagster.simulator.batch import hold_back, processing_status
from claude_batch_dagster.simulator.books import Books
from claude_batch_dagster.simulator.faults import FAULTS, FaultBoard
from claude_batch_dagster.simulator.upload import receive_small_body
from claude_batch_dagster.simulator.wire import invalid_request, timestamp

_CHUNK_LINES = 5000
_KEPT_MESSAGES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The handlers, with what they share."""

    books: Books
    faults: FaultBoard
    clock: Callable[[], float]
    calls: Counter[str] = field(default_factory=Counter)
    """Calls since the start by verb; `retries` are those that the client's header calls so."""
    asked: deque[bytes] = field(default_factory=lambda: deque(maxlen=_KEPT_MESSAGES))
    """The last bodies that the Messages API was sent."""

    async def summary(self, request: web.Request) -> web.Response:
        """GET /simulator/books: every batch, deleted ones too, newest first."""
        now, held = self.clock(), self.faults.setting("hold")
        batches = [
            {
                "id": batch.id,
                "created_at": timestamp(batch.created_at),
                "count": batch.count,
                "status": "deleted" if batch.deleted_at is not None else processing_status(batch, hold_back(batch, now, held_from=held)),
                "outcomes": batch.tallies,
                "retry_count": batch.retry_count,
                "body_sha256": batch.body_sha256,
                "canceled": batch.cancel_initiated_at is not None,
            }
            for batch in self.books.newest_first(deleted=True)
        ]
        requests = sum(batch.count for batch in self.books.newest_first(deleted=True))
        return web.json_response({"batches": batches, "requests": requests, "calls": dict(self.calls)})

    async def outcomes(self, request: web.Request) -> web.StreamResponse:
        """GET /simulator/outcomes: a line of batch_id, custom_id and outcome for every request ever taken, as it ends or will end."""
        response = web.StreamResponse(headers={"content-type": "application/x-jsonl"})
        await response.prepare(request)
        for batch in self.books.newest_first(deleted=True):
            pairs = self.books.outcomes(batch.id)
            while lines := await asyncio.to_thread(_outcome_lines, batch.id, islice(pairs, _CHUNK_LINES)):
                await response.write(lines)
        await response.write_eof()
        return response

    async def messages(self, request: web.Request) -> web.Response:
        """GET /simulator/messages: the last bodies that the Messages API was sent, oldest first, a line each."""
        return web.Response(body=b"".join(body.replace(b"\n", b" ") + b"\n" for body in self.asked), content_type="application/x-jsonl")

    async def show_faults(self, request: web.Request) -> web.Response:
        """GET /simulator/faults: what is on, and all that there is."""
        known = {name: fault.says for name, fault in FAULTS.items()}
        return web.json_response({"active": self.faults.active(), "known": known})

    async def switch_fault(self, request: web.Request) -> web.Response:
        """POST /simulator/faults {"name": "expire", "n": 0.1}; n may be left out or "all"."""
        body = await receive_small_body(request, 10_000)
        try:
            wanted = msgspec.json.decode(body, type=dict[str, str | float | None])
            number = wanted.get("n")
            self.faults.switch_on(f"{wanted.get('name')}" if number is None else f"{wanted.get('name')}={number}")
        except ValueError as error:
            raise invalid_request(str(error)) from None
        return await self.show_faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        """DELETE /simulator/faults[?name=NAME]."""
        self.faults.clear(request.query.get("name"))
        return await self.show_faults(request)


def _outcome_lines(batch_id: str, pairs: "islice[tuple[str, str]]") -> bytes:
    return b"".join(
        orjson.dumps({"batch_id": batch_id, "custom_id": custom_id, "outcome": outcome}) + b"\n" for custom_id, outcome in pairs
    )
