"""Requests as they stand in a POST body, one at a time, and their keys as people read them."""

import numpy as np

from claude_batch_dagster.core.request import Request, custom_id
from claude_batch_dagster.storage.keys import Keys, write_digits


def encode_line(task_name: str, request: Request, tag: str) -> bytes:
    """Return one request as it stands in a POST body."""
    return b'{"custom_id":"%s","params":%s}' % (custom_id(task_name, request.key.hex(), tag).encode(), request.params)


def key_digits(keys: Keys) -> list[bytes]:
    """Return keys as 32 hex digits each."""
    digits = np.empty((len(keys), 32), np.uint8)
    write_digits(keys, digits)
    return [row.tobytes() for row in digits]
