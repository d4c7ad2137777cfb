"""Harvests batches that no record of the root knows: what `claude-batch recover` has a worker do.

A batch is ours by the custom_ids of its results; an answer is wanted by its task's name and its request_key, which hashes all that was
asked. Only wanted lines are spooled, so memory holds their keys and one block of lines. Doing it again stores nothing twice.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from claude_batch_dagster.core.errors import CredentialsError, RefusedError, RootError, VendorUnavailableError
from claude_batch_dagster.core.recovery_contract import RESULTS_KEPT, HarvestStep, RecoverInput, WantedTask
from claude_batch_dagster.core.request import KEY_BYTES, CustomId, parse_custom_id, submission_tag
from claude_batch_dagster.core.response import Decoder, PriceUsage, Response, iter_result_lines, read_result_line
from claude_batch_dagster.storage.keys import Keys, KeySet, pack_keys
from claude_batch_dagster.storage.plans import (
    batch_ids,
    last_round,
    list_strays,
    list_submissions,
    pin_workspace,
    read_log,
    read_root,
    read_round,
    read_task,
)
from claude_batch_dagster.storage.recovered import (
    RecoveryState,
    count_stored,
    extend_responses,
    iter_wanted_keys,
    list_stored,
    read_recovery_state,
    write_recovery_state,
)
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import Piece, read_batch_keys
from temporal_worker.spool import SpooledResponses, Tally
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

FETCHES = 3
BLOCK_LINES = 4_096
STRETCH_S = 10.0
SAVE_EVERY_S = 2.0
LONGEST_PAUSE_S = 300.0
PAUSE_SHARE_OF_AGE = 0.1


class NotOursError(Exception):
    """A batch's results are not those of a batch of this product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvester:
    """Harvests into any root.

    Attributes:
        open_store: Opens a root by its URI.
        price_usage: What an answer costs.
        clock: Now, aware; how far back the vendor's list is read.
        poll_s: The shortest pause between two looks at a batch.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    price_usage: PriceUsage
    clock: Callable[[], datetime]
    poll_s: float

    def harvest(self, ask: RecoverInput, report: Callable[[str], None]) -> HarvestStep:
        """Go on with a recovery for a stretch; what is behind it stands in the root.

        Args:
            ask: The recovery.
            report: Told what is being done; it may raise to stop the work, which loses nothing.

        Raises:
            RootError: Terminal. The root is not pinned, is another vendor's, or lost what the recovery staged.
            CredentialsError: Terminal. The key is refused, or is of another workspace.
            VendorUnavailableError: Transient.
        """
        store = self.open_store(ask.root)
        endpoint = check_root(store, self.batches)
        state = read_recovery_state(store, ask.recovery_id)
        work = _Stretch(
            store=store,
            endpoint=endpoint,
            batches=self.batches,
            state=state,
            stored=list_stored(store, endpoint),
            left_to_runs=frozenset(
                batch_id for entry in read_log(store).open for batch_id in batch_ids(list_submissions(store, entry.run_id))
            ),
            strays=frozenset(stray.batch_id for stray in list_strays(store)),
            wanted=_Wanted(store, ask.tasks, self.price_usage),
            report=report,
        )
        began_s = saved_s = time.monotonic()
        looked = set(state.looked)
        running: list[Batch] = []
        complete = True
        try:
            for batch in self.batches.list_batches(created_after=self.clock() - RESULTS_KEPT):
                if batch.id in looked:
                    continue
                if not batch.ended:
                    if batch.id not in work.left_to_runs:
                        running.append(batch)
                    continue
                if time.monotonic() - began_s >= STRETCH_S:
                    complete = False
                    break
                work.look_at(batch)
                state.looked.append(batch.id)
                if time.monotonic() - saved_s >= SAVE_EVERY_S:
                    write_recovery_state(store, ask.recovery_id, state)
                    saved_s = time.monotonic()
        finally:
            write_recovery_state(store, ask.recovery_id, state)
        found = replace(state.harvest, in_progress=len(running))
        return HarvestStep(harvest=found, complete=complete, pause_s=self._choose_pause(running))

    def _choose_pause(self, running: Sequence[Batch]) -> float:
        youngest_s = min((batch.age_s for batch in running), default=0.0)
        return max(self.poll_s, min(LONGEST_PAUSE_S, youngest_s * PAUSE_SHARE_OF_AGE))


def check_root(store: Store, batches: "Batches") -> str:
    """Return the root's endpoint, once this worker is known to be the right one for it; the key's workspace is pinned on first use.

    Raises:
        RootError: Terminal. The root is not pinned, or holds another vendor's answers.
        CredentialsError: Terminal. The key is of another workspace.
        VendorUnavailableError: Transient.
    """
    record = read_root(store)
    if record is None:
        raise RootError(
            f"The worker finds no root.json in {store.uri}. Nothing was changed. It must see the same folder as this client: use an object "
            "store, or a shared folder under the same path."
        )
    endpoint = batches.find_endpoint()
    if record.endpoint != endpoint:
        raise RootError(
            f"The root {store.uri} holds answers of {record.endpoint!r}, this worker talks to {endpoint!r}. Nothing was changed. "
            "Set ANTHROPIC_BASE_URL of the worker, or use another root."
        )
    workspace_id = batches.check_key_and_list().workspace_id
    if workspace_id is not None and (pinned := pin_workspace(store, workspace_id)) != workspace_id:
        raise CredentialsError(
            f"The root {store.uri} belongs to the workspace {pinned}, the worker's key to {workspace_id}. Nothing was changed. "
            "Give the worker a key of that workspace, or use another root."
        )
    return endpoint


def _list_open_tags(store: Store) -> set[str]:
    """Return the tags of all submissions of open runs."""
    tags: set[str] = set()
    for entry in read_log(store).open:
        for number in range(1, last_round(store, entry).round + 1):
            current = read_round(store, entry, number)
            tags.update(submission_tag(entry.run_id, number, shard) for shard in range(len(current.shards) if current else 0))
    return tags


def read_custom_id(line: bytes) -> CustomId | None:
    """Return a result line's custom_id taken apart, None where it is none of this product or cannot be read."""
    try:
        return parse_custom_id(read_result_line(line).custom_id)
    except ValueError:
        return None


class _Wanted:
    """The keys and decoders of the wanted tasks, by the name in custom_ids."""

    def __init__(self, store: Store, tasks: Sequence[WantedTask], price_usage: PriceUsage) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.decoders = {task.name: Decoder(read_task(store, task.task_key), price_usage) for task in tasks}
        self._keys: dict[str, KeySet] = {}
        for task in tasks:
            self._keys[task.name] = KeySet(task.count)
            try:
                for keys in iter_wanted_keys(store, task.keys):
                    self._keys[task.name].add(keys)
            except FileNotFoundError as error:
                raise RootError(
                    f"{store.uri}/{task.keys} is missing: the recovery lost what it staged. What was harvested is kept. Type the command again."
                ) from error

    def pick(self, ids: Sequence[CustomId | None]) -> tuple[list[bool], dict[str, int]]:
        """Tell which requests are wanted, and how many are under another task's name, by that name."""
        places = [place for place, custom_id in enumerate(ids) if custom_id is not None]
        keys = pack_keys([bytes.fromhex(custom_id.request_key) for custom_id in ids if custom_id is not None])
        names = [custom_id.name for custom_id in ids if custom_id is not None]
        picked = [False] * len(ids)
        elsewhere: dict[str, int] = {}
        found = {task: held.contains(keys) for task, held in self._keys.items()}
        for at, (place, name) in enumerate(zip(places, names, strict=True)):
            if name in found:
                picked[place] = bool(found[name][at])
            elif any(mask[at] for mask in found.values()):
                elsewhere[name] = elsewhere.get(name, 0) + 1
        return picked, elsewhere


@dataclass(slots=True, kw_only=True)
class _Picked:
    """The wanted lines of one task in a spool: where each begins, and its key."""

    places: dict[bytes, int] = field(default_factory=dict)

    def add(self, key: bytes, start: int) -> bool:
        """Note a line, unless its request has one already."""
        return self.places.setdefault(key, start) == start

    def drop(self, keys: Keys) -> None:
        """Forget the lines of some requests."""
        for start in range(0, keys.nbytes, KEY_BYTES):
            self.places.pop(keys.tobytes()[start : start + KEY_BYTES], None)


@dataclass(slots=True, kw_only=True)
class _Read:
    """What one fetch of a batch's results gave."""

    lines: int = 0
    ours: int = 0
    tags: set[str] = field(default_factory=set)
    picked: dict[str, _Picked] = field(default_factory=dict)
    elsewhere: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """One stretch of a recovery."""

    store: Store
    endpoint: str
    batches: "Batches"
    state: RecoveryState
    stored: dict[str, dict[str, list[Piece]]]
    left_to_runs: frozenset[str]
    strays: frozenset[str]
    wanted: _Wanted
    report: Callable[[str], None]

    def look_at(self, batch: Batch) -> None:
        """Store what is wanted of an ended batch, and count what it is."""
        self._count("looked")
        if batch.id in self.left_to_runs:
            self._count("left_to_runs")
        elif count_stored(self.store, self.stored.get(batch.id, {})) >= batch.requests > 0:
            self._count("stored_before")
        elif batch.archived:
            self._count("archived")
        else:
            try:
                self._harvest(batch)
            except NotOursError:
                self._count("foreign")
            except RefusedError as error:
                log.warning("%s Its answers are not recovered.", error)
                self._count("unreadable")

    def _harvest(self, batch: Batch) -> None:
        with self.store.scratch() as scratch:
            spool = scratch / "results.jsonl"
            read = self._fetch_whole(batch, spool)
            for name, number in read.elsewhere.items():
                names = self.state.harvest.other_names
                names[name] = names.get(name, 0) + number
            if read.tags & _list_open_tags(self.store):
                # Its run is about to find it, and collects it whole.
                self._count("left_to_runs")
                return
            if not any(picked.places for picked in read.picked.values()):
                self._count("other")
                return
            added = 0
            with spool.open("rb") as lines:
                for name, picked in read.picked.items():
                    added += self._store(batch, name, picked, lines)
        self._count("harvested" if added else "stored_before")
        if added and batch.id in self.strays:
            self._count("strays")

    def _store(self, batch: Batch, name: str, picked: _Picked, lines: BinaryIO) -> int:
        pieces = self.stored.get(batch.id, {}).get(self.wanted.tasks[name].task_key)
        if pieces:
            picked.drop(read_batch_keys(self.store, pieces))
        if not picked.places:
            return 0
        self.report(f"Batch {batch.id}: storing {len(picked.places):,} answers of {name}")
        found = _TaskLines(tuple(picked.places), tuple(picked.places.values()), lines, self.wanted.decoders[name])
        tally = Tally()
        extend_responses(
            self.store,
            endpoint=self.endpoint,
            task_key=self.wanted.tasks[name].task_key,
            batch_id=batch.id,
            answered_at=batch.ended_at or batch.created_at,
            responses=SpooledResponses(len(picked.places), found.decode, tally),
        )
        self.state.harvest = replace(self.state.harvest, counts=self.state.harvest.counts.plus(tally.counts()))
        return len(picked.places)

    def _fetch_whole(self, batch: Batch, spool: Path) -> _Read:
        """Read the results until every request has a line, three times at most; what is missing then has none at the vendor."""
        cut: VendorUnavailableError | None = None
        read: _Read | None = None
        for _ in range(FETCHES):
            try:
                read = self._fetch(batch, spool)
            except VendorUnavailableError as error:
                cut, read = error, None
                continue
            if read.ours >= batch.requests:
                return read
            if read.lines >= batch.requests:
                # Every request of a batch of ours has a custom_id of ours.
                raise NotOursError
        if read is None:
            assert cut is not None
            raise cut
        log.warning("batch %s: %d of %d requests have a result, %d times in a row", batch.id, read.ours, batch.requests, FETCHES)
        return read

    def _fetch(self, batch: Batch, spool: Path) -> _Read:
        read = _Read(picked={name: _Picked() for name in self.wanted.tasks})
        start = 0
        with self.batches.stream_results(batch.id) as chunks, spool.open("wb") as out:
            lines = iter_result_lines(chunks)
            while block := list(islice(lines, BLOCK_LINES)):
                self.report(f"Batch {batch.id}: {read.lines:,} of {batch.requests:,} results read")
                ids = [read_custom_id(line) for line in block]
                read.lines += len(block)
                read.ours += len(block) - ids.count(None)
                read.tags.update(custom_id.tag for custom_id in ids if custom_id is not None)
                if not read.ours:
                    raise NotOursError
                wanted, elsewhere = self.wanted.pick(ids)
                for name, number in elsewhere.items():
                    read.elsewhere[name] = read.elsewhere.get(name, 0) + number
                for line, custom_id, is_wanted in zip(block, ids, wanted, strict=True):
                    if is_wanted and custom_id is not None and read.picked[custom_id.name].add(bytes.fromhex(custom_id.request_key), start):
                        start += out.write(line + b"\n")
        return read

    def _count(self, what: str) -> None:
        harvest = self.state.harvest
        self.state.harvest = replace(harvest, **{what: getattr(harvest, what) + 1})


@dataclass(frozen=True, slots=True)
class _TaskLines:
    """The wanted lines of one task, and how they are decoded."""

    keys: Sequence[bytes]
    starts: Sequence[int]
    spool: BinaryIO
    decoder: Decoder

    def decode(self, place: int) -> Response:
        self.spool.seek(self.starts[place])
        response = self.decoder.decode_result(self.keys[place], read_result_line(self.spool.readline()).result)
        # A request that was asked again with a larger cap does not say so in its result; what it used tells that it had as much.
        return replace(response, max_tokens=max(response.max_tokens, response.output_tokens))
