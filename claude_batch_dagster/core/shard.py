r"""The layout of a POST body, and how requests are packed into bodies.

A body is `{"requests":[`, one request a line, lines ended by `,\n`, then `]}`. JSON escapes line breaks, so a line break in a body
always ends a request.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain

import msgspec

from claude_batch_dagster.core.request import LINE_HEAD, SEPARATOR, TAG_LENGTH

HEAD = b'{"requests":['
TAIL = b"]}"

_CAPPED_HEAD = re.compile(rb'","params":\{"max_tokens":(\d+),')

MAX_REQUESTS = 100_000
MAX_BODY_BYTES = 256_000_000
"""Source: platform.claude.com batch processing, "256 MB" taken as the smaller reading (checked 2026-11-22)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: the shard, from 0, and its position in it, from 0."""

    shard: int
    position: int


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive requests of one shard: the place of the first, and how many."""

    shard: int
    position: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The requests of a body in order: the `custom_id` and the `max_tokens` of each."""

    custom_ids: list[str]
    max_tokens: list[int]


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
        (run,) = self.place_all([line_bytes])
        return Place(run.shard, run.position)

    def place_all(self, line_bytes: Sequence[int]) -> list[Run]:
        """Return the places of the next requests.

        Args:
            line_bytes: Of each encoded request, without a separator; each must fit a body on its own.
        """
        ends = [0, *accumulate(line_bytes)]
        runs: list[Run] = []
        start = 0
        while start < len(line_bytes):
            limit = min(self._max_requests - self._requests, len(line_bytes) - start)
            fitting = bisect_right(range(1, limit + 1), self._max_body_bytes, key=partial(self._grown, ends, start))
            if fitting:
                self._body_bytes = self._grown(ends, start, fitting)
                runs.append(Run(self._shard, self._requests, fitting))
                self._requests += fitting
                start += fitting
            else:
                assert self._requests, "a request that exceeds a body on its own is never placed"
                self._shard += 1
                self._requests = 0
                self._body_bytes = len(HEAD) + len(TAIL)
        return runs

    def _grown(self, ends: Sequence[int], start: int, count: int) -> int:
        """Return the body's bytes with so many requests more."""
        separators = count if self._requests else count - 1
        return self._body_bytes + ends[start + count] - ends[start] + separators * len(SEPARATOR)

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


def read_asked(chunks: Iterable[bytes]) -> Asked:
    """Return what the requests of a body ask. Of most of them no more is read than how they begin."""
    asked = _Asking(Asked(custom_ids=[], max_tokens=[]))
    rest = b""
    begun = False
    for chunk in chain(chunks, (b"\n",)):
        if not begun:
            chunk, rest = rest + chunk, b""
            if len(chunk) < len(HEAD):
                rest = chunk
                continue
            chunk, begun = chunk.removeprefix(HEAD), True
        end = chunk.find(b"\n")
        if end < 0:
            rest += chunk
            continue
        asked.read(rest + chunk[: end + 1])
        start = end + 1
        # All but the first line are read where they are.
        start = asked.read(chunk, start)
        rest = chunk[start:]
    return asked.asked


class _Asking:
    """Reads the heads of lines; of lines that begin alike, `max_tokens` is read once."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._head, self._max_tokens = b"", 0

    def read(self, content: bytes, start: int = 0) -> int:
        """Read the lines that end in the content; return where the next one begins."""
        custom_ids, caps = self.asked.custom_ids, self.asked.max_tokens
        head, max_tokens = self._head, self._max_tokens
        while (end := content.find(b"\n", start)) >= 0:
            if end - start > len(TAIL):
                id_end = content.index(b'"', start + len(LINE_HEAD))
                custom_ids.append(content[start + len(LINE_HEAD) : id_end].decode())
                if not head or not content.startswith(head, id_end):
                    found = _CAPPED_HEAD.match(content, id_end)
                    head = found[0] if found else b""
                    max_tokens = int(found[1]) if found else line_max_tokens(content[start:end].removesuffix(TAIL).removesuffix(b","))
                caps.append(max_tokens)
            start = end + 1
        self._head, self._max_tokens = head, max_tokens
        return start


def line_custom_id(line: bytes) -> str:
    """Return the `custom_id` of an encoded request."""
    return line[len(LINE_HEAD) : line.index(b'"', len(LINE_HEAD))].decode()


def line_params(line: bytes) -> bytes:
    """Return an encoded request's `params`."""
    return line[line.index(b'"', len(LINE_HEAD)) + len(b'","params":') : -1]


def line_max_tokens(line: bytes) -> int:
    """Return the `max_tokens` of an encoded request."""
    return _read_caps(line).params.max_tokens


def raise_params(params: bytes, max_tokens: int) -> bytes:
    """Return the same params with another `max_tokens`; every other byte stays as it is."""
    parts = _read_parts(params)
    parts["max_tokens"] = msgspec.Raw(b"%d" % max_tokens)
    return msgspec.json.encode(parts)


def raise_line(line: bytes, max_tokens: int) -> bytes:
    """Return the same request with another `max_tokens`; every other byte of its params, and its key, stay as they are."""
    parts = _read_parts(line)
    parts["params"] = msgspec.Raw(raise_params(bytes(parts["params"]), max_tokens))
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
