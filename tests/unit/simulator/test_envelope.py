import json

import pytest

from claude_batch_dagster.simulator.envelope import read_envelope
from claude_batch_dagster.simulator.wire import WireError

GOOD = {"custom_id": "a", "params": {}}


def encode(*requests: object, **more: object) -> bytes:
    return json.dumps({"requests": list(requests), **more}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request body is not valid JSON"),
        (b"{", "The request body is not valid JSON"),
        (b"[]", "Input should be a valid dictionary"),
        (b"{}", "requests: Field required"),
        (b'{"requests":{}}', "requests: Input should be a valid list"),
        (encode(), "requests: List should have at least 1 item"),
        (encode(GOOD, model="x"), "model: Extra inputs are not permitted"),
        (encode(GOOD, {"params": {}}), "requests.1.custom_id: Field required"),
        (encode(GOOD, {"custom_id": "b"}), "requests.1.params: Field required"),
        (encode(GOOD, 3), "requests.1: Input should be a valid dictionary"),
        (encode({**GOOD, "custom_id": 3}), "requests.0.custom_id: Input should be a valid string"),
        (encode({**GOOD, "custom_id": ""}), "requests.0.custom_id: String should match pattern"),
        (encode({**GOOD, "custom_id": "a.b"}), "requests.0.custom_id: String should match pattern"),
        (encode({**GOOD, "custom_id": "a\n"}), "requests.0.custom_id: String should match pattern"),
        (encode({**GOOD, "custom_id": "a" * 65}), "requests.0.custom_id: String should have at most 64 characters"),
        (encode({**GOOD, "method": "POST"}), "requests.0.method: Extra inputs are not permitted"),
        (encode({**GOOD, "params": []}), "requests.0.params: Input should be a valid dictionary"),
        (encode(GOOD, GOOD), "requests.1.custom_id: custom_id must be unique"),
        (b'{"requests":[{"custom_id":"a","params":{"x":"\xff"}}]}', "The request body is not valid UTF-8"),
    ],
)
def test_whole_batch_is_refused_with_the_path_of_the_offence(body, message):
    with pytest.raises(WireError) as refusal:
        read_envelope(memoryview(body))
    assert refusal.value.status == 400
    assert refusal.value.message.startswith(message)


@pytest.mark.parametrize(
    "body", [encode(GOOD), json.dumps({"requests": [GOOD]}, indent=3).encode(), b'{"requests":[\n{"params":{},"custom_id":"a"}\n]}']
)
def test_any_layout_of_the_body_is_read(body):
    assert [(item.custom_id, bytes(memoryview(item.params))) for item in read_envelope(memoryview(body))] == [("a", b"{}")]


def test_more_than_100000_requests_are_refused():
    body = b'{"requests":[' + b",".join(b'{"custom_id":"%d","params":{}}' % number for number in range(100_001)) + b"]}"
    with pytest.raises(WireError, match="at most 100000 items"):
        read_envelope(memoryview(body))


def test_deeply_nested_body_is_refused(simulator):
    deep = b'{"requests":[{"custom_id":"a","params":{"metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}}]}"
    reply = simulator.call("POST", "/v1/messages/batches", deep)
    assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error")
