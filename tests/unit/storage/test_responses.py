import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.recovered import extend_responses
from claude_batch_dagster.storage.responses import ANSWER_SCHEMA, ROW_GROUP_ROWS, SCHEMA, Answers, responses_path, write_responses
from claude_batch_dagster.storage.store import Store

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
# (outcome, error) -> whether it is asked again by the next run.
OUTCOMES = {
    ("succeeded", None): True,
    ("refused", "refusal: no category given"): True,
    ("truncated", "max_tokens: cut"): True,
    ("invalid", "not_json: x"): True,
    ("errored", "invalid_request_error: x"): True,
    ("errored", "too_large: x"): True,
    ("errored", "api_error: x"): False,
    ("errored", "result_missing: x"): False,
    ("expired", "expired: x"): False,
    ("canceled", "canceled: x"): False,
}
HARD = [bytes(15) + bytes([i]) for i in range(1, 5)] + [b"\xff" * 8 + bytes(7) + bytes([i]) for i in range(3)] + [bytes(8) + b"\x01" * 8]


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


def write(store: Store, batch_id: str, responses: Sequence[Response], minutes: int = 0, number: int = 1, task_key: str = "t") -> None:
    write_responses(
        store,
        endpoint="simulator",
        task_key=task_key,
        batch_id=batch_id,
        round_number=number,
        answered_at=NOON + timedelta(minutes=minutes),
        responses=responses,
    )


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


@settings(max_examples=25)
@given(batches=BATCHES)
def test_the_best_response_of_a_key_is_a_usable_one_first_then_a_final_one_then_the_latest(batches: list[Batch]) -> None:
    oracle: dict[bytes, tuple[tuple[bool, bool, int, int, int], str, str | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        for at, batch in enumerate(batches):
            rows = [Response(request_key=k, outcome=outcome, error=error, answer=f"{at}") for k, outcome, error in batch.responses]
            write(store, f"b{at}", rows, batch.minutes, batch.round)
            for k, outcome, error in batch.responses:
                rank = (outcome == "succeeded", OUTCOMES[outcome, error], batch.minutes, batch.round, at)
                if k not in oracle or rank > oracle[k][0]:
                    oracle[k] = (rank, outcome, error)
        answers = Answers(store, "simulator", "t")
        asked = [*HARD, key(1), None, *HARD[::-1]]
        keys = pack_keys(asked)
        assert len(answers) == len(oracle)
        assert (answers.find(keys) >= 0).tolist() == [k in oracle for k in asked]
        assert answers.final(keys).tolist() == [k in oracle and OUTCOMES[oracle[k][1], oracle[k][2]] for k in asked]
        assert list(answers.outcomes(keys)) == [oracle[k][1:] if k in oracle else (None, None) for k in asked]
        for wanted in {outcome for outcome, _ in OUTCOMES}:
            assert answers.ended_as(keys, Outcome(wanted)).tolist() == [k in oracle and oracle[k][1] == wanted for k in asked]
        places = answers.find(keys)
        fetched = answers.fetch(places[places >= 0])
        assert fetched["request_key"].to_pylist() == [UUID(bytes=k) for k in asked if k in oracle]
        assert fetched["answer"].to_pylist() == [str(oracle[k][0][4]) for k in asked if k in oracle]


def test_responses_are_fetched_in_the_order_asked_over_files_and_row_groups(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    count = ROW_GROUP_ROWS + 100
    write(store, "b0", [Response(request_key=key(i), outcome="succeeded", answer=str(i)) for i in range(count)])
    write(store, "b1", [Response(request_key=key(i), outcome="succeeded", answer=str(i)) for i in range(count, count + 50)])
    assert pq.ParquetFile(tmp_path / responses_path("simulator", "t", "b0")).num_row_groups == 2
    answers = Answers(store, "simulator", "t")
    wanted = [count + 49, 0, ROW_GROUP_ROWS, 0, count - 1, count, ROW_GROUP_ROWS - 1, 1]
    fetched = answers.fetch(answers.find(pack_keys([key(i) for i in wanted])))
    assert fetched["answer"].to_pylist() == [str(i) for i in wanted]


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
        write(store, "b", [Response(request_key=key(i), outcome="succeeded", answer="x") for i in range(3)])
    assert store.list("responses") == [responses_path("simulator", "t", "b")]
    assert len(Answers(store, "simulator", "t")) == 3


def test_answers_of_other_tasks_and_endpoints_are_not_seen(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b", [Response(request_key=key(1), outcome="succeeded", answer="x")], task_key="t1")
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


def test_a_batch_without_responses_is_an_empty_file_that_can_be_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write(store, "b", [])
    assert len(Answers(store, "simulator", "t")) == 0
    assert pq.read_table(pa.BufferReader(store.get(responses_path("simulator", "t", "b")))).schema.equals(SCHEMA)


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
    assert answers.raised_caps(keys) == [200, None, 90_000, None]
    write(store, "b2", [Response(request_key=key(1), outcome="expired", error="expired: x")], minutes=1)
    answers = Answers(store, "simulator", "t")
    assert [outcome for outcome, _ in answers.outcomes(keys)] == ["truncated", "truncated", "truncated", None]
    assert answers.final(keys).tolist() == [False, True, False, False]
    write(store, "b3", [cut(1, max_tokens=200, retryable=False)], minutes=2)
    answers = Answers(store, "simulator", "t")
    assert answers.final(keys).tolist() == [True, True, False, False]
    assert answers.raised_caps(keys) == [None, None, 90_000, None]
    assert Answers(Store(str(tmp_path / "new")), "simulator", "t").raised_caps(keys) == [None] * 4


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
    assert pq.ParquetFile(store.open(path)).read()["retryable"].to_pylist() == [None, False]
