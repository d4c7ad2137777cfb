"""The records of runs: the plan log, shard logs, rounds, `done`; and the staged files beside them.

Contract:
- `log/` is one sequence 1, 2, ... without gaps: the next number is taken put-if-absent, so admission has one total order.
- A shard's log is a sequence 0, 1, ... in the same manner.
- `done/{n}` is written after everything that it speaks of; whoever lists `log/` and `done/` first and reads answers afterwards
  misses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import DoneRecord, LogEntry, RootRecord, RoundRecord, ShardRef, StrayRecord, WorkspaceRecord
from claude_batch_dagster.core.submission import Accepted, Record, Send, decode_record, encode_record
from claude_batch_dagster.storage.formats import decode_stored
from claude_batch_dagster.storage.store import Store

_decode_root = msgspec.json.Decoder(RootRecord).decode
_decode_workspace = msgspec.json.Decoder(WorkspaceRecord).decode
_decode_entry = msgspec.json.Decoder(LogEntry).decode
_decode_done = msgspec.json.Decoder(DoneRecord).decode
_decode_round = msgspec.json.Decoder(RoundRecord).decode
_decode_stray = msgspec.json.Decoder(StrayRecord).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSnapshot:
    """The plan log at one moment.

    Attributes:
        tip: The highest number in the log, 0 for none.
        open: Entries without a `done`, in order.
    """

    tip: int
    open: tuple[LogEntry, ...]


def pin_root(store: Store, record: RootRecord) -> RootRecord:
    """Write `root.json` where there is none; return the one that is there."""
    content = msgspec.json.encode(record)
    if store.put_if_absent("root.json", content) and store.put_if_absent("root.json", content):
        raise RootError(
            f"{store.uri} does not keep put-if-absent (If-None-Match): root.json was written twice. Nothing was sent: there, two processes could pay "
            "for the same requests. Use a store that keeps it."
        )
    found = read_root(store)
    if found is None:
        raise RootError(f"{store.uri}/root.json was written and cannot be read back. Nothing was sent. Check the root's permissions.")
    return found


def read_root(store: Store) -> RootRecord | None:
    """Read `root.json`, None where the root was never used (or lost its records)."""
    content = store.get("root.json")
    return None if content is None else decode_stored(store, "root.json", content, _decode_root)


def pin_workspace(store: Store, workspace_id: str) -> str:
    """Write `workspace.json` where there is none; return the workspace that is pinned."""
    content = store.get("workspace.json")
    if content is None:
        store.put_if_absent("workspace.json", msgspec.json.encode(WorkspaceRecord(workspace_id=workspace_id)))
        content = store.get("workspace.json") or b"{}"
    return decode_stored(store, "workspace.json", content, _decode_workspace).workspace_id


def read_log(store: Store) -> LogSnapshot:
    """List `log/`, then `done/`. Read answers only after this, or what ends in between is in neither."""
    numbers = _numbers(store, "log")
    done = set(_numbers(store, "done"))
    return LogSnapshot(tip=max(numbers, default=0), open=tuple(read_entry(store, n) for n in numbers if n not in done))


def read_entry(store: Store, number: int) -> LogEntry:
    """Read `log/{number}.json`."""
    content = store.get(f"log/{number}.json")
    if content is None:
        raise RootError(f"{store.uri}/log/{number}.json is missing: the root lost its records. Nothing was sent. Restore the folder.")
    return decode_stored(store, f"log/{number}.json", content, _decode_entry)


def admit_entry(store: Store, entry: LogEntry) -> bool:
    """Write `log/{entry.number}.json` put-if-absent; return whether the number was still free."""
    return store.put_if_absent(f"log/{entry.number}.json", msgspec.json.encode(entry))


def find_entry(store: Store, run: str) -> LogEntry | None:
    """Find a run by what a person types: `r42`, `42` or a run_id."""
    number = run.removeprefix("r")
    if number.isdecimal():
        return read_entry(store, int(number)) if store.exists(f"log/{int(number)}.json") else None
    entries = (read_entry(store, n) for n in reversed(_numbers(store, "log")))
    return next((entry for entry in entries if entry.run_id == run), None)


def read_entries(store: Store, newest: int | None = None) -> list[LogEntry]:
    """Read the log, newest first, at most so many."""
    return [read_entry(store, n) for n in sorted(_numbers(store, "log"), reverse=True)[:newest]]


def read_done(store: Store, number: int) -> DoneRecord | None:
    """Read `done/{number}.json`, None while the run is open."""
    content = store.get(f"done/{number}.json")
    return None if content is None else decode_stored(store, f"done/{number}.json", content, _decode_done)


def done_numbers(store: Store) -> set[int]:
    """Return the numbers of the runs that are over: one list, no record is read."""
    return set(_numbers(store, "done"))


def write_done(store: Store, number: int, record: DoneRecord) -> DoneRecord:
    """Write `done/{number}.json` put-if-absent; return the one that is there."""
    store.put_if_absent(f"done/{number}.json", msgspec.json.encode(record))
    found = read_done(store, number)
    return record if found is None else found


def read_round(store: Store, entry: LogEntry, number: int) -> RoundRecord | None:
    """Read a round: the first is the plan itself, later ones are `rounds/{run_id}/{number}.json`."""
    if number == 1:
        return RoundRecord(round=1, shards=entry.shards)
    path = f"rounds/{entry.run_id}/{number}.json"
    content = store.get(path)
    return None if content is None else decode_stored(store, path, content, _decode_round)


def list_rounds(store: Store, entry: LogEntry) -> list[RoundRecord]:
    """Read all rounds of a run, in order, the first one too."""
    found = (read_round(store, entry, number) for number in (1, *_numbers(store, f"rounds/{entry.run_id}")))
    return [record for record in found if record is not None]


def last_round(store: Store, entry: LogEntry) -> RoundRecord:
    """Return the highest round that has a record."""
    numbers = _numbers(store, f"rounds/{entry.run_id}")
    found = read_round(store, entry, max(numbers, default=1))
    assert found is not None, "a listed record can be read"
    return found


def write_round(store: Store, run_id: str, record: RoundRecord) -> RoundRecord:
    """Write a round put-if-absent; return the one that is there."""
    path = f"rounds/{run_id}/{record.round}.json"
    store.put_if_absent(path, msgspec.json.encode(record))
    content = store.get(path)
    return record if content is None else decode_stored(store, path, content, _decode_round)


def read_shard(store: Store, entry: LogEntry, round_number: int, shard: int) -> ShardRef:
    """Return a shard of a round."""
    found = read_round(store, entry, round_number)
    if found is None or shard >= len(found.shards):
        raise RootError(
            f"Batch run {entry.label} has no shard {shard} in round {round_number}: the root lost its records. Nothing was sent. Restore the folder."
        )
    return found.shards[shard]


def read_submission(store: Store, run_id: str, round_number: int, shard: int) -> list[Record]:
    """Read a shard's log, in order."""
    records: list[Record] = []
    while (content := store.get(path := _submission_path(run_id, round_number, shard, len(records)))) is not None:
        records.append(decode_stored(store, path, content, decode_record))
    return records


def append_submission(store: Store, run_id: str, round_number: int, shard: int, slot: int, record: Record) -> bool:
    """Write a record at a slot of a shard's log put-if-absent; return whether the slot now says what the record says.

    Only a `send` is different, since its writer may POST: False may also mean that the store's client repeated a put that had succeeded.
    """
    path, content = _submission_path(run_id, round_number, shard, slot), encode_record(record)
    return store.put_if_absent(path, content) or (not isinstance(record, Send) and store.get(path) == content)


def list_submissions(store: Store, run_id: str) -> dict[tuple[int, int], list[Record]]:
    """Read all shard logs of a run: (round, shard) -> records."""
    found: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for path in store.list(f"submissions/{run_id}"):
        _, _, place, slot = path.split("/")
        round_number, _, shard = place.partition("-")
        found.setdefault((int(round_number), int(shard)), []).append((int(slot.removesuffix(".json")), path))
    return {
        place: [decode_stored(store, path, _get(store, path), decode_record) for _, path in sorted(slots)]
        for place, slots in sorted(found.items())
    }


def write_stray(store: Store, record: StrayRecord) -> None:
    """Write `strays/{batch_id}.json` put-if-absent."""
    store.put_if_absent(f"strays/{record.batch_id}.json", msgspec.json.encode(record))


def list_strays(store: Store) -> list[StrayRecord]:
    """Read all `strays/`."""
    return [decode_stored(store, path, _get(store, path), _decode_stray) for path in store.list("strays")]


def list_claimed(store: Store, since: datetime) -> set[str]:
    """Return the batches that records name, of runs that are open or were admitted since then.

    `admitted_at` is the clock of whoever admitted the run: where that is wrong, batches are missing here, never too many. They are
    looked at in vain then, for only results prove whose a batch is.
    """
    claimed = {stray.batch_id for stray in list_strays(store)}
    done = set(_numbers(store, "done"))
    for entry in read_entries(store):
        if entry.number not in done or datetime.fromisoformat(entry.admitted_at) >= since:
            claimed.update(batch_ids(list_submissions(store, entry.run_id)))
    return claimed


def read_task(store: Store, task_key: str) -> dict[str, object]:
    """Read `tasks/{task_key}.json`: the canonical document that the key hashes."""
    document: dict[str, object] = msgspec.json.decode(_get(store, f"tasks/{task_key}.json"), type=dict[str, object])
    return document


def shard_path(run_id: str, round_number: int, shard: int, sha256: str) -> str:
    """Return where a shard's body is staged."""
    return f"plans/{run_id}/requests/{round_number}-{shard}-{sha256[:16]}.json"


def batch_ids(submissions: dict[tuple[int, int], list[Record]]) -> Sequence[str]:
    """Return the ids of all batches in shard logs."""
    return [record.id for records in submissions.values() for record in records if isinstance(record, Accepted)]


def _get(store: Store, path: str) -> bytes:
    content = store.get(path)
    if content is None:
        raise RootError(f"{store.uri}/{path} is missing: the root lost its records. Nothing was sent. Restore the folder.")
    return content


def _submission_path(run_id: str, round_number: int, shard: int, slot: int) -> str:
    return f"submissions/{run_id}/{round_number}-{shard}/{slot}.json"


def _numbers(store: Store, folder: str) -> list[int]:
    names = (path.rpartition("/")[2].removesuffix(".json") for path in store.list(folder))
    return sorted(int(name) for name in names if name.isdecimal())
