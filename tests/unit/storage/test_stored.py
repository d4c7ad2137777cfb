from datetime import timedelta
from pathlib import Path

import pytest

from claude_batch_dagster.core.errors import RootError, TransientError
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import forget_lost_responses, maintain_responses
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.recovered import count_stored, extend_responses, list_stored
from claude_batch_dagster.storage.responses import responses_path
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import find_batches, read_batch_keys, read_batches, read_stored_files
from claude_batch_dagster.storage.twice import count_answered_twice
from tests.unit.storage.responses_of import ALWAYS, LONG_AGO, NEVER_JOINED, NOON, answer, key, write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three batches of three requests each."""
    store = Store(str(tmp_path))
    for number in range(3):
        write(store, f"b{number}", [answer(3 * number + i) for i in range(3)], minutes=number)
    return store


def maintain(store: Store, *, days: float = 0) -> None:
    maintain_responses(store, "simulator", "t", now=NOON + timedelta(days=days), limits=ALWAYS)


def names(store: Store) -> list[str]:
    return [path.rpartition("/")[2] for path in store.list("responses")]


def answered(store: Store, count: int) -> list[bool]:
    return Answers(store, "simulator", "t").final(pack_keys([key(i) for i in range(count)])).tolist()


def extend(store: Store, batch_id: str, number: int) -> None:
    extend_responses(store, endpoint="simulator", task_key="t", batch_id=batch_id, answered_at=NOON, responses=[answer(number)])


def test_an_index_that_is_older_than_the_files_hides_no_answer(store: Store) -> None:
    maintain(store)
    write(store, "b3", [answer(9)])
    extend(store, "b0", 10)
    assert answered(store, 12) == [True] * 11 + [False]


def test_files_that_were_replaced_are_passed_over_and_their_answers_found(store: Store) -> None:
    maintain(store)
    stored = read_stored_files(store, "simulator", "t")
    assert len(stored.files) == 1
    assert len(stored.replaced) == 3
    assert answered(store, 10) == [True] * 9 + [False]
    assert len(Answers(store, "simulator", "t")) == 9


@pytest.mark.parametrize("days", [1, 3])
def test_a_replaced_file_that_is_written_again_counts(store: Store, days: int) -> None:
    """A recovery adds to a batch that was compacted, before and after its own file was removed."""
    maintain(store)
    maintain(store, days=days)
    assert ("b1.parquet" in names(store)) == (days == 1)
    extend(store, "b1", 9)
    assert answered(store, 11) == [True] * 10 + [False]
    maintain(store, days=days + 1)
    maintain(store, days=days + 6)
    assert answered(store, 11) == [True] * 10 + [False]
    (table,) = [table for _ in [0] for table in [*read_batches(store, "simulator", "t", ["b1"], ["answer"])][-1:]]
    assert table.column_names == ["answer"]


def test_a_file_that_the_index_covers_and_that_is_gone_is_never_an_unanswered_request(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=NEVER_JOINED)
    store.delete(responses_path("simulator", "t", "b1"))
    for batch_ids in (None, ["b0"]):
        with pytest.raises(
            RootError, match=r"1 file is missing below .*/responses/simulator/t \(b1.parquet\) with 3 responses .* claude-batch recover"
        ):
            Answers(store, "simulator", "t", batch_ids=batch_ids)
    with pytest.raises(RootError):
        maintain(store)


def test_a_recovery_accepts_that_files_are_gone_and_looks_for_what_they_held(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=NEVER_JOINED)
    assert forget_lost_responses(store, "simulator", "t") == ()
    store.delete(responses_path("simulator", "t", "b1"))
    assert "b1" not in list_stored(store, "simulator")
    assert forget_lost_responses(store, "simulator", "t") == ("b1.parquet",)
    assert answered(store, 10) == [True] * 3 + [False] * 3 + [True] * 3 + [False]
    write(store, "b1", [answer(3 + i) for i in range(3)])
    assert answered(store, 10) == [True] * 9 + [False]


def test_a_compacted_file_that_is_gone_is_missed_and_what_it_replaced_counts_again(store: Store) -> None:
    maintain(store)
    (compacted,) = [name for name in names(store) if name.startswith("compacted-")]
    store.delete(f"responses/simulator/t/{compacted}")
    with pytest.raises(RootError, match="with 9 responses that are paid for"):
        Answers(store, "simulator", "t")
    assert forget_lost_responses(store, "simulator", "t") == (compacted,)
    assert answered(store, 10) == [True] * 9 + [False]
    maintain(store, days=9)
    assert answered(store, 10) == [True] * 9 + [False]


@pytest.mark.parametrize("days", [0, 1, 3])
def test_the_answers_are_found_without_any_index(store: Store, days: int) -> None:
    """As long as both are there each answer is found once: a compacted file says itself what it joined."""
    maintain(store)
    maintain(store, days=days)
    for path in store.list("index"):
        store.delete(path)
    answers = Answers(store, "simulator", "t")
    assert len(answers) == 9
    assert answers.mean_output_tokens == 4.0
    maintain(store, days=days)
    maintain(store, days=days + 9)
    assert answered(store, 10) == [True] * 9 + [False]


def test_deleting_the_index_too_is_a_way_to_forget(store: Store) -> None:
    maintain(store)
    maintain(store, days=3)
    for path in [*store.list("index"), *store.list("responses")[:1]]:
        store.delete(path)
    assert answered(store, 9) == [False] * 9


def test_a_generation_that_comes_between_two_looks_is_read_instead(store: Store) -> None:
    """The reader has the old index when two days of upkeep pass: files that the old index covers are gone by rule, and nothing is lost."""

    class Slow(Store):
        slept = False

        def list_versions(self, prefix: str) -> list[tuple[str, str]]:
            if prefix.startswith("responses") and not self.slept:
                self.slept = True
                maintain_responses(Store(self.uri), "simulator", "t", now=NOON, limits=ALWAYS)
                maintain_responses(Store(self.uri), "simulator", "t", now=NOON + LONG_AGO, limits=ALWAYS)
            return super().list_versions(prefix)

    maintain_responses(store, "simulator", "t", limits=NEVER_JOINED)
    write(store, "b3", [answer(9)])
    slow = Slow(store.uri)
    assert answered(slow, 11) == [True] * 10 + [False]
    assert slow.slept
    assert [name for name in names(store) if not name.startswith("compacted-")] == []


def test_a_store_that_never_comes_to_rest_is_given_up_for_now(store: Store) -> None:
    class Restless(Store):
        def list_versions(self, prefix: str) -> list[tuple[str, str]]:
            if prefix.startswith("responses"):
                write(Store(self.uri), "b3", [answer(9)])
                maintain_responses(Store(self.uri), "simulator", "t", limits=NEVER_JOINED)
            return super().list_versions(prefix)

    with pytest.raises(TransientError, match="changed 20 times while they were listed"):
        Answers(Restless(store.uri), "simulator", "t")


def test_a_batch_is_found_by_its_id_before_and_after_it_is_compacted(store: Store) -> None:
    write(store, "b1", [answer(1)], task_key="other")
    for step in (lambda: None, lambda: maintain(store), lambda: maintain(store, days=2)):
        step()
        found = find_batches(store, "simulator", "t")
        assert sorted(found) == ["b0", "b1", "b2"]
        for number in range(3):
            assert read_batch_keys(store, found[f"b{number}"]).tobytes() == b"".join(key(3 * number + i) for i in range(3))
            (table,) = read_batches(store, "simulator", "t", [f"b{number}", "unknown"], ["answer", "batch_id"])
            assert table.to_pylist() == [{"answer": str(3 * number + i), "batch_id": f"b{number}"} for i in range(3)]
        assert count_stored(store, list_stored(store, "simulator")["b1"]) == 4
    assert names(store) != ["b0.parquet", "b1.parquet", "b2.parquet"]


def test_a_response_in_a_compacted_file_and_in_its_own_counts_once(store: Store) -> None:
    maintain(store)
    extend(store, "b1", 9)
    found = find_batches(store, "simulator", "t")
    assert len(found["b1"]) == 2
    assert count_stored(store, list_stored(store, "simulator")["b1"]) == 4
    rows = [row for table in read_batches(store, "simulator", "t", ["b1"], ["answer"]) for row in table["answer"].to_pylist()]
    assert sorted(rows) == ["3", "4", "5", "9"]


def test_an_answer_in_two_files_of_one_batch_was_not_paid_twice(store: Store) -> None:
    maintain(store)
    extend(store, "b1", 9)
    assert count_answered_twice(store, "simulator") == {}
    extend(store, "b2", 0)
    assert count_answered_twice(store, "simulator") == {("b0", "b2"): 1}


def test_files_of_no_response_are_nobody_s(store: Store) -> None:
    store.put("responses/simulator/t/readme.txt", b"x")
    maintain(store)
    assert answered(store, 10) == [True] * 9 + [False]
