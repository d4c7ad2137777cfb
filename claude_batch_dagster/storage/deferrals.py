"""`deferred/`: jobs whose Dagster run ended before their answers came. One list tells them all; few are read.

Contract:
- A name is `{number}-{digest}`: the number of a run that is waited for, and what would be published. So a list of names and a list of
  `done/` tell which may be collected.
- Of one digest there is one record, and for a moment two, of which the higher number counts: a job that is deferred again is written
  under its new name before the former record is removed. Whoever is about to start a run writes its intent beside the former record.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from claude_batch_dagster.core.records import DeferralRecord
from claude_batch_dagster.storage.formats import decode_stored
from claude_batch_dagster.storage.store import Store

_decode = msgspec.json.Decoder(DeferralRecord).decode

DIGITS = 10


def digest_deferral(assets: Sequence[Sequence[str]], partitions: Sequence[str] | None, limit: int | None) -> str:
    """Return what names a job's outputs: the same assets, partitions and limit are one job."""
    content = msgspec.json.encode((sorted(map(list, assets)), None if partitions is None else sorted(partitions), limit))
    return hashlib.sha256(content).hexdigest()[:16]


def name_deferral(number: int, digest: str) -> str:
    """Return a deferral's name, which sorts by its number."""
    return f"{number:0{DIGITS}}-{digest}"


def number_of(name: str) -> int:
    """Return the number of the run that a deferral waits for first of all."""
    return int(name[:DIGITS])


def digest_of(name: str) -> str:
    """Return the digest of what a deferral would publish."""
    return name[DIGITS + 1 :]


def list_deferrals(store: Store) -> list[str]:
    """Return the names of all deferrals, the oldest number first; of one digest only the newest."""
    newest = {digest_of(name): name for name in _names(store)}
    return sorted(newest.values())


def find_deferral(store: Store, digest: str) -> str | None:
    """Return the name of the deferral of these outputs, None where there is none."""
    return next((name for name in list_deferrals(store) if digest_of(name) == digest), None)


def find_deferring_run(store: Store, number: int) -> str | None:
    """Return the Dagster run that was deferred for a run, None where none was or its answers are published."""
    name = next((name for name in list_deferrals(store) if number_of(name) == number), None)
    record = read_deferral(store, name) if name is not None else None
    return None if record is None or record.intent is not None else record.dagster_run_id


def read_deferral(store: Store, name: str) -> DeferralRecord | None:
    """Read `deferred/{name}.json`, None where it was collected."""
    content = store.get(_path(name))
    return None if content is None else decode_stored(store, _path(name), content, _decode)


def write_deferral(store: Store, name: str, record: DeferralRecord) -> None:
    """Write a deferral, then remove the others of its digest, which it replaces."""
    store.put(_path(name), msgspec.json.encode(record))
    for other in _names(store):
        if digest_of(other) == digest_of(name) and other != name:
            store.delete(_path(other))


def write_intent(store: Store, name: str, record: DeferralRecord) -> None:
    """Write a deferral of a run that has not left, beside the one that it will replace; one of its name waits for the same, and stays."""
    store.put_if_absent(_path(name), msgspec.json.encode(record))


def withdraw_intent(store: Store, name: str, run_id: str | None) -> None:
    """Remove the intent of a Dagster run, unless another run was deferred under its name meanwhile."""
    record = read_deferral(store, name)
    if record is not None and record.intent is not None and record.dagster_run_id == run_id:
        store.delete(_path(name))


def remove_deferral(store: Store, *names: str) -> None:
    """Remove deferrals that were collected, and older ones of their digests, which they replace; none is no error."""
    newest = {digest_of(name): number_of(name) for name in sorted(names)}
    for other in _names(store) if names else ():
        if number_of(other) <= newest.get(digest_of(other), -1):
            store.delete(_path(other))


def _names(store: Store) -> list[str]:
    return [path.rpartition("/")[2].removesuffix(".json") for path in store.list("deferred")]


def _path(name: str) -> str:
    return f"deferred/{name}.json"
