from itertools import accumulate, pairwise
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage import responses as stored
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.responses import (
    FINAL,
    OUTCOME_BITS,
    ROW_GROUP_ROWS,
    SCHEMA,
    read_ranks,
    responses_path,
    write_response_batches,
)
from claude_batch_dagster.storage.responses import OUTCOMES as OUTCOME_WORDS
from claude_batch_dagster.storage.store import Store
from tests.unit.storage.responses_of import NOON, OUTCOMES, answer, key, write


def test_a_response_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    response = Response(
        request_key=key(1),
        outcome="succeeded",
        answer='{"a":"é\\u0000\u2028🎉"}',
        stop_reason="end_turn",
        model="claude-haiku-5-5",
        input_tokens=1,
        output_tokens=2,
        cache_read_tokens=3,
        cache_write_5m_tokens=4,
        cache_write_1h_tokens=5,
        max_tokens=6,
        cost_nano_usd=None,
    )
    write(store, "batch_1", [response], number=2)
    table = pq.read_table(tmp_path / "responses" / "simulator" / "t" / "batch_1.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [
        {
            "request_key": UUID(bytes=key(1)),
            "outcome": "succeeded",
            "answer": '{"a":"é\\u0000\u2028🎉"}',
            "stop_reason": "end_turn",
            "error": None,
            "model": "claude-haiku-5-5",
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_read_tokens": 3,
            "cache_write_tokens": 9,
            "max_tokens": 6,
            "cost_nano_usd": None,
            "batch_id": "batch_1",
            "round": 2,
            "answered_at": NOON,
            "retryable": False,
        }
    ]


def test_a_batch_that_is_collected_twice_is_the_same_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for _ in range(2):
        write(store, "b", [answer(i, "x") for i in range(3)])
    assert store.list("responses") == [responses_path("simulator", "t", "b")]
    assert len(Answers(store, "simulator", "t")) == 3


def test_a_batch_without_responses_is_an_empty_file_that_can_be_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b", [])
    assert len(Answers(store, "simulator", "t")) == 0
    assert pq.read_table(pa.BufferReader(store.get(responses_path("simulator", "t", "b")))).schema.equals(SCHEMA)


@pytest.mark.parametrize("lengths", [[], [0], [1], [5, 7, 3], [20_000, 1, 40_000], [16_384, 16_384], [16_383, 2]])
def test_batches_of_any_length_become_full_row_groups(tmp_path: Path, lengths: list[int]) -> None:
    store = Store(str(tmp_path))
    write(store, "one", [answer(1)])
    row = pq.read_table(tmp_path / responses_path("simulator", "t", "one"))
    numbers = iter(range(sum(lengths)))
    batches = [
        pa.record_batch(
            [
                pa.array([next(numbers) for _ in range(length)], pa.int64())
                if name == "input_tokens"
                else row[name].combine_chunks().take(pa.array([0] * length, pa.int64()))
                for name in SCHEMA.names
            ],
            schema=SCHEMA,
        )
        for length in lengths
    ]
    write_response_batches(store, endpoint="simulator", task_key="t", batch_id="b", batches=iter(batches))
    file = pq.ParquetFile(tmp_path / responses_path("simulator", "t", "b"))
    assert file.read()["input_tokens"].to_pylist() == list(range(sum(lengths)))
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    assert groups[:-1] == [ROW_GROUP_ROWS] * (len(groups) - 1)
    assert all(0 < rows <= ROW_GROUP_ROWS for rows in groups[-1:])


@given(
    sizes=st.lists(st.none() | st.sampled_from([0, 1, 3, 4, 30, 200]), max_size=40),
    cuts=st.lists(st.integers(0, 7), min_size=40, max_size=40),
    most=st.tuples(st.sampled_from([3, 4, 8]), st.sampled_from([5, 20, 100])),
)
def test_row_groups_are_bounded_by_rows_and_bytes_however_the_batches_come(
    sizes: list[int | None], cuts: list[int], most: tuple[int, int]
) -> None:
    rows = pa.record_batch(
        {"number": range(len(sizes)), "answer": pa.array([None if size is None else "x" * size for size in sizes], pa.string())}
    )
    starts = [0, *(min(end, len(sizes)) for end in accumulate(cuts)), len(sizes)]
    expected: list[list[int]] = []
    for number, size in enumerate(sizes):
        held = expected[-1] if expected else []
        if not held or len(held) == most[0] or sum(sizes[at] or 0 for at in held) + (size or 0) > most[1]:
            expected.append([])
        expected[-1].append(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "ROW_GROUP_ROWS", most[0])
        patch.setattr(stored, "ROW_GROUP_BYTES", most[1])
        batches = [rows.slice(start, stop - start) for start, stop in pairwise(starts)]
        assert [group["number"].to_pylist() for group in stored._regroup(batches)] == expected


def test_what_decides_is_read_of_every_row(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [Response(request_key=key(i), outcome=outcome, error=error, output_tokens=i) for i, (outcome, error) in enumerate(OUTCOMES)]
    write(store, "b", rows, number=3)
    ranks = read_ranks(store, responses_path("simulator", "t", "b"))
    assert [bool(code & FINAL) for code in ranks.codes.tolist()] == list(OUTCOMES.values())
    assert [OUTCOME_WORDS[code & OUTCOME_BITS] for code in ranks.codes.tolist()] == [outcome for outcome, _ in OUTCOMES]
    assert ranks.keys.tobytes() == b"".join(row.request_key for row in rows)
    assert set(ranks.stamps.tolist()) == {int(NOON.timestamp() * 1e6)}
    assert set(ranks.rounds.tolist()) == {3}
    assert ranks.output_tokens.tolist() == list(range(len(OUTCOMES)))
