"""What a run paid to try its new tasks on a sample text: `plans/{run_id}/tried-{task_key}.json`, usable or not, put-if-absent."""

from collections.abc import Iterable

import msgspec

from claude_batch_dagster.core.records import TriedRecord
from claude_batch_dagster.storage.formats import decode_stored
from claude_batch_dagster.storage.store import Store

_decode = msgspec.json.Decoder(TriedRecord).decode


def tried_path(run_id: str, task_key: str) -> str:
    """Return where a run records what came of its try of a task."""
    return f"plans/{run_id}/tried-{task_key}.json"


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
