"""What a recovery stages and stores: the wanted keys, what it looked at, and responses of batches that no record knows.

- `recoveries/{recovery_id}/keys-{task_key}.parquet`: the wanted keys. `state.json`: batches looked at, and the count. Gone when it ends.
- What is harvested of a batch stands in a file of its own, beside the one that its run wrote: no response file is ever written again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from uuid import UUID

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import uuid_utils

from claude_batch_dagster.core.records import StrayRecord
from claude_batch_dagster.core.recovery_contract import Harvest
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.keys import KEY_TYPE, Keys, KeySet, keys_from_arrow, keys_to_arrow
from claude_batch_dagster.storage.plans import find_entry, list_strays, read_root, read_shard
from claude_batch_dagster.storage.responses import responses_path, write_responses
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import ADDED, Piece, count_rows, find_batches, list_task_keys

FOLDER = "recoveries"
KEYS_SCHEMA = pa.schema([pa.field("request_key", KEY_TYPE)])
PIECE_KEYS = 65_536
KEPT_FOR = timedelta(days=3)
"""A recovery waits for batches, which end within a day."""


class WantedKeys:
    """Writes a task's wanted keys, each once; about 24 bytes of memory a key.

    Args:
        file: The local file to write.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen = KeySet()
        self._writer = pq.ParquetWriter(file, KEYS_SCHEMA, compression="none")

    def __len__(self) -> int:
        return len(self._seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def add(self, keys: Keys) -> None:
        """Add the keys of some rows."""
        new = keys[self._seen.add(keys)]
        self._writer.write_batch(pa.record_batch([keys_to_arrow(new)], schema=KEYS_SCHEMA))


class RecoveryState(msgspec.Struct, kw_only=True):
    """`state.json`: what a recovery has behind it, so that whoever goes on with it neither looks nor counts twice."""

    looked: list[str] = msgspec.field(default_factory=list)
    harvest: Harvest = msgspec.field(default_factory=Harvest)
    format: int = 1


def wanted_keys_path(recovery_id: str, task_key: str) -> str:
    """Return where a task's wanted keys are staged."""
    return f"{FOLDER}/{recovery_id}/keys-{task_key}.parquet"


def iter_wanted_keys(store: Store, path: str) -> Iterator[Keys]:
    """Yield staged keys, some thousand at a time."""
    with ExitStack() as opened:
        file = opened.enter_context(pq.ParquetFile(store.open(path)))
        for piece in file.iter_batches(PIECE_KEYS, columns=["request_key"]):
            yield keys_from_arrow(piece.column(0))


def read_recovery_state(store: Store, recovery_id: str) -> RecoveryState:
    """Read a recovery's state, an empty one where it has just begun."""
    content = store.get(_state_path(recovery_id))
    return RecoveryState() if content is None else msgspec.json.decode(content, type=RecoveryState)


def write_recovery_state(store: Store, recovery_id: str, state: RecoveryState) -> None:
    """Write a recovery's state, replacing it whole."""
    store.put(_state_path(recovery_id), msgspec.json.encode(state))


def remove_recovery(store: Store, recovery_id: str) -> None:
    """Remove what a recovery staged, and what others left that began days ago."""
    oldest = datetime.now(UTC) - KEPT_FOR
    for path in store.list(FOLDER):
        found = path.split("/")[1]
        if found == recovery_id or _began_at(found) < oldest:
            store.delete(path)


def list_stored(store: Store, endpoint: str) -> dict[str, dict[str, list[Piece]]]:
    """Return where the responses of each batch are, by its id and by task_key."""
    found: dict[str, dict[str, list[Piece]]] = {}
    for task_key in list_task_keys(store, endpoint):
        for batch_id, pieces in find_batches(store, endpoint, task_key).items():
            found.setdefault(batch_id, {})[task_key] = pieces
    return found


def list_unstored_strays(store: Store) -> list[StrayRecord]:
    """Return the batches that came after their shard was given up, and of which not every answer is stored."""
    strays = list_strays(store)
    record = read_root(store) if strays else None
    stored = list_stored(store, record.endpoint) if record is not None else {}
    return [stray for stray in strays if count_stored(store, stored.get(stray.batch_id, {})) < _count_requests(store, stray)]


def _count_requests(store: Store, stray: StrayRecord) -> int:
    entry = find_entry(store, stray.run_id)
    # Where its run's records are lost, what was recovered of it is all that is asked for.
    return 1 if entry is None else read_shard(store, entry, stray.round, stray.shard).requests


def count_stored(store: Store, pieces: Mapping[str, Sequence[Piece]]) -> int:
    """Return the responses of a batch to all tasks."""
    return sum(count_rows(store, of_task) for of_task in pieces.values())


def extend_responses(
    store: Store, *, endpoint: str, task_key: str, batch_id: str, answered_at: datetime, responses: Sequence[Response]
) -> None:
    """Store responses of a batch in a file of their own, beside the batch's others. Their round is not known, and written as 1.

    The batch's own file is never written again: its run could be collecting it, and a compaction could be removing it.

    Args:
        responses: Of one task, none of them stored; a long sequence may decode them as they are asked for.
    """
    path = responses_path(endpoint, task_key, batch_id)
    with store.scratch() as scratch:
        write_responses(
            Store(str(scratch)),
            endpoint=endpoint,
            task_key=task_key,
            batch_id=batch_id,
            round_number=1,
            answered_at=answered_at,
            responses=responses,
        )
        store.put_file(f"{path.removesuffix('.parquet')}{ADDED}{uuid_utils.uuid7()}.parquet", scratch / path)


def _state_path(recovery_id: str) -> str:
    return f"{FOLDER}/{recovery_id}/state.json"


def _began_at(recovery_id: str) -> datetime:
    try:
        return datetime.fromtimestamp((UUID(recovery_id).int >> 80) / 1_000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)
