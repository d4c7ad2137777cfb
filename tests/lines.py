"""Requests as they stand in a POST body, one at a time."""

from claude_batch_dagster.core.request import LineFrame, Request


def encode_line(task_name: str, request: Request, tag: str) -> bytes:
    """Return one request as it stands in a POST body."""
    return LineFrame(task_name, b"").join(tag, [request.key.hex().encode()], [request.params])
