r"""The layout of a POST body, and how requests are packed into bodies.

A body is `{"requests":[`, one request a line, lines ended by `,\n`, then `]}`. JSON escapes line breaks, so a line break in a body
always ends a request.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from claude_batch_dagster.core.request import TAG_LENGTH

HEAD = b'{"requests":['
SEPARATOR = b",\n"
TAIL = b"]}"
LINE_HEAD = b'{"custom_id":"'

MAX_REQUESTS = 100_000
MAX_BODY_BYTES = 256_000_000
"""Source: platform.claude.com batch processing, "256 MB" taken as the smaller reading (checked 2026-11-22)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: the shard, from 0, and its position in it, from 0."""

    shard: int
    position: int


class ShardPacker:
    """Gives each request, in order, its place, so that no body exceeds a limit. Counts encoded bytes, envelope included.

    Args:
        max_requests: Requests in a body, 1 to 100,000.
        max_body_bytes: Bytes of a body.
    """

    def __init__(self, *, max_requests: int = MAX_REQUESTS, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_requests = min(max_requests, MAX_REQUESTS)
        self._max_body_bytes = max_body_bytes
        self._shard = 0
        self._requests = 0
        self._body_bytes = len(HEAD) + len(TAIL)

    def place(self, line_bytes: int) -> Place | None:
        """Return the next request's place, None where it exceeds a body's bytes on its own.

        Args:
            line_bytes: Of the encoded request, without a separator.
        """
        if not fits_alone(line_bytes, self._max_body_bytes):
            return None
        grown = self._body_bytes + line_bytes + (len(SEPARATOR) if self._requests else 0)
        if self._requests == self._max_requests or grown > self._max_body_bytes:
            self._shard += 1
            self._requests = 0
            grown = len(HEAD) + line_bytes + len(TAIL)
        self._body_bytes = grown
        self._requests += 1
        return Place(self._shard, self._requests - 1)

    @property
    def shards(self) -> int:
        """How many bodies were begun."""
        return self._shard + 1 if self._requests else 0


def fits_alone(line_bytes: int, max_body_bytes: int = MAX_BODY_BYTES) -> bool:
    """Tell whether a body of one request keeps the limit."""
    return len(HEAD) + line_bytes + len(TAIL) <= max_body_bytes


def iter_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the requests of a body, each as it was encoded, holding no more than one chunk and one request."""
    rest = b""
    begun = False
    for chunk in chunks:
        rest += chunk
        if not begun:
            if len(rest) < len(HEAD):
                continue
            rest = rest.removeprefix(HEAD)
            begun = True
        *lines, rest = rest.split(b"\n")
        yield from (line.removesuffix(b",") for line in lines)
    if rest != TAIL:
        yield rest.removesuffix(TAIL)


def line_custom_id(line: bytes) -> str:
    """Return the `custom_id` of an encoded request."""
    return line[len(LINE_HEAD) : line.index(b'"', len(LINE_HEAD))].decode()


def params_bytes(line: bytes) -> int:
    """Return the length of an encoded request's `params`."""
    return len(line) - line.index(b'"', len(LINE_HEAD)) - len(b'","params":') - len(b"}")


def line_max_tokens(line: bytes) -> int:
    """Return the `max_tokens` of an encoded request."""
    return _read_caps(line).params.max_tokens


def raise_line(line: bytes, max_tokens: int) -> bytes:
    """Return the same request with another `max_tokens`; every other byte of its params, and its key, stay as they are."""
    parts = _read_parts(line)
    params = _read_parts(parts["params"])
    params["max_tokens"] = msgspec.Raw(b"%d" % max_tokens)
    parts["params"] = msgspec.Raw(msgspec.json.encode(params))
    return msgspec.json.encode(parts)


def retag_line(line: bytes, tag: str) -> bytes:
    """Return the same request under another submission's tag."""
    end = line.index(b'"', len(LINE_HEAD))
    return line[: end - TAG_LENGTH] + tag.encode() + line[end:]


class _Caps(msgspec.Struct):
    max_tokens: int


class _CappedLine(msgspec.Struct):
    params: _Caps


_read_caps = msgspec.json.Decoder(_CappedLine).decode
_read_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
