"""What every reply is made of: ids, times, error bodies, and the one source of chance."""

import hashlib
import secrets
import string
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


class WireError(Exception):
    """A refusal of a whole HTTP call, as the API words it."""

    def __init__(
        self,
        status: int,
        error_type: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, error_type, message)
        self.status = status
        self.error_type = error_type
        self.message = message
        self.headers = dict(headers or {})
        self.details = dict(details or {})


def invalid_request(message: str) -> WireError:
    """HTTP 400: the caller has to change the request."""
    return WireError(400, "invalid_request_error", message)


def not_found(message: str = "Not found") -> WireError:
    """HTTP 404."""
    return WireError(404, "not_found_error", message)


def error_object(error_type: str, message: str, request_id: str | None, details: Mapping[str, str] | None = None) -> dict[str, object]:
    """The doubly nested error that HTTP bodies and errored result lines share."""
    error: dict[str, object] = {"type": error_type, "message": message}
    if details:
        error["details"] = dict(details)
    return {"type": "error", "error": error, "request_id": request_id}


def error_body(error: WireError, request_id: str) -> bytes:
    """The JSON body of a refused call; the 413 has Cloudflare's shape, without outer type and request_id."""
    if error.status == 413:
        return orjson.dumps({"error": {"type": error.error_type, "message": error.message}})
    return orjson.dumps(error_object(error.error_type, error.message, request_id, error.details))


def new_id(prefix: str) -> str:
    """A fresh id such as `msgbatch_01` and 22 random base62 digits."""
    return prefix + "".join(secrets.choice(BASE62) for _ in range(22))


def derived_id(prefix: str, *parts: str) -> str:
    """The same id for the same parts, of the same length as `new_id`."""
    return prefix + hashlib.blake2b("\0".join(parts).encode(), digest_size=11).hexdigest()


def draw(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the parts."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=6).digest()) / 2**48


def timestamp(epoch_s: float) -> str:
    """RFC 3339 in UTC with six decimals and `+00:00`, as recorded from the API."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="microseconds")
