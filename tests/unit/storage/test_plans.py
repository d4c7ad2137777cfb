from pathlib import Path

import msgspec
import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import (
    CostRange,
    DoneRecord,
    KeysRef,
    LogEntry,
    Owner,
    RootRecord,
    RoundRecord,
    ShardRef,
    SourceRef,
    TaskRef,
)
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason, Send
from claude_batch_dagster.storage import plans
from claude_batch_dagster.storage.store import Store

SHARD = ShardRef(path="plans/r/requests/1-0-ab.json", sha256="ab", requests=2, body_bytes=99)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def entry(number: int, run_id: str | None = None) -> LogEntry:
    return LogEntry(
        run_id=run_id or f"run-{number}",
        number=number,
        admitted_at="2026-11-22T10:00:00+00:00",
        endpoint="simulator",
        owner=Owner(host="h", pid=1),
        tasks=(TaskRef(name="t", task_key="k"),),
        source=SourceRef(uri="/d", fingerprint="f"),
        keys=KeysRef(path="p", sha256="s", count=2),
        shards=(SHARD,),
        cost_nano_usd=CostRange(expected=1, worst=2),
        max_attempts=3,
        max_in_flight_batches=2,
    )


def batch(name: str) -> Accepted:
    return Accepted(id=name, created_at="2026-11-22T10:00:00+00:00")


def done(number: int) -> DoneRecord:
    return DoneRecord(
        run_id=f"run-{number}",
        finished_at="2026-11-22T11:00:00+00:00",
        outcome="finished",
        rows={"succeeded": 2},
        batches=1,
        usage=(),
        cost_nano_usd=0,
    )


def test_the_first_pins_the_root_and_later_ones_read_it(store: Store) -> None:
    first, second = (RootRecord(root_id=name, endpoint="simulator", temporal_namespace="default") for name in ("a", "b"))
    assert plans.read_root(store) is None
    assert plans.pin_root(store, first) == first
    assert plans.pin_root(store, second) == first
    assert plans.read_root(store) == first


def test_the_first_workspace_stays(store: Store) -> None:
    assert [plans.pin_workspace(store, name) for name in ("w1", "w2", "w1")] == ["w1"] * 3


def test_an_empty_log_has_no_tip_and_nothing_open(store: Store) -> None:
    assert plans.read_log(store) == plans.LogSnapshot(tip=0, open=())


def test_open_runs_are_the_log_less_what_is_done_in_the_order_of_numbers(store: Store) -> None:
    for number in range(1, 12):
        assert plans.admit_entry(store, entry(number))
    for number in (1, 2, 10):
        plans.write_done(store, number, done(number))
    found = plans.read_log(store)
    assert (found.tip, [one.number for one in found.open]) == (11, [3, 4, 5, 6, 7, 8, 9, 11])


def test_a_number_is_given_once(store: Store) -> None:
    assert plans.admit_entry(store, entry(1, "mine"))
    assert not plans.admit_entry(store, entry(1, "yours"))
    assert plans.read_entry(store, 1).run_id == "mine"


def test_an_entry_that_is_gone_says_that_the_root_lost_its_records(store: Store) -> None:
    with pytest.raises(RootError, match=r"log/3\.json is missing: the root lost its records\. Nothing was sent\. Restore the folder"):
        plans.read_entry(store, 3)


@pytest.mark.parametrize(
    ("typed", "number"),
    [("r2", 2), ("2", 2), ("run-2", 2), ("r02", 2), ("r9", None), ("9", None), ("run-9", None), ("", None), ("r", None)],
)
def test_a_run_is_found_by_what_a_person_types(store: Store, typed: str, number: int | None) -> None:
    for one in (1, 2, 3):
        plans.admit_entry(store, entry(one))
    found = plans.find_entry(store, typed)
    assert (found.number if found else None) == number


def test_the_newest_runs_come_first(store: Store) -> None:
    for number in range(1, 12):
        plans.admit_entry(store, entry(number))
    assert [one.number for one in plans.read_entries(store, 3)] == [11, 10, 9]
    assert len(plans.read_entries(store)) == 11


def test_what_ended_a_run_first_counts(store: Store) -> None:
    assert plans.read_done(store, 1) is None
    assert plans.write_done(store, 1, done(1)) == done(1)
    other = msgspec.structs.replace(done(1), outcome="canceled")
    assert plans.write_done(store, 1, other) == done(1)
    assert plans.read_done(store, 1) == done(1)


def test_the_first_round_is_the_plan_and_later_ones_are_written_once(store: Store) -> None:
    one = entry(1)
    assert plans.read_round(store, one, 1) == RoundRecord(round=1, shards=(SHARD,))
    assert plans.last_round(store, one).round == 1
    assert plans.read_round(store, one, 2) is None
    second = RoundRecord(round=2, shards=(SHARD, SHARD))
    assert plans.write_round(store, one.run_id, second) == second
    assert plans.write_round(store, one.run_id, RoundRecord(round=2, shards=())) == second
    assert plans.last_round(store, one) == second
    assert plans.read_shard(store, one, 2, 1) == SHARD
    for number in range(3, 11):
        plans.write_round(store, one.run_id, RoundRecord(round=number, shards=()))
    assert plans.last_round(store, one) == RoundRecord(round=10, shards=())


@pytest.mark.parametrize(("number", "shard"), [(1, 1), (2, 0)])
def test_a_shard_that_no_round_has_is_an_error(store: Store, number: int, shard: int) -> None:
    with pytest.raises(RootError, match=rf"run r1 has no shard {shard} in round {number}"):
        plans.read_shard(store, entry(1), number, shard)


def test_a_shards_log_takes_each_slot_once_and_keeps_its_order(store: Store) -> None:
    sent = Send(count=1, sha256="a", send_s=15.0, vendor_date="d", sender="w", sent_at="2026-11-22T10:00:00+00:00")
    assert plans.append_submission(store, "r", 1, 0, 0, sent)
    assert not plans.append_submission(store, "r", 1, 0, 0, Closed(reason=CloseReason.CANCELED))
    assert plans.append_submission(store, "r", 1, 0, 1, batch("b1"))
    assert plans.append_submission(store, "r", 1, 0, 2, Closed(reason=CloseReason.COLLECTED))
    assert plans.append_submission(store, "r", 2, 10, 0, batch("b2"))
    assert plans.append_submission(store, "r2", 1, 0, 0, batch("b3"))
    log = [sent, batch("b1"), Closed(reason=CloseReason.COLLECTED)]
    assert plans.read_submission(store, "r", 1, 0) == log
    assert plans.read_submission(store, "r", 1, 1) == []
    found = plans.list_submissions(store, "r")
    assert found == {(1, 0): log, (2, 10): [batch("b2")]}
    assert plans.batch_ids(found) == ["b1", "b2"]


def test_a_log_of_more_than_ten_records_is_read_in_their_order(store: Store) -> None:
    records = [batch(f"b{number}") for number in range(12)]
    for slot, record in enumerate(records):
        plans.append_submission(store, "r", 1, 0, slot, record)
    assert plans.list_submissions(store, "r") == {(1, 0): records}
    assert plans.read_submission(store, "r", 1, 0) == records


def test_a_task_is_read_back_as_its_document(store: Store) -> None:
    store.put("tasks/k.json", b'{"kind":"task"}')
    assert plans.read_task(store, "k") == {"kind": "task"}
    with pytest.raises(RootError, match=r"tasks/other\.json is missing: the root lost its records"):
        plans.read_task(store, "other")
