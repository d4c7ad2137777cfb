"""Answers come in the order of the rows, whatever order the store has them in, and no row group is read more often than it must be."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage import gather as gathering
from claude_batch_dagster.storage import responses as stored
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.gather import COLUMNS, gather
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.reader import ResponseReader
from claude_batch_dagster.storage.store import Store

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BUCKET_ROWS, ROW_GROUP_ROWS = 8, 4


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "BUCKET_ROWS", BUCKET_ROWS)
    monkeypatch.setattr(gathering, "FIND_ROWS", 5)
    monkeypatch.setattr(gathering, "ROW_GROUP_ROWS", ROW_GROUP_ROWS)
    monkeypatch.setattr(stored, "ROW_GROUP_ROWS", ROW_GROUP_ROWS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """How often each row group was read."""
    counts: Counter[tuple[int, int]] = Counter()
    read = ResponseReader._read_group

    def count(self: Any, file: int, group: int, columns: Any) -> pa.Table:
        counts[file, group] += 1
        return read(self, file, group, columns)

    monkeypatch.setattr(ResponseReader, "_read_group", count)
    return counts


def write(store: Store, *batches: list[int]) -> None:
    """Answer numbers, a batch a list; a number in a later batch is answered better there."""
    for at, numbers in enumerate(batches):
        stored.write_responses(
            store,
            endpoint="simulator",
            task_key="t",
            batch_id=f"b{at}",
            round_number=1,
            answered_at=NOON + timedelta(seconds=at),
            responses=[Response(request_key=key(number), outcome="succeeded", answer=f"{at}:{number}") for number in numbers],
        )


def read_all(store: Store, rows: Sequence[int | None], scratch: Path) -> list[str | None]:
    keys = pack_keys([None if row is None else key(row) for row in rows])
    found = list(gather(Answers(store, "simulator", "t"), keys, scratch))
    assert [len(part.places) for part in found] == [part.responses.num_rows for part in found]
    assert all(part.responses.column_names == COLUMNS for part in found)
    assert all(len(part.places) == BUCKET_ROWS for part in found[:-1])
    answers = [answer for part in found for answer in part.responses["answer"].to_pylist()]
    assert [place >= 0 for part in found for place in part.places] == [answer is not None for answer in answers]
    return answers


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.integers(0, 40), max_size=30, unique=True), max_size=3),
    rows=st.lists(st.none() | st.integers(0, 45), max_size=50),
    waiting=st.integers(0, 2_000),
    is_indexed=st.booleans(),
)
def test_rows_get_their_answers_whichever_way_they_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    small_pieces: None,
    batches: list[list[int]],
    rows: list[int | None],
    waiting: int,
    is_indexed: bool,
) -> None:
    monkeypatch.setattr(gathering, "WAITING_BYTES", waiting)
    folder = tmp_path_factory.mktemp("lake")
    store, scratch = Store(str(folder / "root")), folder / "scratch"
    scratch.mkdir()
    write(store, *batches)
    if is_indexed:
        maintain_responses(store, "simulator", "t")
    last = {number: at for at, numbers in enumerate(batches) for number in numbers}
    assert read_all(store, rows, scratch) == [None if row not in last else f"{last[row]}:{row}" for row in rows]
    assert list(scratch.iterdir()) == []


def test_neighbours_are_read_bucket_by_bucket_without_scratch_files(tmp_path: Path, small_pieces: None, reads: Counter[Any]) -> None:
    store = Store(str(tmp_path / "root"))
    write(store, list(range(64)))
    assert read_all(store, list(range(64)), tmp_path / "no scratch") == [f"0:{row}" for row in range(64)]
    assert set(reads.values()) == {1}


@pytest.mark.parametrize(
    "order",
    [
        lambda rows: rows[::-1],
        lambda rows: np.random.default_rng(1).permutation(rows).tolist(),
        lambda rows: [row for pair in zip(rows, np.random.default_rng(2).permutation(rows).tolist(), strict=True) for row in pair],
    ],
)
@pytest.mark.parametrize("waiting", [0, 2_000, 1 << 20])
def test_scattered_rows_read_each_row_group_once(
    tmp_path: Path,
    small_pieces: None,
    reads: Counter[Any],
    order: Callable[[list[int]], list[int]],
    waiting: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "WAITING_BYTES", waiting)
    store = Store(str(tmp_path / "root"))
    write(store, list(range(64)), list(range(64, 128)))
    rows = order(list(range(128)))
    assert read_all(store, rows, tmp_path) == [f"{row // 64}:{row}" for row in rows]
    assert set(reads.values()) == {1}


def test_a_row_without_a_key_has_no_answer_even_where_one_is_stored(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    responses = [Response(request_key=bytes(16), outcome="succeeded", answer="x")]
    stored.write_responses(store, endpoint="simulator", task_key="t", batch_id="b", round_number=1, answered_at=NOON, responses=responses)
    assert read_all(store, [None], tmp_path) == [None]


@pytest.mark.parametrize("waiting", [0, 9_999])
def test_a_response_that_is_not_where_the_index_says_is_never_handed_to_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pieces: None, waiting: int
) -> None:
    monkeypatch.setattr(gathering, "WAITING_BYTES", waiting)
    store = Store(str(tmp_path / "root"))
    write(store, list(range(20)))
    answers = Answers(store, "simulator", "t")
    write(store, list(range(20))[::-1])
    with pytest.raises(RootError, match="responses are not where"):
        list(gather(answers, pack_keys([key(row) for row in range(20)]), tmp_path))


def test_long_answers_are_gathered_fewer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "root"))
    texts = ["x" * 4_000 for _ in range(40)]
    stored.write_responses(
        store,
        endpoint="simulator",
        task_key="t",
        batch_id="b",
        round_number=1,
        answered_at=NOON,
        responses=[Response(request_key=key(row), outcome="succeeded", answer=text, output_tokens=1_000) for row, text in enumerate(texts)],
    )
    monkeypatch.setattr(gathering, "BUCKET_BYTES", 16_000)
    answers, keys = Answers(store, "simulator", "t"), pack_keys([key(row) for row in reversed(range(40))])
    for waiting in (0, 1 << 20):
        monkeypatch.setattr(gathering, "WAITING_BYTES", waiting)
        found = list(gather(answers, keys, tmp_path))
        assert [part.responses.num_rows for part in found] == [4] * 10
        assert [answer for part in found for answer in part.responses["answer"].to_pylist()] == texts
