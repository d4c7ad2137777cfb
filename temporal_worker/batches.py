"""The Message Batches API as the worker uses it, and the only file that imports anthropic.

Retries are Temporal's: here nothing is sent twice, and no redirect is followed. What the vendor or the network did is told in the
words of core.errors; for a create there is a third end besides created and not created, which is that nobody knows.
Source: platform.claude.com batch processing and errors; `anthropic` 2.12.0 and httpx2 as measured on a loopback server (2026-11-22).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TypeVar, cast
from urllib.parse import quote, urlsplit

import anthropic
import httpx2
import msgspec

from claude_batch_dagster.core.errors import (
    ClaudeBatchError,
    CredentialsError,
    RefusedError,
    SpendLimitError,
    TransientError,
    VendorUnavailableError,
)
from temporal_worker.transport import ONE_USE, open_send_transport
from temporal_worker.vendor import Batch, Created, CreateResult, Model, NotCreated, UnknownOutcome, VendorReply
from temporal_worker.wire import WireBatch, WireModel, WirePage, describe_batch

T = TypeVar("T")

MESSAGES_PATH = "/v1/messages"
BATCHES_PATH = f"{MESSAGES_PATH}/batches"
ANTHROPIC_HOST = "api.anthropic.com"
RESULT_CHUNK_BYTES = 1 << 20
MAX_PAGE = 1_000
MAX_REASON_CHARS = 300
CALL_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
DOCTOR_TIMEOUT = httpx2.Timeout(6.0, connect=4.0)
CREATE_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
# The vendor's own limit for an answer that is not streamed.
ANSWER_TIMEOUT_S = 600.0

STATUS_TABLE: tuple[tuple[range | frozenset[int], type[ClaudeBatchError], bool], ...] = (
    (frozenset({401, 403}), CredentialsError, False),
    (frozenset({429}), VendorUnavailableError, False),
    (frozenset({408, 409, 425, 499}), VendorUnavailableError, True),
    (range(400, 500), RefusedError, False),
    (range(300, 400), VendorUnavailableError, True),
    (range(500, 600), VendorUnavailableError, True),
)
"""HTTP statuses, first match wins: what they are to us, and whether a create that got them may still have created a batch."""

SPEND_CODES = frozenset({"enforced_spend_limit_reached", "contract_spend_limit_reached", "linked_organization_spend_limit_reached"})
"""A 429 with one of these does not pass by waiting."""
OWN_SPEND_LIMIT = "You have reached your specified"
"""How the message of a 400 begins when the limit that an organization or workspace set itself is reached: it has no code of its own."""

NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol, httpx2.ProxyError)
"""Failures before the first byte of a request left."""


class Batches:
    """The vendor's API behind one key. Threads may share it.

    Args:
        api_key: Never logged, never part of a message.
        base_url: None for Anthropic's own.
        timeout: Of every call but those that send a batch or wait for an answer.
    """

    def __init__(self, api_key: str, base_url: str | None = None, *, timeout: httpx2.Timeout = CALL_TIMEOUT) -> None:
        for name in ("anthropic", "httpx2", "httpcore2"):
            # Below WARNING these log URLs, headers and request options.
            logging.getLogger(name).setLevel(logging.WARNING)
        self.base_url = base_url or f"https://{ANTHROPIC_HOST}"
        self._api_key = api_key
        self._endpoint: str | None = None
        self._options: anthropic.RequestOptions = {"max_retries": 0, "timeout": timeout, "follow_redirects": False}

    @cached_property
    def _client(self) -> anthropic.Anthropic:
        return _make_client(self._api_key, self.base_url, httpx2.Limits())

    @cached_property
    def _sender(self) -> anthropic.Anthropic:
        return _make_client(self._api_key, self.base_url, ONE_USE, open_send_transport())

    def close(self) -> None:
        """Close the connections."""
        for name in ("_client", "_sender"):
            if name in self.__dict__:
                self.__dict__[name].close()

    def find_endpoint(self) -> str:
        """Return the name that answers are filed under: anthropic | simulator | host_port. Asks a foreign server once who it is.

        Raises:
            VendorUnavailableError: Transient. The server cannot be reached.
        """
        if self._endpoint is None:
            parts = urlsplit(self.base_url)
            if parts.hostname == ANTHROPIC_HOST:
                self._endpoint = "anthropic"
            else:
                port = parts.port or (443 if parts.scheme == "https" else 80)
                simulated = "simulator" in self._ask_server().lower()
                self._endpoint = "simulator" if simulated else f"{parts.hostname}_{port}"
        return self._endpoint

    def check_key_and_list(self) -> VendorReply:
        """Prove that the key works, by listing one batch.

        Raises:
            CredentialsError: Terminal.
            VendorUnavailableError: Transient.
        """
        response = self._get(f"{BATCHES_PATH}?limit=1", "the list of batches")
        return VendorReply(date=response.headers.get("date", ""), workspace_id=response.headers.get("anthropic-workspace-id"))

    def get_model(self, model: str) -> Model | None:
        """Return a model, None where the vendor has none of this id.

        Raises:
            CredentialsError: Terminal.
            VendorUnavailableError: Transient.
        """
        try:
            response = self._get(f"/v1/models/{quote(model, safe='')}", f"model {model}")
        except RefusedError as error:
            if error.context.get("status") == 404:
                return None
            raise
        found = _decode(response, WireModel, f"model {model}")
        return Model(
            id=found.id,
            lifecycle=found.lifecycle,
            retires_at=found.retires_at,
            max_tokens=found.max_tokens,
            max_input_tokens=found.max_input_tokens,
            capabilities=found.capabilities or {},
        )

    def ask(self, params: bytes) -> bytes:
        """Ask one request of the Messages API, at its full price, and return the message as JSON. Sent once.

        Raises:
            CredentialsError: Terminal.
            RefusedError: Terminal. The request cannot be asked as it is; with status 504 in its context it had no answer in ten minutes.
            VendorUnavailableError: Transient. Asking again may pay again.
        """
        what = "the try of a sample text"
        options: anthropic.RequestOptions = {
            **self._options,
            "headers": {"Content-Type": "application/json"},
            "timeout": httpx2.Timeout(ANSWER_TIMEOUT_S, connect=10.0),
        }
        try:
            response = self._sender.post(MESSAGES_PATH, cast_to=httpx2.Response, content=params, options=options)
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            if isinstance(error.__cause__ or error, httpx2.ReadTimeout) or getattr(error, "status_code", None) == 504:
                # What takes so long takes as long the next time, and may be paid each time.
                raise RefusedError(f"{what}: no answer within {ANSWER_TIMEOUT_S:.0f} s. Lower effort or max_tokens.", status=504) from error
            raise translate_error(error, what) from error
        return bytes(_decode(response, msgspec.Raw, what))

    def create(self, body: Iterator[bytes], body_bytes: int) -> CreateResult:
        """POST a batch once: no retry, no redirect. Never raises for what the vendor, the network or the body does.

        Args:
            body: The request body in chunks, none of them empty. An exception that it raises before its end leaves an incomplete body,
                which no server accepts.
            body_bytes: Sent as Content-Length.
        """
        sending = _Sending(body, body_bytes)
        options: anthropic.RequestOptions = {
            **self._options,
            "headers": {"Content-Length": str(body_bytes), "Content-Type": "application/json"},
            "timeout": CREATE_TIMEOUT,
        }
        try:
            response = self._sender.post(BATCHES_PATH, cast_to=httpx2.Response, content=iter(sending), options=options)
            batch = msgspec.json.decode(response.content, type=WireBatch)
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            return _explain_failed_create(error, sending)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return UnknownOutcome(why="the API said success, in a reply that cannot be read")
        return Created(batch_id=batch.id, created_at=batch.created_at.isoformat())

    def get(self, batch_id: str) -> Batch:
        """Return a batch as it is now.

        Raises:
            CredentialsError: Terminal.
            RefusedError: Terminal. With status 404 in its context: this workspace has no such batch.
            VendorUnavailableError: Transient.
        """
        what = f"batch {batch_id}"
        return _to_batch(self._get(_batch_path(batch_id), what), what)

    def list_batches(self, *, created_after: datetime | None = None, limit: int = MAX_PAGE) -> Iterator[Batch]:
        """Yield the workspace's batches, newest first, page by page as they are asked for; ends at the first that is too old.

        Args:
            created_after: Aware. A batch that was created before is not yielded, nor any after it; None for all.
            limit: Batches a page, 1 to 1,000.

        Raises:
            CredentialsError: Terminal.
            VendorUnavailableError: Transient. What was yielded is right, the rest is not known.
        """
        what, after = "the list of batches", ""
        while True:
            try:
                response = self._get(f"{BATCHES_PATH}?limit={limit}{after}", what)
            except RefusedError as error:
                # The batch that the page starts after was deleted meanwhile.
                raise VendorUnavailableError(f"{error} It is listed again.") from error
            page, now = _decode(response, WirePage, what), _read_date(response)
            for found in page.data:
                if created_after is not None and found.created_at < created_after:
                    return
                yield describe_batch(found, now, None)
            if not (page.has_more and page.data):
                return
            after = f"&after_id={quote(page.data[-1].id, safe='')}"

    def cancel(self, batch_id: str) -> None:
        """Ask the vendor to stop a batch; one that ended already is left as it is.

        Raises:
            CredentialsError: Terminal.
            RefusedError: Terminal.
            VendorUnavailableError: Transient.
        """
        what = f"canceling batch {batch_id}"
        try:
            self._client.post(
                f"{_batch_path(batch_id)}/cancel",
                cast_to=httpx2.Response,
                options=self._options,
            )
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            failure = translate_error(error, what)
            if isinstance(failure, RefusedError) and failure.context.get("status") != 404 and self.get(batch_id).ended:
                return
            raise failure from error

    @contextmanager
    def stream_results(self, batch_id: str) -> Iterator[Iterator[bytes]]:
        """Give the results file of an ended batch, as it comes over the wire. It has no line break at its end.

        The address is made from the id: the `results_url` of a reply would take the key to whatever host it names.

        Raises:
            CredentialsError: Terminal.
            RefusedError: Terminal. The results are gone.
            VendorUnavailableError: Transient; also while chunks are read, where the stream was cut.
        """
        what = f"the results of batch {batch_id}"
        try:
            stream: object = self._client.get(
                f"{_batch_path(batch_id)}/results",
                cast_to=httpx2.Response,
                stream=True,
                stream_cls=anthropic.Stream[object],
                options={**self._options, "headers": {"Accept": "application/binary"}},
            )
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise translate_error(error, what) from error
        # With cast_to=Response the SDK hands out the response itself, whatever the stream class.
        response = cast(httpx2.Response, stream)
        try:
            yield _read_chunks(response, what)
        finally:
            response.close()

    def _get(self, path: str, what: str) -> httpx2.Response:
        try:
            return self._client.get(
                path,
                cast_to=httpx2.Response,
                options=self._options,
            )
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise translate_error(error, what) from error

    def _ask_server(self) -> str:
        try:
            response = self._client.get(
                f"{BATCHES_PATH}?limit=1",
                cast_to=httpx2.Response,
                options=self._options,
            )
        except anthropic.APIStatusError as error:
            response = error.response
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            raise translate_error(error, "the list of batches") from error
        server: str = response.headers.get("server", "")
        return server


def translate_error(error: Exception, what: str) -> ClaudeBatchError:
    """Return our error for one of the SDK's or of httpx2.

    Args:
        error: As caught around one call.
        what: What was asked for, with ids.
    """
    if not isinstance(error, anthropic.APIStatusError):
        cause = error.__cause__ if isinstance(error, anthropic.APIConnectionError) and error.__cause__ else error
        never_sent = isinstance(cause, NEVER_SENT)
        return VendorUnavailableError(f"{what}: no reply from the API ({type(cause).__name__}). It is tried again.", never_sent=never_sent)
    status = error.status_code
    kind, _ = _look_up(status)
    reason = f"HTTP {status}{f' {error.type}' if error.type else ''}{f', request {error.request_id}' if error.request_id else ''}"
    said = f": {error.api_message[:MAX_REASON_CHARS]}" if error.api_message else ""
    if kind is CredentialsError:
        return CredentialsError(
            f"{what}: the API refuses this key ({reason}{said}). Check ANTHROPIC_API_KEY of the worker.",
            status=status,
        )
    if status == 402 or error.error_code in SPEND_CODES or (error.api_message or "").startswith(OWN_SPEND_LIMIT):
        return SpendLimitError(f"{what}: the account may not spend more ({reason}{said}). Raise its limit at Anthropic.", status=status)
    if kind is RefusedError:
        return RefusedError(
            f"{what}: refused by the API ({reason}{said}). The same again is refused: change what it names.",
            status=status,
            code=error.error_code,
        )
    return VendorUnavailableError(
        f"{what}: the API cannot now ({reason}). It is tried again.",
        retry_after_s=read_retry_after(error.response.headers),
        status=status,
    )


def read_retry_after(headers: httpx2.Headers) -> float | None:
    """Return the seconds that a reply asks to wait, None where it does not say; a date counts from the reply's own `Date`."""
    text: str = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
        return max(0.0, (until - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError):
        return None


class _Sending:
    """A body on its way: how much of it was handed out, and how it failed, if it did."""

    def __init__(self, body: Iterator[bytes], body_bytes: int) -> None:
        self._body = body
        self._body_bytes = body_bytes
        self._handed_bytes = 0
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._body:
                self._handed_bytes += len(chunk)
                yield chunk
        except Exception as error:  # whatever the source raises is kept beside what the client makes of it, and raised on
            self.failure = error
            raise

    @property
    def complete(self) -> bool:
        """Whether the last byte was handed to the connection; until then nothing can have been accepted."""
        return self._handed_bytes >= self._body_bytes


def _make_client(api_key: str, base_url: str, limits: httpx2.Limits, transport: httpx2.HTTPTransport | None = None) -> anthropic.Anthropic:
    if transport is None:
        http_client = anthropic.DefaultHttpxClient(limits=limits, follow_redirects=False)
    else:
        http_client = anthropic.DefaultHttpxClient(transport=transport, follow_redirects=False)
    return anthropic.Anthropic(
        api_key=api_key, base_url=base_url, max_retries=0, timeout=CALL_TIMEOUT, open_telemetry=False, http_client=http_client
    )


def _explain_failed_create(error: Exception, sending: _Sending) -> NotCreated | UnknownOutcome:
    what = "Creating a batch"
    if sending.failure is not None:
        failure = sending.failure
        if not isinstance(failure, ClaudeBatchError):
            failure = TransientError(f"{what}: its body could not be read ({type(failure).__name__}). Nothing was sent. It is tried again.")
        return NotCreated(error=failure)
    ours = translate_error(error, what)
    if isinstance(error, anthropic.APIStatusError):
        may_have_created = _look_up(error.status_code)[1]
        why = f"the API answered HTTP {error.status_code}, which does not say whether the batch was created"
    else:
        may_have_created = not isinstance(error.__cause__ or error, NEVER_SENT)
        why = f"the connection ended without a reply ({type(error.__cause__ or error).__name__})"
    if may_have_created and sending.complete:
        return UnknownOutcome(why=why)
    return NotCreated(error=ours)


def _look_up(status: int) -> tuple[type[ClaudeBatchError], bool]:
    for statuses, kind, may_have_created in STATUS_TABLE:
        if status in statuses:
            return kind, may_have_created
    return VendorUnavailableError, True


def _batch_path(batch_id: str) -> str:
    return f"{BATCHES_PATH}/{quote(batch_id, safe='')}"


def _decode(response: httpx2.Response, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VendorUnavailableError(f"{what}: the reply cannot be read. It is tried again.") from error


def _read_chunks(response: httpx2.Response, what: str) -> Iterator[bytes]:
    try:
        held, size = list[bytes](), 0
        # With a size of its own httpx2 copies everything twice more.
        for chunk in response.iter_bytes():
            held.append(chunk)
            size += len(chunk)
            if size >= RESULT_CHUNK_BYTES:
                yield b"".join(held)
                held, size = list[bytes](), 0
        if held:
            yield b"".join(held)
    except httpx2.HTTPError as error:
        raise VendorUnavailableError(f"{what}: the stream was cut ({type(error).__name__}). It is read again.") from error


def _to_batch(response: httpx2.Response, what: str) -> Batch:
    return describe_batch(_decode(response, WireBatch, what), _read_date(response), read_retry_after(response.headers))


def _read_date(response: httpx2.Response) -> datetime | None:
    try:
        return parsedate_to_datetime(response.headers.get("date", ""))
    except (ValueError, TypeError):
        return None
