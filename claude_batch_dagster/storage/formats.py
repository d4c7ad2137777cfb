"""Reads a record's file: one that a newer version wrote, or that is damaged, is refused before anybody acts on half of it."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.store import Store, join_uri

T = TypeVar("T")

FORMAT = 1
"""Of every record that this version writes; a version that reads it differently counts on."""


class _Head(msgspec.Struct):
    format: int = FORMAT


def decode_stored(store: Store, path: str, content: bytes, decode: Callable[[bytes], T]) -> T:
    """Return a record from its file's content.

    Args:
        store: Where it is.
        path: The record's.
        content: Of the file.
        decode: Reads the content of a known format; raises msgspec.DecodeError where it is none.

    Raises:
        RootError: Terminal. A newer version wrote it, or it is no record.
    """
    try:
        check_format(store, path, content, FORMAT)
        return decode(content)
    except msgspec.DecodeError as error:
        raise RootError(f"{join_uri(store.uri, path)} is damaged: {error}. Nothing was sent. Restore the file.") from error


def check_format(store: Store, path: str, content: bytes, newest: int) -> None:
    """Refuse a record's file of a format above `newest`.

    Raises:
        RootError: Terminal. A newer version wrote it.
        msgspec.DecodeError: It is no record.
    """
    written = msgspec.json.decode(content, type=_Head).format
    if written > newest:
        raise RootError(
            f"{join_uri(store.uri, path)} was written by a newer claude-batch-dagster: its format is {written}, this version reads up to {newest}. Nothing was sent. "
            "Upgrade this machine to the version that the others have."
        )
