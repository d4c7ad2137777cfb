"""temporal_worker/batches.py: every reply and every failure of the vendor, in our words. The vendor is a socket on loopback."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anthropic
import httpx2
import pytest

from claude_batch_dagster.core.errors import (
    ClaudeBatchError,
    CredentialsError,
    RefusedError,
    RootError,
    SpendLimitError,
    TransientError,
    VendorUnavailableError,
)
from temporal_worker.batches import Batches, read_retry_after, translate_error
from temporal_worker.vendor import Created, NotCreated, UnknownOutcome

BATCH = (
    b'{"id":"msgbatch_1","type":"message_batch","processing_status":"in_progress","request_counts":{"processing":2,"succeeded":0,'
    b'"errored":0,"canceled":0,"expired":0},"ended_at":null,"created_at":"2026-11-23T03:11:15.5Z","expires_at":"2026-11-24T03:11:15Z",'
    b'"archived_at":null,"cancel_initiated_at":null,"results_url":null}'
)
BODY = b'{"requests":[]}'


def reply(status: int, body: bytes = b"{}", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "content-type: application/json", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error_body(kind: str, code: str | None = None, text: str = "said the vendor") -> bytes:
    details = f',"details":{{"error_code":"{code}"}}' if code else ""
    return f'{{"type":"error","error":{{"type":"{kind}","message":"{text}"{details}}},"request_id":null}}'.encode()


@contextmanager
def vendor(*replies: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection with the next reply; an empty one drops it."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in replies:
                connection, _ = listener.accept()
                with connection:
                    received.append(read_request(connection))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", received
        thread.join(5)


def read_request(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65_536)
    head, _, body = content.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
    while len(body) < length:
        more = connection.recv(65_536)
        if not more:
            break
        body += more
    return head + b"\r\n\r\n" + body


def chunks(*parts: bytes, then: Exception | None = None) -> Iterator[bytes]:
    yield from parts
    if then is not None:
        raise then


CREATE_ROWS: list[tuple[str, bytes, type[ClaudeBatchError] | None]] = [
    ("400", reply(400, error_body("invalid_request_error")), RefusedError),
    (
        "400 spend",
        reply(400, error_body("invalid_request_error", None, "You have reached your specified API usage limits")),
        SpendLimitError,
    ),
    ("401", reply(401, error_body("authentication_error")), CredentialsError),
    ("402", reply(402, error_body("billing_error")), SpendLimitError),
    ("403", reply(403, error_body("permission_error")), CredentialsError),
    ("404", reply(404, error_body("not_found_error")), RefusedError),
    ("408", reply(408), None),
    ("409", reply(409, error_body("conflict_error")), None),
    ("413", reply(413, b"<html>too large</html>"), RefusedError),
    ("422", reply(422), RefusedError),
    ("425", reply(425), None),
    ("429", reply(429, error_body("rate_limit_error"), retry_after="7"), VendorUnavailableError),
    ("429 cap", reply(429, error_body("rate_limit_error", "enforced_spend_limit_reached")), SpendLimitError),
    ("499", reply(499), None),
    ("500", reply(500, error_body("api_error")), None),
    ("502", reply(502, b"<html>bad gateway</html>"), None),
    ("504", reply(504, error_body("timeout_error")), None),
    ("529", reply(529, error_body("overloaded_error")), None),
    ("301", reply(301, location="/elsewhere"), None),
    ("307", reply(307, location="/v1/messages/batches"), None),
    ("200 that is no JSON", reply(200, b'{"id":'), None),
    ("200 of something else", reply(200, b'{"id":"msg_1","type":"message"}'), None),
    ("dropped", b"", None),
    ("dropped in the reply", b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n{", None),
]


@pytest.mark.parametrize(("answer", "kind"), [row[1:] for row in CREATE_ROWS], ids=[row[0] for row in CREATE_ROWS])
def test_what_a_create_ends_as(answer: bytes, kind: type[ClaudeBatchError] | None) -> None:
    """Certainly not created, with our error, or unknown (None); one POST in any case, no redirect followed."""
    with vendor(answer) as (url, received):
        result = Batches("key", url).create(chunks(BODY), len(BODY))
    assert len(received) == 1
    if kind is None:
        assert isinstance(result, UnknownOutcome)
    else:
        assert isinstance(result, NotCreated)
        assert type(result.error) is kind


def test_a_created_batch_is_named() -> None:
    """The body goes out as it is, with its length and without a retry's mark."""
    with vendor(reply(200, BATCH)) as (url, received):
        assert Batches("key", url).create(chunks(BODY[:5], BODY[5:]), len(BODY)) == Created(
            batch_id="msgbatch_1", created_at="2026-11-23T03:11:15.500000+00:00"
        )
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert body == BODY
    assert f"content-length: {len(BODY)}".encode() in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert b"x-stainless-retry-count: 0" in head.lower()


def test_a_retry_after_is_handed_on() -> None:
    """A 429 says when to come again."""
    with vendor(reply(429, error_body("rate_limit_error"), retry_after="7")) as (url, _):
        result = Batches("key", url).create(chunks(BODY), len(BODY))
    assert isinstance(result, NotCreated)
    assert isinstance(result.error, TransientError)
    assert result.error.retry_after_s == 7


def test_a_connection_that_was_never_made_created_nothing() -> None:
    """Nobody listens at the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = Batches("key", url).create(chunks(BODY), len(BODY))
    assert isinstance(result, NotCreated)
    assert type(result.error) is VendorUnavailableError


@pytest.mark.parametrize(("failure", "kind"), [(RootError("changed"), RootError), (OSError("disk"), TransientError)])
def test_a_body_that_fails_before_its_end_created_nothing(failure: Exception, kind: type[ClaudeBatchError]) -> None:
    """The last byte never left, and Content-Length says so."""
    with vendor(b"") as (url, received):
        result = Batches("key", url).create(chunks(BODY[:5], then=failure), len(BODY))
    assert isinstance(result, NotCreated)
    assert type(result.error) is kind
    assert received[0].endswith(b"\r\n\r\n" + BODY[:5]) or received[0].endswith(b"\r\n\r\n")


READ_ROWS: list[tuple[int, type[ClaudeBatchError]]] = [
    (301, VendorUnavailableError),
    (400, RefusedError),
    (401, CredentialsError),
    (403, CredentialsError),
    (404, RefusedError),
    (408, VendorUnavailableError),
    (409, VendorUnavailableError),
    (429, VendorUnavailableError),
    (500, VendorUnavailableError),
    (529, VendorUnavailableError),
]


@pytest.mark.parametrize(("status", "kind"), READ_ROWS)
@pytest.mark.parametrize(
    "call", [lambda b: b.get("msgbatch_1"), lambda b: b.check_key_and_list(), lambda b: b.stream_results("msgbatch_1").__enter__()]
)
def test_what_reading_ends_as(status: int, kind: type[ClaudeBatchError], call: Callable[[Batches], object]) -> None:
    """Reading has no third end: it can be repeated."""
    with vendor(reply(status, error_body("x"))) as (url, received):
        with pytest.raises(ClaudeBatchError) as raised:
            call(Batches("key", url))
    assert type(raised.value) is kind
    assert raised.value.context["status"] == status
    assert len(received) == 1


@pytest.mark.parametrize("error", [httpx2.ReadTimeout("x"), httpx2.RemoteProtocolError("x"), anthropic.AnthropicError("x")])
def test_failures_without_a_reply_are_transient(error: Exception) -> None:
    """The cause is named by its class."""
    ours = translate_error(error, "batch x")
    assert type(ours) is VendorUnavailableError
    assert type(error).__name__ in str(ours)


def test_a_cut_results_stream_is_transient() -> None:
    """Whatever came before the cut is the caller's to drop."""
    with vendor(b'HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"a":\r\n') as (url, received):
        with Batches("key", url).stream_results("../x") as found:
            with pytest.raises(VendorUnavailableError):
                list(found)
    assert received[0].startswith(b"GET /v1/messages/batches/..%2Fx/results ")


def test_no_key_in_a_message() -> None:
    """Nor in the error's context."""
    with vendor(reply(401, error_body("authentication_error"))) as (url, _):
        with pytest.raises(CredentialsError) as raised:
            Batches("sk-ant-secret", url).check_key_and_list()
    assert "sk-ant-secret" not in f"{raised.value} {raised.value.context}"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 23 Nov 2026 03:12:00 GMT", "date": "Mon, 23 Nov 2026 03:11:00 GMT"}, 60),
        ({"retry-after": "Mon, 23 Nov 2026 03:12:00 GMT"}, None),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    """A date counts from the reply's own clock, not from ours."""
    assert read_retry_after(httpx2.Headers(headers)) == seconds


@pytest.mark.parametrize(("server", "endpoint"), [("claude-batch-simulator/1.0", "simulator"), ("nginx", None)])
def test_a_foreign_server_is_asked_who_it_is(server: str, endpoint: str | None) -> None:
    """Even a refusal says so."""
    with vendor(reply(401, error_body("authentication_error"), server=server)) as (url, _):
        found = Batches("key", url).find_endpoint()
    assert found == (endpoint or url.removeprefix("http://").replace(":", "_"))


def test_anthropic_is_not_asked() -> None:
    """Its name is its host."""
    assert Batches("key").find_endpoint() == "anthropic"


MODEL = (
    b'{"type":"model","id":"m","display_name":"M","lifecycle":"deprecated","retires_at":"2026-11-24T00:00:00Z","max_tokens":9,'
    b'"max_input_tokens":99,"capabilities":{"batch":{"supported":true},"effort":{"supported":true,"max":{"supported":false}}}}'
)


def test_a_model_with_what_it_can() -> None:
    """And None for what the vendor does not say."""
    with vendor(reply(200, MODEL)) as (url, received):
        found = Batches("key", url).get_model("m/../x")
    assert received[0].startswith(b"GET /v1/models/m%2F..%2Fx ")
    assert found is not None
    assert (found.lifecycle, found.retires_at, found.max_tokens, found.max_input_tokens) == ("deprecated", "2026-11-24T00:00:00Z", 9, 99)
    assert (found.supports("batch"), found.supports("effort", "max"), found.supports("thinking", "types", "x")) == (True, False, None)


@pytest.mark.parametrize("body", [b'{"id":"m"}', b'{"id":"m","capabilities":null,"max_tokens":null}'])
def test_a_model_of_a_server_that_tells_less(body: bytes) -> None:
    """It is there, and nothing speaks against it."""
    with vendor(reply(200, body)) as (url, _):
        found = Batches("key", url).get_model("m")
    assert found is not None
    assert (found.lifecycle, found.max_tokens, found.supports("batch")) == ("active", None, None)


def test_a_model_that_is_not_there() -> None:
    """404 is an answer."""
    with vendor(reply(404, error_body("not_found_error"))) as (url, _):
        assert Batches("key", url).get_model("m") is None


def test_a_request_is_asked_once_as_it_is() -> None:
    """The bytes go out untouched, and the message comes back so."""
    with vendor(reply(200, b'{"type":"message","content":[]}')) as (url, received):
        assert Batches("key", url).ask(b'{"model":"m" }') == b'{"type":"message","content":[]}'
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert body == b'{"model":"m" }'
    assert head.startswith(b"POST /v1/messages ")
    assert b"content-type: application/json" in head.lower()
    assert b"x-stainless-retry-count: 0" in head.lower()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(400, error_body("invalid_request_error")), RefusedError),
        (reply(401, error_body("authentication_error")), CredentialsError),
        (reply(404, error_body("not_found_error")), RefusedError),
        (reply(429, error_body("rate_limit_error")), VendorUnavailableError),
        (reply(429, error_body("rate_limit_error", "enforced_spend_limit_reached")), SpendLimitError),
        (reply(500, error_body("api_error")), VendorUnavailableError),
        (reply(504, error_body("timeout_error")), RefusedError),
        (reply(529, error_body("overloaded_error")), VendorUnavailableError),
        (reply(200, b'{"id":"msg'), VendorUnavailableError),
        (b"", VendorUnavailableError),
    ],
)
def test_what_asking_ends_as(answer: bytes, kind: type[ClaudeBatchError]) -> None:
    """One POST in any case; what takes too long is not asked for ever."""
    with vendor(answer) as (url, received):
        with pytest.raises(ClaudeBatchError) as raised:
            Batches("key", url).ask(b"{}")
    assert type(raised.value) is kind
    assert len(received) == 1


def page(*created: tuple[str, str], has_more: bool) -> bytes:
    data = b",".join(
        BATCH.replace(b"msgbatch_1", batch_id.encode()).replace(b"2026-11-23T03:11:15.5Z", at.encode()) for batch_id, at in created
    )
    return b'{"data":[%b],"has_more":%b}' % (data, str(has_more).lower().encode())


def test_batches_are_listed_newest_first_until_the_first_that_is_too_old() -> None:
    """A page is asked for when the one before is used up; what is older is neither yielded nor asked for."""
    first = page(("c", "2026-11-23T03:00:00Z"), ("b", "2026-11-22T03:00:00+00:00"), has_more=True)
    second = page(("a", "2026-11-21T03:00:00Z"), ("old", "2026-10-01T03:00:00Z"), ("older", "2026-09-01T03:00:00Z"), has_more=True)
    with vendor(reply(200, first, date="Mon, 23 Nov 2026 03:00:10 GMT"), reply(200, second)) as (url, received):
        found = list(Batches("key", url).list_batches(created_after=datetime(2026, 11, 1, tzinfo=UTC), limit=2))
    assert [batch.id for batch in found] == ["c", "b", "a"]
    assert [request.split(b" ")[1] for request in received] == [
        b"/v1/messages/batches?limit=2",
        b"/v1/messages/batches?limit=2&after_id=b",
    ]
    assert (found[0].age_s, found[0].requests) == (10.0, 2)


def test_the_list_ends_with_its_last_page() -> None:
    """Where the vendor has no more, and where it says so of an empty page too."""
    with vendor(reply(200, page(("a", "2026-11-23T03:00:00Z"), has_more=False)), reply(200, page(has_more=True))) as (url, received):
        assert [batch.id for batch in Batches("key", url).list_batches()] == ["a"]
        assert list(Batches("key", url).list_batches()) == []
    assert received[0].startswith(b"GET /v1/messages/batches?limit=1000 ")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(401, error_body("authentication_error")), CredentialsError),
        (reply(500, error_body("api_error")), VendorUnavailableError),
        (reply(200, b'{"data":{}}'), VendorUnavailableError),
        (reply(400, error_body("invalid_request_error")), VendorUnavailableError),
    ],
)
def test_a_list_that_breaks_off_raises(answer: bytes, kind: type[ClaudeBatchError]) -> None:
    """What came before is given; an end that is none is never taken for the end."""
    with vendor(reply(200, page(("a", "2026-11-23T03:00:00Z"), has_more=True)), answer) as (url, _):
        found = Batches("key", url).list_batches()
        assert next(found).id == "a"
        with pytest.raises(ClaudeBatchError) as raised:
            next(found)
    assert type(raised.value) is kind
