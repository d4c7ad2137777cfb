"""A run's tries of its new tasks on a sample text, every record put-if-absent.

- `plans/{run_id}/try-{task_key}-{n}.json` stands before each try is sent, so that those which may be paid are counted and bounded.
- `plans/{run_id}/tried-{task_key}.json` says what came of it and what it cost, usable or not.
"""

from collections.abc import Iterable

import msgspec

from claude_batch_dagster.core.records import TriedRecord, TryRecord
from claude_batch_dagster.storage.formats import decode_stored
from claude_batch_dagster.storage.store import Store

MOST_TRIES = 2
"""Of a task in a run, each of which may be paid."""

_decode = msgspec.json.Decoder(TriedRecord).decode


def tried_path(run_id: str, task_key: str) -> str:
    """Return where a run records what came of its try of a task."""
    return f"plans/{run_id}/tried-{task_key}.json"


def claim_try(store: Store, run_id: str, record: TryRecord) -> str | None:
    """Record that a task is about to be tried; return the record's path, None where as many tries as may be sent were.

    Who created the record, and nobody else, may send, once.
    """
    content = msgspec.json.encode(record)
    paths = (f"plans/{run_id}/try-{record.task_key}-{n}.json" for n in range(MOST_TRIES))
    return next((path for path in paths if store.put_if_absent(path, content)), None)


def read_tried(store: Store, run_id: str, task_key: str) -> TriedRecord | None:
    """Return what came of a run's try of a task, None where it has not tried it.

    Raises:
        RootError: Terminal. The record is damaged, or a newer version's.
    """
    path = tried_path(run_id, task_key)
    content = store.get(path)
    return None if content is None else decode_stored(store, path, content, _decode)


def write_tried(store: Store, run_id: str, record: TriedRecord) -> None:
    """Record what came of a try; the first record of a run and task counts."""
    store.put_if_absent(tried_path(run_id, record.task_key), msgspec.json.encode(record))


def list_tried(store: Store, run_id: str, task_keys: Iterable[str]) -> dict[str, TriedRecord]:
    """Return the tries that a run made of these tasks, by task_key."""
    found = {task_key: read_tried(store, run_id, task_key) for task_key in task_keys}
    return {task_key: record for task_key, record in found.items() if record is not None}
