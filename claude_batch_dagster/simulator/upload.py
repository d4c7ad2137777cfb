"""A request body on its way to disk: complete, or nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from claude_batch_dagster.simulator.wire import WireError, invalid_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A whole body in a file that is gone when closed."""

    file: BinaryIO
    body_bytes: int
    sha256: str


class BodyIncompleteError(Exception):
    """The client went away before the last byte; there is nobody to answer."""


async def receive_body(request: web.Request, spool: Callable[[], BinaryIO], max_bytes: int) -> Upload:
    """Spool the body; the caller closes the file.

    Raises:
        BodyIncompleteError: the connection ended early.
        WireError: 413 over `max_bytes`, 400 for a content encoding.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WireError(
            400,
            "invalid_request_error",
            f"content-encoding '{encoding}' is not supported",
            details={"error_code": "request_body_encoding_unsupported"},
        )
    if (request.content_length or 0) > max_bytes:
        raise _too_large()
    digest = hashlib.sha256()
    body_bytes = 0
    file = spool()
    try:
        async for chunk in request.content.iter_any():
            body_bytes += len(chunk)
            if body_bytes > max_bytes:
                raise _too_large()
            digest.update(chunk)
            file.write(chunk)
        if request.content_length is not None and body_bytes != request.content_length:
            raise BodyIncompleteError
        file.flush()
    except (aiohttp.ClientError, ConnectionError, HttpProcessingError) as error:
        file.close()
        raise BodyIncompleteError from error
    except BaseException:
        file.close()
        raise
    return Upload(file=file, body_bytes=body_bytes, sha256=digest.hexdigest())


async def receive_small_body(request: web.Request, max_bytes: int) -> bytes:
    """The body in memory.

    Raises:
        BodyIncompleteError: the connection ended early.
        WireError: 413 over `max_bytes`, 400 for an empty one.
    """
    chunks: list[bytes] = []
    body_bytes = 0
    try:
        async for chunk in request.content.iter_any():
            body_bytes += len(chunk)
            if body_bytes > max_bytes:
                raise _too_large()
            chunks.append(chunk)
    except (aiohttp.ClientError, ConnectionError, HttpProcessingError) as error:
        raise BodyIncompleteError from error
    if not body_bytes:
        raise invalid_request("The request body is empty")
    return b"".join(chunks)


async def receive_half(request: web.Request) -> None:
    """Read a body up to its middle; the rest is left on the wire.

    Raises:
        BodyIncompleteError: the connection ended early.
    """
    left_bytes = (request.content_length or 0) // 2
    try:
        while left_bytes > 0 and (chunk := await request.content.read(left_bytes)):
            left_bytes -= len(chunk)
    except (aiohttp.ClientError, ConnectionError, HttpProcessingError) as error:
        raise BodyIncompleteError from error


def _too_large() -> WireError:
    return WireError(413, "request_too_large", "Request exceeds the maximum size")
