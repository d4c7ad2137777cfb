"""The body of a create call: read without copying the requests, refused as a whole when its envelope is wrong."""

import codecs
import re
from typing import Annotated

import msgspec

from claude_batch_dagster.simulator.wire import WireError, invalid_request

MAX_REQUESTS = 100_000
MAX_BODY_BYTES = 256_000_000
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")
_CHUNK_BYTES = 1 << 20


class Item(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One request; `params` is a view into the body."""

    custom_id: Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}\\Z")]
    params: msgspec.Raw


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The whole body."""

    requests: list[Item]


_STRICT = msgspec.json.Decoder(Envelope)


def read_envelope(body: "memoryview[int]") -> list[Item]:
    """The requests of a create body, as views into it.

    Raises:
        WireError: 400, with the path of the first offence; nothing may be created.
    """
    _check_utf8(body)
    try:
        items = _STRICT.decode(body).requests
    except msgspec.ValidationError:
        raise _explain(body) from None
    except msgspec.DecodeError as error:
        raise invalid_request(f"The request body is not valid JSON: {error}") from None
    if not items:
        raise invalid_request("requests: List should have at least 1 item after validation, not 0")
    if len(items) > MAX_REQUESTS:
        raise invalid_request(f"requests: List should have at most {MAX_REQUESTS} items after validation, not {len(items)}")
    seen: set[str] = set()
    for position, item in enumerate(items):
        if bytes(memoryview(item.params)[:1]) != b"{":
            raise invalid_request(f"requests.{position}.params: Input should be a valid dictionary")
        if item.custom_id in seen:
            raise invalid_request(f"requests.{position}.custom_id: custom_id must be unique, '{item.custom_id}' is used more than once")
        seen.add(item.custom_id)
    return items


def _check_utf8(body: "memoryview[int]") -> None:
    # msgspec skips over raw values without looking at their encoding.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _CHUNK_BYTES):
            decoder.decode(body[start : start + _CHUNK_BYTES])
        decoder.decode(b"", True)
    except UnicodeDecodeError as error:
        raise invalid_request(f"The request body is not valid UTF-8: {error.reason}") from None


def _explain(body: "memoryview[int]") -> WireError:
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return invalid_request("Input should be a valid dictionary")
    if "requests" not in fields:
        return invalid_request("requests: Field required")
    for name in fields:
        if name != "requests":
            return invalid_request(f"{name}: Extra inputs are not permitted")
    try:
        items = msgspec.json.decode(fields["requests"], type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return invalid_request("requests: Input should be a valid list")
    for position, raw in enumerate(items):
        if message := _item_fault(raw):
            return invalid_request(f"requests.{position}{message}")
    return invalid_request("requests: Input should be a valid list of requests")


def _item_fault(raw: msgspec.Raw) -> str | None:
    try:
        item = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return ": Input should be a valid dictionary"
    for name in ("custom_id", "params"):
        if name not in item:
            return f".{name}: Field required"
    custom_id = msgspec.json.decode(item["custom_id"])
    if not isinstance(custom_id, str):
        return ".custom_id: Input should be a valid string"
    if not CUSTOM_ID.match(custom_id):
        if len(custom_id) > 64:
            return ".custom_id: String should have at most 64 characters"
        return ".custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
    for name in item:
        if name not in ("custom_id", "params"):
            return f".{name}: Extra inputs are not permitted"
    return None
