import os
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage import best
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.index import find_generation
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.recovered import extend_responses
from claude_batch_dagster.storage.responses import ANSWER_SCHEMA, ROW_GROUP_ROWS, responses_path
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import read_stored_files
from tests.unit.storage.responses_of import ALWAYS, HARD, LONG_AGO, NEVER_JOINED, NOON, OUTCOMES, answer, key, write

Row = tuple[bytes, str, str | None]


@dataclass(frozen=True)
class Batch:
    """A batch that is collected: the first of an id writes its file, a later one adds what is not in it."""

    number: int
    minutes: int
    round: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Upkeep:
    """The index is brought up to date, with or without joining files, at some time."""

    joins: bool
    days: int


@dataclass(frozen=True)
class Damage:
    """An object of the index is lost or spoiled: the first or the last of one kind."""

    kind: str
    spoils: bool


ROWS = st.lists(
    st.tuples(st.sampled_from(HARD), st.sampled_from(sorted(OUTCOMES, key=str))), max_size=6, unique_by=lambda pair: pair[0]
).map(lambda rows: tuple((k, outcome, error) for k, (outcome, error) in rows))
STEPS = st.lists(
    st.one_of(
        st.builds(Batch, st.integers(0, 5), st.integers(0, 2), st.integers(1, 3), ROWS),
        st.builds(Batch, st.integers(0, 5), st.integers(0, 2), st.integers(1, 3), ROWS),
        st.builds(Upkeep, st.booleans(), st.integers(0, 3)),
        st.builds(Damage, st.sampled_from((".json", ".keys")), st.booleans()),
    ),
    max_size=12,
)


class Play:
    """A store, and what must be in it by brute force."""

    def __init__(self, folder: str) -> None:
        self.store = Store(folder)
        self.now = NOON
        self.batches: dict[int, dict[bytes, tuple[tuple[bool, bool, int, int, int], str, str | None]]] = {}

    def take(self, step: Batch | Upkeep | Damage) -> None:
        match step:
            case Batch():
                self._collect(step)
            case Upkeep():
                self.now += timedelta(days=step.days)
                maintain_responses(self.store, "simulator", "t", now=self.now, limits=ALWAYS if step.joins else NEVER_JOINED)
            case Damage():
                self._damage(step)

    def _collect(self, batch: Batch) -> None:
        known = self.batches.setdefault(batch.number, {})
        rows = [row for row in batch.rows if row[0] not in known]
        responses = [Response(request_key=k, outcome=o, error=e, answer=f"{batch.number}", output_tokens=len(k)) for k, o, e in rows]
        number = 1 if known else batch.round
        if known:
            extend_responses(
                self.store,
                endpoint="simulator",
                task_key="t",
                batch_id=f"b{batch.number}",
                answered_at=NOON + timedelta(minutes=batch.minutes),
                responses=responses,
            )
        else:
            write(self.store, f"b{batch.number}", responses, batch.minutes, batch.round)
        known.update({k: ((o == "succeeded", OUTCOMES[o, e], batch.minutes, number, batch.number), o, e) for k, o, e in rows})

    def _damage(self, damage: Damage) -> None:
        # Older records name files that are gone by now, and do not count: only the newest is worth a blow.
        paths = [path for path in self.store.list("index") if path.endswith(damage.kind)]
        if not paths:
            return
        content = self.store.get(paths[-1])
        assert content is not None
        if damage.spoils:
            self.store.put(paths[-1], content[:-1] + bytes([content[-1] ^ 1]))
        elif damage.kind == ".keys":
            self.store.delete(paths[-1])

    def check(self) -> None:
        oracle: dict[bytes, tuple[tuple[bool, bool, int, int, int], str, str | None]] = {}
        for rows in self.batches.values():
            for k, row in rows.items():
                if k not in oracle or row > oracle[k]:
                    oracle[k] = row
        answers = Answers(self.store, "simulator", "t")
        asked = [*HARD, key(1), None, *HARD[::-1]]
        keys = pack_keys(asked)
        assert len(answers) == len(oracle)
        assert (answers.find(keys) >= 0).tolist() == [k in oracle for k in asked]
        assert answers.final(keys).tolist() == [k in oracle and oracle[k][0][1] for k in asked]
        assert list(answers.outcomes(keys)) == [oracle[k][1:] if k in oracle else (None, None) for k in asked]
        for wanted in {outcome for outcome, _ in OUTCOMES}:
            assert answers.ended_as(keys, Outcome(wanted)).tolist() == [k in oracle and oracle[k][1] == wanted for k in asked]
        places = answers.find(keys)
        fetched = answers.fetch(places[places >= 0])
        assert fetched["request_key"].to_pylist() == [UUID(bytes=k) for k in asked if k in oracle]
        assert fetched["answer"].to_pylist() == [str(oracle[k][0][4]) if oracle[k][1] is not None else None for k in asked if k in oracle]
        for number, rows in self.batches.items():
            mine = Answers(self.store, "simulator", "t", batch_ids=[f"b{number}"])
            assert list(mine.outcomes(keys)) == [rows[k][1:] if k in rows else (None, None) for k in asked]


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
def test_the_best_response_of_a_key_counts_whatever_is_indexed_joined_removed_or_damaged(steps: list[Batch | Upkeep | Damage]) -> None:
    """A usable one first, then a final one, then the latest, then that of the highest round, then batch id."""
    with tempfile.TemporaryDirectory() as folder:
        play = Play(folder)
        for step in steps:
            play.take(step)
            if not isinstance(step, Batch):
                play.check()
        play.check()


@pytest.mark.parametrize("group_rows", [1, 3])
@pytest.mark.parametrize("indexed", [0, 2, 4])
def test_more_responses_than_fit_in_memory_are_folded_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int, indexed: int
) -> None:
    """Files that come later, some of them with better answers to the same keys, some with worse."""
    monkeypatch.setattr(best, "GROUP_ROWS", group_rows)
    store = Store(str(tmp_path))
    for batch in range(4):
        rows = [answer(i, f"{batch}") for i in range(batch, batch + 4)]
        rows += [Response(request_key=key(100), outcome="expired" if batch == 2 else "invalid", error="not_json: x")]
        write(store, f"b{batch}", rows, minutes=(2, 0, 1, 0)[batch])
        if batch + 1 == indexed:
            assert maintain_responses(store, "simulator", "t", limits=NEVER_JOINED)
    assert len(best.load_best(read_stored_files(store, "simulator", "t")).base) >= 5
    answers = Answers(store, "simulator", "t")
    found = answers.fetch(answers.find(pack_keys([key(i) for i in range(7)])))["answer"].to_pylist()
    assert found == ["0", "0", "0", "0", "2", "2", "3"]
    assert list(answers.outcomes(pack_keys([key(100)]))) == [("invalid", "not_json: x")]
    assert len(answers) == 8


def test_an_index_is_not_read_where_only_some_batches_are_asked_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(1), answer(2)])
    write(store, "b1", [answer(2, "later"), answer(3)], minutes=1)
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    answers = Answers(store, "simulator", "t", batch_ids=("b0",))
    assert (answers.find(pack_keys([key(1), key(2), key(3)])) >= 0).tolist() == [True, True, False]
    assert answers.fetch(answers.find(pack_keys([key(2)])))["answer"].to_pylist() == ["2"]
    assert answers.mean_output_tokens == 1.5


def test_a_place_that_holds_another_request_is_refused(tmp_path: Path) -> None:
    """The rows of a file were exchanged under a reader that had opened the store."""
    store = Store(str(tmp_path))
    write(store, "b0", [answer(1), answer(2)])
    answers = Answers(store, "simulator", "t")
    write(store, "b0", [answer(2), answer(1)])
    with pytest.raises(RootError, match="2 of 2 responses are not where"):
        answers.fetch(answers.find(pack_keys([key(1), key(2)])))


def test_a_file_whose_rows_were_exchanged_is_read_anew_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(1), answer(2)])
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    write(store, "b0", [answer(2), answer(1)])
    answers = Answers(store, "simulator", "t")
    assert answers.fetch(answers.find(pack_keys([key(1), key(2)])))["answer"].to_pylist() == ["1", "2"]
    assert "does not agree with the responses" in caplog.text


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("later", ["b0", "b2"])
def test_of_two_answers_of_one_moment_that_of_the_higher_batch_id_counts(tmp_path: Path, later: str, joins: bool) -> None:
    """Whichever of them the index knows, and wherever its row is by now."""
    store = Store(str(tmp_path))
    write(store, "b1", [answer(1, "b1")])
    write(store, "b11", [answer(2)])
    maintain_responses(store, "simulator", "t", limits=ALWAYS if joins else NEVER_JOINED)
    write(store, later, [answer(1, later)])
    answers = Answers(store, "simulator", "t")
    assert answers.fetch(answers.find(pack_keys([key(1)])))["answer"].to_pylist() == [max("b1", later)]


@pytest.mark.parametrize("left", [[1], [3, 1, 4], []])
def test_a_file_that_lost_answers_is_never_an_unanswered_request(tmp_path: Path, left: list[int]) -> None:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(1), answer(2)])
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    write(store, "b0", [answer(number) for number in left])
    with pytest.raises(RootError, match=rf"b0.parquet was written again without {2 - left.count(1)} responses that are paid for"):
        Answers(store, "simulator", "t")
    for path in store.list("index"):
        store.delete(path)
    assert len(Answers(store, "simulator", "t")) == len(left)


def test_places_tell_file_and_row(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(i) for i in range(3)])
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    write(store, "b1", [answer(i) for i in range(3, 5)])
    answers = Answers(store, "simulator", "t")
    located = answers.locate(answers.find(pack_keys([key(i) for i in (4, 2, 0)])))
    assert located.row.tolist() == [1, 2, 0]
    assert located.file[1] == located.file[2] != located.file[0]


def test_what_was_replaced_is_read_until_it_is_removed_and_then_said_to_be_gone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for batch in range(2):
        write(store, f"b{batch}", [answer(batch)], minutes=batch)
    answers = Answers(store, "simulator", "t")
    maintain_responses(store, "simulator", "t", now=NOON, limits=ALWAYS)
    maintain_responses(store, "simulator", "t", now=NOON + LONG_AGO - timedelta(seconds=1), limits=ALWAYS)
    assert answers.fetch(answers.find(pack_keys([key(0)])))["answer"].to_pylist() == ["0"]
    maintain_responses(store, "simulator", "t", now=NOON + LONG_AGO, limits=ALWAYS)
    with pytest.raises(RootError, match="removed while it was being read"):
        answers.fetch(answers.find(pack_keys([key(1)])))


def test_opening_an_indexed_store_reads_no_response_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(i) for i in range(10)])
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    file = tmp_path / responses_path("simulator", "t", "b0")
    times, size = file.stat(), file.stat().st_size
    with file.open("r+b") as spoiled:
        # In place, so that neither inode nor size differs, and the time is put back.
        spoiled.write(bytes(size))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    answers = Answers(store, "simulator", "t")
    assert len(answers) == 10
    assert answers.final(pack_keys([key(i) for i in range(11)])).tolist() == [True] * 10 + [False]
    assert find_generation(store, "index/simulator/t") == 1


@dataclass(frozen=True)
class Batch:
    minutes: int
    round: int
    responses: tuple[tuple[bytes, str, str | None], ...]


BATCHES = st.lists(
    st.builds(
        Batch,
        st.integers(0, 2),
        st.integers(1, 3),
        st.lists(
            st.tuples(st.sampled_from(HARD), st.sampled_from(sorted(OUTCOMES, key=str))), max_size=6, unique_by=lambda pair: pair[0]
        ).map(lambda rows: tuple((k, outcome, error) for k, (outcome, error) in rows)),
    ),
    max_size=5,
)


def test_responses_are_fetched_in_the_order_asked_over_files_and_row_groups(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    count = ROW_GROUP_ROWS + 100
    write(store, "b0", [answer(i) for i in range(count)])
    write(store, "b1", [answer(i) for i in range(count, count + 50)])
    assert pq.ParquetFile(tmp_path / responses_path("simulator", "t", "b0")).num_row_groups == 2
    answers = Answers(store, "simulator", "t")
    wanted = [count + 49, 0, ROW_GROUP_ROWS, 0, count - 1, count, ROW_GROUP_ROWS - 1, 1]
    fetched = answers.fetch(answers.find(pack_keys([key(i) for i in wanted])))
    assert fetched["answer"].to_pylist() == [str(i) for i in wanted]


def test_answers_of_other_tasks_and_endpoints_are_not_seen(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b", [answer(1)], task_key="t1")
    assert [len(Answers(store, *place)) for place in (("simulator", "t1"), ("simulator", "t"), ("anthropic", "t1"))] == [1, 0, 0]


@pytest.mark.parametrize("responses", [[], [Response(request_key=key(1), outcome="expired", error="expired: x")]])
def test_the_mean_of_no_answers_is_unknown(tmp_path: Path, responses: list[Response]) -> None:
    store = Store(str(tmp_path))
    write(store, "b", responses)
    assert Answers(store, "simulator", "t").mean_output_tokens is None


def test_the_mean_output_is_that_of_usable_answers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [("succeeded", 10), ("succeeded", 30), ("truncated", 1_000), ("expired", 0)]
    write(store, "b", [Response(request_key=key(i), outcome=o, output_tokens=n) for i, (o, n) in enumerate(rows)])
    assert Answers(store, "simulator", "t").mean_output_tokens == 20.0


def test_an_empty_store_knows_nothing(tmp_path: Path) -> None:
    answers = Answers(Store(str(tmp_path / "none")), "simulator", "t")
    assert len(answers) == 0
    assert answers.find(pack_keys([key(1), None])).tolist() == [-1, -1]
    assert answers.final(pack_keys([key(1)])).tolist() == [False]
    assert answers.fetch(np.empty(0, np.int64)).schema.equals(ANSWER_SCHEMA)
    assert not (tmp_path / "none").exists()


def cut(number: int, *, max_tokens: int, retryable: bool) -> Response:
    return Response(request_key=key(number), outcome="truncated", error="max_tokens: cut", max_tokens=max_tokens, retryable=retryable)


def test_what_its_run_would_have_asked_again_is_not_final_until_a_later_answer_is(tmp_path: Path) -> None:
    """It is the best answer all the same, and no failure for good; what was cut is asked with more room."""
    store = Store(str(tmp_path))
    write(
        store,
        "b1",
        [cut(1, max_tokens=100, retryable=True), cut(2, max_tokens=100, retryable=False), cut(3, max_tokens=90_000, retryable=True)],
    )
    keys = pack_keys([key(1), key(2), key(3), key(4)])
    answers = Answers(store, "simulator", "t")
    assert answers.final(keys).tolist() == [False, True, False, False]
    assert answers.failed(keys).tolist() == [False, True, False, False]
    assert answers.raised_caps(keys) == {0: 200, 2: 90_000}
    write(store, "b2", [Response(request_key=key(1), outcome="expired", error="expired: x")], minutes=1)
    answers = Answers(store, "simulator", "t")
    assert [outcome for outcome, _ in answers.outcomes(keys)] == ["truncated", "truncated", "truncated", None]
    assert answers.final(keys).tolist() == [False, True, False, False]
    write(store, "b3", [cut(1, max_tokens=200, retryable=False)], minutes=2)
    answers = Answers(store, "simulator", "t")
    assert answers.final(keys).tolist() == [True, True, False, False]
    assert answers.raised_caps(keys) == {2: 90_000}
    assert Answers(Store(str(tmp_path / "new")), "simulator", "t").raised_caps(keys) == {}


def test_a_file_from_before_the_column_retryable_is_read_and_extended(tmp_path: Path) -> None:
    """Its answers are final by their outcome."""
    store = Store(str(tmp_path))
    write(store, "b1", [cut(1, max_tokens=100, retryable=True)])
    path = responses_path("simulator", "t", "b1")
    older = pq.ParquetFile(store.open(path)).read().drop_columns(["retryable"])
    pq.write_table(older, tmp_path / path)
    write(store, "b2", [cut(2, max_tokens=100, retryable=True)])
    answers = Answers(store, "simulator", "t")
    keys = pack_keys([key(1), key(2)])
    assert answers.final(keys).tolist() == [True, False]
    assert answers.fetch(answers.find(keys))["max_tokens"].to_pylist() == [100, 100]
    extend_responses(
        store, endpoint="simulator", task_key="t", batch_id="b1", answered_at=NOON, responses=[cut(3, max_tokens=100, retryable=False)]
    )
    assert Answers(store, "simulator", "t").final(pack_keys([key(1), key(2), key(3)])).tolist() == [True, False, True]
    assert pq.ParquetFile(store.open(path)).read().num_rows == 1
