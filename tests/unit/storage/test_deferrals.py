"""Deferrals: their names tell enough, and of one digest there is one."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import AwaitedRun, DeferralRecord, Intent, Owner, PlannedOutput
from claude_batch_dagster.storage.deferrals import (
    digest_deferral,
    digest_of,
    find_deferral,
    list_deferrals,
    name_deferral,
    number_of,
    read_deferral,
    remove_deferral,
    withdraw_intent,
    write_deferral,
    write_intent,
)
from claude_batch_dagster.storage.store import Store

DAY = ("2026-11-01",)
ASSETS = (("reviews", "labels"), ("reviews", "summaries"))


@dataclass
class Place:
    store: Store

    def write(self, number: int, partitions: tuple[str, ...] | None = DAY) -> tuple[str, DeferralRecord]:
        record = DeferralRecord(
            deferred_at="2026-11-23T00:00:00+00:00",
            began_at="2026-11-23T00:00:00+00:00",
            dagster_run_id="d",
            assets=ASSETS,
            partitions=partitions,
            runs=(AwaitedRun(number=number, run_id="run", own=True),),
            planned=(PlannedOutput(task="labels", partition=None, rows=2, asked=1, already_answered=1, in_flight=0),),
            config={"limit": 3},
        )
        name = name_deferral(number, digest_deferral(ASSETS, partitions, None))
        write_deferral(self.store, name, record)
        return name, record


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Store(str(tmp_path / "root")))


def test_a_record_is_read_as_it_was_written_until_it_is_removed(place: Place) -> None:
    name, record = place.write(7)
    assert (number_of(name), read_deferral(place.store, name)) == (7, record)
    remove_deferral(place.store, name)
    remove_deferral(place.store, name)
    assert read_deferral(place.store, name) is None
    assert list_deferrals(place.store) == []


def test_names_are_in_the_order_of_their_numbers(place: Place) -> None:
    for number in (10, 9, 100):
        place.write(number, (f"day {number}",))
    assert [number_of(name) for name in list_deferrals(place.store)] == [9, 10, 100]


@pytest.mark.parametrize("numbers", [(2, 5), (5, 2)])
def test_what_is_deferred_again_has_one_record(place: Place, numbers: tuple[int, int]) -> None:
    for number in numbers:
        name, _ = place.write(number)
    assert list_deferrals(place.store) == [name]
    assert find_deferral(place.store, digest_of(name)) == name


def test_a_record_that_its_writer_had_no_time_to_remove_does_not_count(place: Place) -> None:
    older, _ = place.write(2)
    newer, _ = place.write(5)
    place.store.put(f"deferred/{older}.json", b"{}")
    assert list_deferrals(place.store) == [newer]


def test_the_digest_tells_outputs_apart() -> None:
    digests = {
        digest_deferral(ASSETS, DAY, None),
        digest_deferral(ASSETS, None, None),
        digest_deferral(ASSETS, (*DAY, "2026-11-02"), None),
        digest_deferral(ASSETS, DAY, 20),
        digest_deferral(ASSETS[:1], DAY, None),
        digest_deferral((("reviews/labels",), ASSETS[1]), DAY, None),
    }
    assert len(digests) == 6
    assert digest_deferral(ASSETS[::-1], DAY, None) in digests


def test_a_record_of_a_newer_version_is_refused(place: Place) -> None:
    name, _ = place.write(1)
    place.store.put(f"deferred/{name}.json", b'{"format": 2}')
    with pytest.raises(RootError, match="newer claude-batch-dagster"):
        read_deferral(place.store, name)


def intent_of(record: DeferralRecord, run_id: str) -> DeferralRecord:
    intent = Intent(owner=Owner(host="h", pid=1, dagster_run_id=run_id), leaves_at=record.deferred_at)
    return msgspec.structs.replace(record, dagster_run_id=run_id, intent=intent)


def test_an_intent_stands_beside_what_it_will_replace_and_only_its_own_run_withdraws_it(place: Place) -> None:
    former, record = place.write(7)
    mine, intent = name_deferral(9, digest_of(former)), intent_of(record, "mine")
    write_intent(place.store, mine, intent)
    assert list_deferrals(place.store) == [mine], "the newest counts"
    withdraw_intent(place.store, mine, "another")
    assert read_deferral(place.store, mine) == intent
    withdraw_intent(place.store, mine, "mine")
    assert list_deferrals(place.store) == [former], "a run that fails leaves what was deferred before"


def test_an_intent_does_not_replace_what_was_deferred_under_its_name(place: Place) -> None:
    name, record = place.write(7)
    write_intent(place.store, name, intent_of(record, "mine"))
    withdraw_intent(place.store, name, "mine")
    assert read_deferral(place.store, name) == record


def test_what_was_collected_is_removed_with_what_it_replaced(place: Place) -> None:
    former, record = place.write(7)
    newer = name_deferral(9, digest_of(former))
    write_intent(place.store, newer, intent_of(record, "mine"))
    other, _ = place.write(8, ("2026-11-02",))
    remove_deferral(place.store)
    remove_deferral(place.store, newer)
    assert list_deferrals(place.store) == [other]
