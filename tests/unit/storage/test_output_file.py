import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.gather import gather
from claude_batch_dagster.storage.keys import ASKED, REASONS, pack_keys
from claude_batch_dagster.storage.output import output_schema
from claude_batch_dagster.storage.output_file import DECODED_ROWS, OutputWriter, WrittenOutput
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store

HAIKU = "claude-haiku-5-5"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SUMMARIZE = Summarize(name="summaries", column="text", model=HAIKU)
PLAIN = ClaudeTask(name="answers", model=HAIKU, prompt="{text}", max_tokens=5)
NUMBERS = ClaudeTask(
    name="numbers",
    model=HAIKU,
    prompt="{text}",
    max_tokens=5,
    output={
        "type": "object",
        "properties": {"count": {"type": "integer"}, "score": {"type": "number"}, "many": {"type": "array", "items": {"type": "integer"}}},
    },
)


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


def answer(number: int, value: object = None, **more: Any) -> Response:
    text = None if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Response(
        request_key=key(number),
        **{"outcome": "succeeded", "answer": text, "model": HAIKU, "stop_reason": "end_turn", "cost_nano_usd": 1_000} | more,
    )


def publish(
    tmp_path: Path,
    task: ClaudeTask,
    responses: Sequence[Response],
    rows: Sequence[int | str],
    *,
    own: frozenset[str] = frozenset(),
    piece: int = 100,
    rename: Mapping[str, str] | None = None,
) -> tuple[pa.Table, WrittenOutput]:
    """Write an output whose rows ask key(number), or are left out for the reason given."""
    store, output = Store(str(tmp_path / "root")), Store(str(tmp_path / "out"))
    write_responses(
        store, endpoint="simulator", task_key=task.task_key, batch_id="b", round_number=1, answered_at=NOON, responses=responses
    )
    carried = pa.table({"id": list(range(len(rows)))})
    schema = output_schema(task, ["id"], carried.schema)
    answers = Answers(store, "simulator", task.task_key)
    file = tmp_path / "file.parquet"
    writer = OutputWriter(task=task, schema=schema, key_columns=["id"], own_batch_ids=own, file=file, facts={"run": "r1"})
    for start in range(0, len(rows), piece):
        part = rows[start : start + piece]
        keys = pack_keys([key(row) if isinstance(row, int) else None for row in part])
        reasons = np.array([ASKED if isinstance(row, int) else REASONS.index(row) for row in part], np.int8)
        [gathered] = gather(answers, keys, tmp_path)
        if rename:
            words = pa.chunked_array([[rename.get(word, word) for word in gathered.responses["outcome"].to_pylist()]])
            responses_there = gathered.responses.set_column(0, "outcome", words)
            gathered = replace(gathered, responses=responses_there)
        writer.append(carried.slice(start, piece).columns, keys, reasons, gathered)
    written = writer.finish(output, "part-0.parquet")
    return pq.read_table(tmp_path / "out" / "part-0.parquet"), written


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"count": 2**63 - 1}, {"count": 2**63 - 1, "score": None, "many": None}),
        ({"score": 2**53 + 1}, {"count": None, "score": float(2**53 + 1), "many": None}),
        ({"score": 10**30, "many": [-(2**63)]}, {"count": None, "score": 1e30, "many": [-(2**63)]}),
    ],
)
def test_large_numbers_keep_what_their_column_holds(tmp_path: Path, value: object, row: dict[str, object]) -> None:
    table, _ = publish(tmp_path, NUMBERS, [answer(1, value)], [1])
    assert table.select(["count", "score", "many"]).to_pylist() == [row]


@pytest.mark.parametrize("keys", [["a.b"], ["a.b", "day"]])
def test_only_what_differs_in_every_row_is_written_without_a_dictionary(tmp_path: Path, keys: list[str]) -> None:
    carried = pa.schema([("a.b", pa.string()), ("day", pa.string())])
    schema = output_schema(NUMBERS, ["a.b", "day"], carried)
    file = tmp_path / "file.parquet"
    writer = OutputWriter(task=NUMBERS, schema=schema, key_columns=keys, own_batch_ids=frozenset(), file=file, facts={})
    rows = np.array([[1, 2], [3, 4]], np.uint64)
    [gathered] = gather(Answers(Store(str(tmp_path / "root")), "simulator", NUMBERS.task_key), rows, tmp_path)
    columns = [pa.chunked_array([["x", "y"]])] * 2
    writer.append(columns, rows, np.full(2, ASKED, np.int8), gathered)
    writer.finish(Store(str(tmp_path / "out")), "part-0.parquet")
    group = pq.read_metadata(tmp_path / "out" / "part-0.parquet").row_group(0)
    written = [group.column(at) for at in range(group.num_columns)]
    plain = {"request_key"} | ({"a.b"} if len(keys) == 1 else set())
    assert {column.path_in_schema for column in written if not column.has_dictionary_page} == plain
    assert "many.list.element" in {column.path_in_schema for column in written}
    assert {column.compression for column in written} == {"ZSTD"}


@pytest.mark.parametrize("value", [{"count": 2**63}, {"count": -(10**30), "score": 1.5}, {"many": [1, 2**64]}, {"score": 10**400}])
def test_an_answer_that_its_columns_have_no_room_for_spoils_its_own_row_only(tmp_path: Path, value: object) -> None:
    table, written = publish(tmp_path, NUMBERS, [answer(1, value), answer(2, {"count": 7})], [1, 2])
    assert table["status"].to_pylist() == ["invalid", "succeeded"]
    assert table.select(["count", "score", "many"]).to_pylist() == [
        {"count": None, "score": None, "many": None},
        {"count": 7, "score": None, "many": None},
    ]
    assert (table["error"][0].as_py() or "").startswith("out_of_range: ")
    assert (written.rows["invalid"], written.rows["succeeded"]) == (1, 1)


def test_a_text_answer_is_written_as_it_is(tmp_path: Path) -> None:
    text = '{"not": parsed}\x00\u2028'
    table, _ = publish(tmp_path, PLAIN, [answer(1, text)], [1])
    assert table["answer"].to_pylist() == [text]


def test_every_row_says_what_became_of_it(tmp_path: Path) -> None:
    outcomes = [("refused", "refusal: x"), ("truncated", "max_tokens: x"), ("invalid", "not_json: x"), ("errored", "api_error: x")]
    outcomes += [("expired", "expired: x"), ("canceled", "canceled: x")]
    responses = [answer(0, {"summary": "s"}, input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_5m_tokens=4)]
    responses += [answer(at, outcome=outcome, error=error, model=None, stop_reason=None) for at, (outcome, error) in enumerate(outcomes, 1)]
    table, written = publish(tmp_path, SUMMARIZE, responses, [*range(7), 99, "skipped", "too_large"])
    assert table["status"].to_pylist() == [
        "succeeded", *(outcome for outcome, _ in outcomes), "pending", "skipped", "errored"
    ]  # fmt: skip
    assert table["error"].to_pylist()[:7] == [None, *(error for _, error in outcomes)]
    assert table["error"].to_pylist()[7].startswith("pending: ")
    assert table["error"].to_pylist()[8] is None
    assert table["error"].to_pylist()[9].startswith("too_large: ")
    assert table["summary"].to_pylist() == ["s", *[None] * 9]
    assert table["request_key"].to_pylist() == [*(key(at).hex() for at in (*range(7), 99)), None, None]
    assert set(table["task_key"].to_pylist()) == {SUMMARIZE.task_key}
    assert table["batch_id"].to_pylist() == [*["b"] * 7, None, None, None]
    assert table["answered_at"].to_pylist() == [*[NOON] * 7, None, None, None]
    assert table.slice(0, 1).select(
        ["model", "stop_reason", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"]
    ).to_pylist() == [
        {"model": HAIKU, "stop_reason": "end_turn", "input_tokens": 1, "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4}
    ]
    assert table["cost_usd"].to_pylist()[7:] == [None] * 3
    assert written.rows == dict.fromkeys(STATUSES, 1) | {"errored": 2}


@pytest.mark.parametrize("piece", [1, 2, 100])
def test_the_cost_of_a_shared_answer_stands_on_its_first_row_only(tmp_path: Path, piece: int) -> None:
    responses = [answer(1, "a", cost_nano_usd=1_500_000_000), answer(2, "b", cost_nano_usd=None), answer(3, "c", cost_nano_usd=0)]
    table, written = publish(tmp_path, PLAIN, responses, [2, 1, "skipped", 1, 3, 2, 1], own=frozenset({"b"}), piece=piece)
    assert table["cost_usd"].to_pylist() == [None, 1.5, None, 0.0, 0.0, None, 0.0]
    assert table["answer"].to_pylist() == ["b", "a", None, "a", "c", "b", "a"]
    assert (written.answers, written.batches, written.cost_nano_usd) == (3, 1, None)


def test_the_sums_are_of_what_this_invocation_paid_for_each_answer_once(tmp_path: Path) -> None:
    responses = [answer(number, "x", input_tokens=10, output_tokens=5) for number in (1, 2)]
    _, written = publish(tmp_path, PLAIN, responses, [1, 1, 2, 7, "skipped"], own=frozenset({"b"}))
    assert (written.input_tokens, written.output_tokens, written.cost_nano_usd, written.batches) == (20, 10, 2_000, 1)
    _, written = publish(tmp_path, PLAIN, responses, [1, 1, 2], own=frozenset({"other"}))
    assert (written.input_tokens, written.output_tokens, written.cost_nano_usd, written.batches) == (0, 0, 0, 0)


@pytest.mark.parametrize("rows", [["skipped", "skipped"], [5, 6], []])
def test_rows_without_any_answer_are_written_too(tmp_path: Path, rows: list[int | str]) -> None:
    table, written = publish(tmp_path, SUMMARIZE, [], rows)
    assert table.num_rows == sum(written.rows.values()) == len(rows)
    assert table["summary"].null_count == len(rows)


def test_the_files_metadata_says_where_it_comes_from_and_its_first_rows_are_the_preview(tmp_path: Path) -> None:
    table, written = publish(tmp_path, PLAIN, [answer(1, "a")], [1, 2, 3, 4, 5, 6, 7], piece=3)
    assert table.num_rows == 7
    facts = json.loads(pq.read_metadata(tmp_path / "out" / "part-0.parquet").metadata[b"claude_batch"])
    assert facts == {"run": "r1", "rows": dict.fromkeys(STATUSES, 0) | {"succeeded": 1, "pending": 6}}
    assert [row["id"] for row in written.preview] == [0, 1, 2, 3, 4]
    assert written.uri == f"{tmp_path}/out/part-0.parquet"
    assert written.schema.equals(table.schema)


def test_an_outcome_of_a_newer_version_is_not_written_as_pending(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"outcomes that this version does not know: paused\. Nothing was written\. Upgrade"):
        publish(tmp_path, PLAIN, [answer(1, "a"), answer(2, outcome="succeeded")], [1, 2], rename={"succeeded": "paused"})


@pytest.mark.parametrize("at", [0, DECODED_ROWS - 1, DECODED_ROWS, 2 * DECODED_ROWS + 1])
def test_a_row_without_room_is_found_wherever_it_stands(tmp_path: Path, at: int) -> None:
    count = 2 * DECODED_ROWS + 2
    responses = [answer(row, {"count": 2**63 if row == at else row}) for row in range(count)]
    table, written = publish(tmp_path, NUMBERS, responses, list(range(count)), piece=count)
    assert [row for row, status in enumerate(table["status"].to_pylist()) if status == "invalid"] == [at]
    assert table["count"].to_pylist() == [None if row == at else row for row in range(count)]
    assert table["error"].null_count == count - 1
    assert (written.rows["invalid"], written.answers) == (1, count)


def test_a_replaced_file_is_whole_at_any_time(tmp_path: Path) -> None:
    publish(tmp_path, PLAIN, [answer(1, "old")], [1, 1])
    reader = pq.ParquetFile(tmp_path / "out" / "part-0.parquet")
    publish(tmp_path, PLAIN, [answer(1, "new")], [1, 1, 1])
    assert reader.read()["answer"].to_pylist() == ["old"] * 2
    assert pq.read_table(tmp_path / "out" / "part-0.parquet")["answer"].to_pylist() == ["new"] * 3
    reader.close()
