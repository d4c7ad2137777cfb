"""The routes under `/v1/messages/batches`."""

import asyncio
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web

from claude_batch_dagster.simulator.batch import (
    ARCHIVED_AFTER_S,
    Batch,
    describe_batch,
    ended_at,
    hold_back,
    is_archived,
    processing_status,
)
from claude_batch_dagster.simulator.books import Books
from claude_batch_dagster.simulator.envelope import Item, read_envelope
from claude_batch_dagster.simulator.faults import FaultBoard
from claude_batch_dagster.simulator.question import Refusal, read_question
from claude_batch_dagster.simulator.results import judge_request, results_chunks
from claude_batch_dagster.simulator.upload import Upload
from claude_batch_dagster.simulator.wire import WireError, invalid_request, not_found

Headers = Mapping[str, str]
POLL_HINT_S = 10
MAX_PAGE = 1000
_STORED_SETTINGS = ("model-not-found", "long-answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesApi:
    """The handlers, with what they share."""

    books: Books
    faults: FaultBoard
    takes_s: float
    clock: Callable[[], float]
    creating: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One create is parsed at a time, so that the peak of memory is that of one body."""

    async def create(self, request: web.Request, upload: Upload) -> web.Response:
        """POST /v1/messages/batches: a new batch, or nothing."""
        async with self.creating:
            batch = await asyncio.to_thread(self._create, upload, request.headers.copy())
        # A batch never ends before its creator knows it.
        return web.json_response(describe_batch(batch, batch.created_at - 1e-6, _base_url(request)))

    async def retrieve(self, request: web.Request) -> web.Response:
        """GET one batch; while it is unfinished with `retry-after`."""
        batch = self._find(request)
        response = self._reply(batch, request)
        now = self._now(batch)
        if processing_status(batch, now) != "ended":
            remaining_s = ended_at(batch) - now
            response.headers["retry-after"] = str(max(1, min(POLL_HINT_S, int(-(-remaining_s // 1)))))
        return response

    async def list_page(self, request: web.Request) -> web.Response:
        """GET a page, newest first."""
        query = request.query
        limit = _page_size(query.get("limit", "20"))
        after, before = query.get("after_id"), query.get("before_id")
        if after and before:
            raise invalid_request("Only one of after_id and before_id may be given")
        now, lag_s = self.clock(), self.faults.setting("list-lag") or 0.0
        batches = [batch for batch in self.books.newest_first() if batch.created_at + lag_s <= now]
        cursor = after or before
        place = self.books.number_of(cursor) if cursor else None
        if cursor and place is None:
            raise invalid_request(f"{'after_id' if after else 'before_id'}: no batch {cursor}")
        if before and place is not None:
            batches = [batch for batch in batches if batch.number > place]
            page = batches[-limit:]
        else:
            batches = batches if place is None else [batch for batch in batches if batch.number < place]
            page = batches[:limit]
        return web.json_response(
            {
                "data": [self._describe(batch, request) for batch in page],
                "has_more": len(batches) > len(page),
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
            }
        )

    async def cancel(self, request: web.Request) -> web.Response:
        """POST cancel: `canceling`; again while canceling changes nothing, after the end it is refused (undocumented)."""
        batch = self._find(request)
        now = self._now(batch)
        if processing_status(batch, now) == "ended":
            raise invalid_request(f"Batch {batch.id} cannot be canceled because it has already finished processing.")
        return self._reply(await asyncio.to_thread(self.books.cancel, batch.id, now), request)

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE a batch that has ended."""
        batch = self._find(request)
        if processing_status(batch, self._now(batch)) != "ended":
            raise invalid_request(f"Batch {batch.id} cannot be deleted while it is processing. Cancel it first.")
        self.books.delete(batch.id, self.clock())
        return web.json_response({"id": batch.id, "type": "message_batch_deleted"})

    async def results(self, request: web.Request) -> web.StreamResponse:
        """GET the results as lines; 404 before the end, once archived and after deletion (undocumented)."""
        batch = self._find(request)
        now = self._now(batch)
        if processing_status(batch, now) != "ended":
            raise not_found(f"Batch {batch.id} has no results yet: it is still processing.")
        if is_archived(batch, now, self._archived_after_s()):
            raise not_found(f"Batch {batch.id} is archived, its results are no longer available.")
        response = web.StreamResponse(headers={"content-disposition": f'attachment; filename="{batch.id}_results.jsonl"'})
        response.enable_chunked_encoding()
        cut = self.faults.strike("results", "results") is not None
        chunks = results_chunks(self.books, batch)
        await response.prepare(request)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            if cut:
                await response.write(chunk[: _inside_a_line(chunk)])
                if request.transport is not None:
                    request.transport.close()
                return response
            await response.write(chunk)
        await response.write_eof()
        return response

    def _create(self, upload: Upload, headers: Headers) -> Batch:
        version = headers["anthropic-version"]
        betas = frozenset(beta.strip() for beta in headers.get("anthropic-beta", "").split(",") if beta.strip())
        if not upload.body_bytes:
            raise invalid_request("The request body is empty")
        # Closed by its last reader: the requests are views into it.
        body = memoryview(mmap.mmap(upload.file.fileno(), 0, access=mmap.ACCESS_READ))
        try:
            return self._store(read_envelope(body), version, betas, upload, headers)
        except RecursionError:
            raise invalid_request("The request body is nested too deeply") from None

    def _store(self, items: list[Item], version: str, betas: frozenset[str], upload: Upload, headers: Headers) -> Batch:
        self._check_queue(len(items))
        if self.faults.setting("strict-create") is not None:
            _check_params(items, version, betas)
        faults = self.faults.draw_requests([item.custom_id for item in items])
        faults |= {name: number for name in _STORED_SETTINGS if (number := self.faults.setting(name)) is not None}
        retries = headers.get("x-stainless-retry-count", "0")
        template = Batch(
            id="",
            number=0,
            created_at=0.0,
            takes_s=self.takes_s + (self.faults.setting("slow-batch") or 0.0),
            count=0,
            version=version,
            betas=tuple(sorted(betas)),
            retry_count=int(retries) if retries.isdigit() else 0,
            body_sha256=upload.sha256,
            faults=faults,
        )
        return self.books.add(template, items, partial(judge_request, version, betas, faults), self.clock)

    def _check_queue(self, count: int) -> None:
        limit = self.faults.setting("queue-limit")
        if limit is None:
            return
        queued = sum(batch.count for batch in self.books.newest_first() if processing_status(batch, self._now(batch)) != "ended")
        if queued + count > limit:
            raise WireError(
                429,
                "rate_limit_error",
                f"This request would exceed your organization's limit of {limit:.0f} batch requests in processing ({queued} queued).",
                headers={"retry-after": "1"},
            )

    def _find(self, request: web.Request) -> Batch:
        batch = self.books.find(request.match_info["batch_id"])
        if batch is None:
            raise not_found()
        return batch

    def _reply(self, batch: Batch, request: web.Request) -> web.Response:
        return web.json_response(self._describe(batch, request))

    def _describe(self, batch: Batch, request: web.Request) -> dict[str, object]:
        return describe_batch(batch, self._now(batch), _base_url(request), self._archived_after_s())

    def _archived_after_s(self) -> float:
        after_s = self.faults.setting("archive")
        return ARCHIVED_AFTER_S if after_s is None else after_s

    def _now(self, batch: Batch) -> float:
        return hold_back(batch, self.clock(), held_from=self.faults.setting("hold"))


def _check_params(items: list[Item], version: str, betas: frozenset[str]) -> None:
    for position, item in enumerate(items):
        question = read_question(memoryview(item.params), version, betas, batch=True)
        if isinstance(question, Refusal):
            raise invalid_request(f"requests.{position}.params.{question.message}")


def _page_size(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MAX_PAGE:
        raise invalid_request(f"limit: Input should be between 1 and {MAX_PAGE}")
    return int(text)


def _inside_a_line(chunk: bytes) -> int:
    cut = len(chunk) // 2
    return cut + 2 if b"\n" in chunk[cut - 1 : cut + 1] else cut


def _base_url(request: web.Request) -> str:
    return f"http://{request.host}"
