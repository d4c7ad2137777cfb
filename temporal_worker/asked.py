"""What a batch was asked: the requests of its shard, in order, and which of them a custom_id names."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from claude_batch_dagster.core.contract import BatchInput
from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import ShardRef
from claude_batch_dagster.core.request import KEY_BYTES, short_name, submission_tag
from claude_batch_dagster.core.shard import read_asked
from claude_batch_dagster.storage.keys import Keys, OwnedShard, owned_keys_path, read_owned_shard
from claude_batch_dagster.storage.plans import read_shard, read_task
from temporal_worker.root import OpenRoot

Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]

ABSENT = -1
_BYTES = np.full(1 << 16, 1 << 8, np.uint16)
_BYTES[np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)] = np.arange(256)
"""The byte of each two hex digits, as they stand in memory; one more than any byte for what are no such digits."""


class Requests:
    """A shard's requests in order.

    Args:
        names: As custom_ids have them, of the plan's tasks.
        tag: Of the submission.
        keys: Of each request.
        tasks: Place, in `names`, of each request's task.
        max_tokens: Of each request: where it is asked again, it may have been raised.
    """

    def __init__(self, *, names: Sequence[str], tag: str, keys: Keys, tasks: Rows, max_tokens: Numbers) -> None:
        asked = [task for task in range(len(names)) if (tasks == task).any()]
        self._names = [names[task] for task in asked]
        self._tag = tag
        self.keys = keys
        self.tasks = tasks
        self.max_tokens = max_tokens
        self._tables = [_Table(keys, np.flatnonzero(tasks == task).astype(np.int32)) for task in asked]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def distinct(self) -> int:
        """How many custom_ids they have."""
        return sum(table.distinct for table in self._tables)

    def find(self, custom_ids: Sequence[str]) -> Rows:
        """Return the place of the request that each custom_id names, character by character; ABSENT where it names none of these."""
        tasks, keys = split_custom_ids(custom_ids, self._names, self._tag)
        places = np.full(len(tasks), ABSENT, np.int32)
        for task, table in enumerate(self._tables):
            ours = np.flatnonzero(tasks == task)
            if len(ours):
                places[ours] = table.find(keys[ours])
        return places

    def same_as(self, other: "Requests") -> bool:
        """Tell whether the other requests are these, in this order."""
        pairs = ((self.keys, other.keys), (self.tasks, other.tasks), (self.max_tokens, other.max_tokens))
        return all(np.array_equal(one, another) for one, another in pairs)


class _Table:
    """The places of one task's requests, by key; keys are hashes, so that their first bits tell nearly where one stands."""

    def __init__(self, keys: Keys, places: Rows) -> None:
        ours = keys[places]
        order = np.argsort(ours[:, 0])
        self._places = places[order]
        self._first, self._second = ours[order, 0], ours[order, 1]
        is_plain = bool((self._first[1:] != self._first[:-1]).all())
        self.distinct = len(ours) if is_plain else len(np.unique(ours, axis=0))
        bits = len(ours).bit_length()
        self._shift = np.uint64(64 - bits)
        self._starts = np.searchsorted(self._first, np.arange(1 << bits, dtype=np.uint64) << self._shift)

    def find(self, keys: Keys) -> Rows:
        places = np.full(len(keys), ABSENT, np.int32)
        pending, at = np.arange(len(keys)), self._starts[keys[:, 0] >> self._shift]
        while len(pending):
            near = self._first[np.minimum(at, len(self._first) - 1)]
            may_be = (near <= keys[pending, 0]) & (at < len(self._first))
            pending, at = pending[may_be], at[may_be]
            same = (near[may_be] == keys[pending, 0]) & (self._second[at] == keys[pending, 1])
            places[pending[same]] = self._places[at[same]]
            pending, at = pending[~same], at[~same] + 1
        return places


def split_custom_ids(custom_ids: Sequence[str], names: Sequence[str], tag: str) -> tuple[Rows, Keys]:
    """Return the place of each one's task among these names, and its key; ABSENT where it is of no such task, or of another submission."""
    if len(names) == 1 and (keys := _read_keys(custom_ids, f"{names[0]}-", f"-{tag}")) is not None:
        return np.zeros(len(keys), np.int32), keys
    match = re.compile(f"({'|'.join(map(re.escape, names))})-([0-9a-f]{{{2 * KEY_BYTES}}})-{re.escape(tag)}").fullmatch
    tasks = {name: place for place, name in enumerate(names)}
    found = [match(custom_id) for custom_id in custom_ids]
    digits = "".join(["0" * 2 * KEY_BYTES if one is None else one[2] for one in found])
    places = np.array([ABSENT if one is None else tasks[one[1]] for one in found], np.int32)
    return places, np.frombuffer(bytes.fromhex(digits), np.uint64).reshape(-1, 2)


def _read_keys(custom_ids: Sequence[str], head: str, tail: str) -> Keys | None:
    """Return the keys of custom_ids that all begin and end so, None where one does not."""
    # As many line breaks as ids, each behind a whole id: then none stands within one. What is not ASCII becomes a question mark.
    text = np.frombuffer("\n".join([*custom_ids, ""]).encode("ascii", "replace"), np.uint8)
    before, after = [np.frombuffer(part.encode(), np.uint8) for part in (head, f"{tail}\n")]
    size = len(before) + 2 * KEY_BYTES + len(after)
    if len(text) != len(custom_ids) * size:
        return None
    ids = text.reshape(-1, size)
    packed = _BYTES[np.ascontiguousarray(ids[:, len(before) : -len(after)]).view(np.uint16)]
    if not ((ids[:, : len(before)] == before).all() and (ids[:, -len(after) :] == after).all() and (packed <= 0xFF).all()):
        return None
    return packed.astype(np.uint8).view(np.uint64)


def read_requests(root: OpenRoot, batch: BatchInput) -> Requests:
    """Return what a batch was asked: of a first round by what the run wrote down that it owns, which is small, else by the body.

    Raises:
        RootError: Terminal. The root does not hold what the plan says.
    """
    shard = read_shard(root.store, root.entry, batch.round, batch.shard)
    try:
        owned = read_owned_shard(root.store, batch.run_id, batch.shard) if batch.round == 1 else None
    except FileNotFoundError:
        owned = None
    if owned is not None and len(owned.keys) == shard.requests and (found := _take_owned(root, batch, owned)) is not None:
        return found
    return _read_body(root, batch, shard)


def check_requests(root: OpenRoot, batch: BatchInput, expected: Requests) -> None:
    """Compare them with the body that was sent, where the results are not those of these requests.

    Raises:
        RootError: Terminal. The body is not there, or is of other requests.
    """
    shard = read_shard(root.store, root.entry, batch.round, batch.shard)
    if not expected.same_as(_read_body(root, batch, shard)):
        raise RootError(
            f"{root.store.uri}/{owned_keys_path(batch.run_id)} and {shard.path} do not hold the same requests. "
            f"The run does not go on with batch {batch.batch_id}. Restore the files."
        )


def _take_owned(root: OpenRoot, batch: BatchInput, owned: OwnedShard) -> Requests | None:
    places = {task.task_key: place for place, task in enumerate(root.entry.tasks)}
    if not places.keys() >= set(owned.task_keys):
        return None
    caps = np.array([read_task(root.store, task_key)["max_tokens"] for task_key in owned.task_keys], np.int64)
    tasks = np.array([places[task_key] for task_key in owned.task_keys], np.int32)
    found = Requests(
        names=_list_names(root),
        tag=submission_tag(batch.run_id, batch.round, batch.shard),
        keys=owned.keys,
        tasks=tasks[owned.tasks],
        max_tokens=np.where(owned.max_tokens, owned.max_tokens, caps[owned.tasks]),
    )
    return found if found.distinct == len(found) else None


def _read_body(root: OpenRoot, batch: BatchInput, shard: ShardRef) -> Requests:
    try:
        asked = read_asked(root.store.stream(shard.path))
    except FileNotFoundError as error:
        raise RootError(
            f"{root.store.uri}/{shard.path} is missing: the root lost its records. The run does not go on with batch {batch.batch_id} without them, "
            "its results can be read for 29 days. Restore the file."
        ) from error
    names, tag = _list_names(root), submission_tag(batch.run_id, batch.round, batch.shard)
    tasks, keys = split_custom_ids(asked.custom_ids, names, tag)
    found = Requests(names=names, tag=tag, keys=keys, tasks=tasks, max_tokens=np.array(asked.max_tokens, np.int64))
    if found.distinct != shard.requests or len(found) != shard.requests:
        raise RootError(
            f"{root.store.uri}/{shard.path} holds {found.distinct:,} requests, the plan says {shard.requests:,}. "
            f"The run does not go on with batch {batch.batch_id}. Restore the file."
        )
    return found


def _list_names(root: OpenRoot) -> list[str]:
    return [short_name(task.name) for task in root.entry.tasks]
