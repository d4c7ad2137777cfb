import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.status import FAILED_STATUSES, STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.output import (
    MARKER,
    METADATA_KEY,
    STATUS_DESCRIPTIONS,
    STATUS_FIELDS,
    Marker,
    OutputWriter,
    WrittenOutput,
    arrow_field,
    carried_columns,
    check_output,
    output_path,
    output_schema,
    write_marker,
)
from claude_batch_dagster.storage.responses import Answers, write_responses
from claude_batch_dagster.storage.store import Store

HAIKU = "claude-haiku-5-5"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINE = Marker(source="/data", endpoint="simulator")
STATUS_NAMES = [field.name for field in STATUS_FIELDS]


class Part(BaseModel):
    word: str
    weight: float


class Everything(BaseModel):
    text: str
    count: int
    score: float
    good: bool
    nothing: str | None
    words: list[str]
    parts: list[Part]
    part: Part | None
    either: int | str


SUMMARIZE = Summarize(name="summaries", column="text", model=HAIKU)
PLAIN = ClaudeTask(name="answers", model=HAIKU, prompt="{text}", max_tokens=5)
EVERYTHING = ClaudeTask(name="everything", model=HAIKU, prompt="{text}", max_tokens=5, output=Everything)
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
) -> tuple[pa.Table, WrittenOutput]:
    """Write an output whose rows ask key(number), or are left out for the reason given."""
    store, output = Store(str(tmp_path / "root")), Store(str(tmp_path / "out"))
    write_responses(
        store, endpoint="simulator", task_key=task.task_key, batch_id="b", round_number=1, answered_at=NOON, responses=responses
    )
    carried = pa.table({"id": list(range(len(rows)))})
    schema = output_schema(task, ["id"], carried.schema)
    answers = Answers(store, "simulator", task.task_key)
    writer = OutputWriter(task=task, schema=schema, answers=answers, own_batch_ids=own, file=tmp_path / "file.parquet", facts={"run": "r1"})
    for start in range(0, len(rows), piece):
        part = rows[start : start + piece]
        keys = pack_keys([key(row) if isinstance(row, int) else None for row in part])
        writer.append(carried.slice(start, piece), keys, [None if isinstance(row, int) else row for row in part])
    written = writer.finish(output, "part-0.parquet")
    return pq.read_table(tmp_path / "out" / "part-0.parquet"), written


def test_the_columns_that_every_output_has_are_public() -> None:
    assert {field.name: str(field.type) for field in STATUS_FIELDS} == {
        "status": "string",
        "error": "string",
        "stop_reason": "string",
        "model": "string",
        "input_tokens": "int64",
        "output_tokens": "int64",
        "cache_read_tokens": "int64",
        "cache_write_tokens": "int64",
        "cost_usd": "double",
        "request_key": "string",
        "task_key": "string",
        "batch_id": "string",
        "answered_at": "timestamp[us, tz=UTC]",
    }
    assert STATUS_DESCRIPTIONS.keys() == set(STATUS_NAMES)
    assert STATUSES == ("succeeded", "refused", "truncated", "invalid", "errored", "expired", "canceled", "skipped", "pending")
    assert set(FAILED_STATUSES) == set(STATUSES) - {"succeeded", "refused", "skipped"}


def test_fields_of_a_task_become_columns_of_their_types() -> None:
    types = {field.name: str(arrow_field(field).type) for field in EVERYTHING.fields}
    part = "struct<word: string, weight: double>"
    assert types == {
        "text": "string",
        "count": "int64",
        "score": "double",
        "good": "bool",
        "nothing": "string",
        "words": "list<item: string>",
        "parts": f"list<item: {part}>",
        "part": part,
        "either": "string",
    }
    labels = Moderate(name="m", column="text", model=HAIKU, labels=("a", "b"))
    assert [(f.name, str(arrow_field(f).type)) for f in labels.fields] == [
        ("label", "string"),
        ("categories", "list<item: string>"),
        ("severity", "int64"),
        ("reason", "string"),
    ]


SOURCE = pa.schema([("id", pa.int64()), ("text", pa.string()), ("day", pa.string()), ("shop", pa.string())])


@pytest.mark.parametrize(
    ("columns", "key_columns", "partition_column", "carried"),
    [
        ("key", ("id",), None, ("id",)),
        ("key", ("shop", "id"), None, ("shop", "id")),
        ("key", ("day", "id"), "day", ("id",)),
        ("all", ("id",), None, ("id", "text", "day", "shop")),
        ("all", ("id",), "day", ("id", "text", "shop")),
        (["text", "id"], ("id",), None, ("text", "id")),
        (["text", "day"], ("id",), "day", ("text",)),
        (["text", "text"], ("id",), None, ("text",)),
        ([], ("id",), None, ()),
        ("text", ("id",), None, ("text",)),
    ],
)
def test_an_output_carries_what_is_asked_but_not_the_column_of_its_path(
    columns: str | list[str], key_columns: tuple[str, ...], partition_column: str | None, carried: tuple[str, ...]
) -> None:
    assert carried_columns(columns, key_columns, SOURCE, partition_column) == carried


@pytest.mark.parametrize(
    ("columns", "key_columns", "missing"), [(["body"], ("id",), "body"), ("key", ("no",), "no"), ("all", ("no",), "no")]
)
def test_a_column_that_the_source_has_not_cannot_be_carried(columns: str | list[str], key_columns: tuple[str, ...], missing: str) -> None:
    with pytest.raises(SourceError, match=rf"no column '{missing}'; it has id, text, day, shop\. Nothing was sent"):
        carried_columns(columns, key_columns, SOURCE, None)


def test_a_column_that_the_source_has_twice_cannot_be_carried() -> None:
    twice = SOURCE.append(pa.field("text", pa.int64()))
    with pytest.raises(SourceError, match=r"2 columns named 'text'\. Nothing was sent\. Rename one"):
        carried_columns("all", ("id",), twice, None)
    assert carried_columns("key", ("id",), twice, None) == ("id",)


def test_columns_stand_in_one_order_carried_first_then_the_tasks_then_status() -> None:
    assert output_schema(SUMMARIZE, ["id", "text"], SOURCE).names == ["id", "text", "summary", *STATUS_NAMES]


@pytest.mark.parametrize(
    ("task", "carried", "name"), [(SUMMARIZE, "status", "status"), (SUMMARIZE, "summary", "summary"), (PLAIN, "answer", "answer")]
)
def test_a_column_that_would_be_there_twice_is_refused(task: ClaudeTask, carried: str, name: str) -> None:
    with pytest.raises(
        OutputError, match=rf"Output '{task.name}' would have two columns named '{name}'.*Nothing was sent\. Carry fewer columns"
    ):
        output_schema(task, ["id", carried], SOURCE.append(pa.field(carried, pa.string())))


def test_a_task_whose_field_is_named_like_a_status_column_is_refused() -> None:
    task = ClaudeTask(
        name="t", model=HAIKU, prompt="{text}", max_tokens=1, output={"type": "object", "properties": {"model": {"type": "string"}}}
    )
    with pytest.raises(OutputError, match="two columns named 'model'"):
        output_schema(task, ["id"], SOURCE)


# The marker.


def test_a_new_or_empty_folder_and_one_of_ours_may_be_written(tmp_path: Path) -> None:
    output = Store(str(tmp_path / "out"))
    check_output(output, MINE, replace=False)
    assert not (tmp_path / "out").exists()
    write_marker(output, MINE)
    output.put("part-0.parquet", b"")
    check_output(output, MINE, replace=False)
    check_output(output, Marker(source="/elsewhere", endpoint="simulator"), replace=False)
    assert json.loads((tmp_path / "out" / MARKER).read_bytes()) == {
        "source": "/data",
        "endpoint": "simulator",
        "partition_column": None,
        "format": 1,
    }


@pytest.mark.parametrize("path", ["data.parquet", "day=1/x.pq", "deep/er/part-0.parquet"])
@pytest.mark.parametrize("replace", [False, True])
def test_others_parquet_files_are_named_and_never_replaced(tmp_path: Path, path: str, replace: bool) -> None:
    output = Store(str(tmp_path))
    output.put("notes.txt", b"")
    check_output(output, MINE, replace=False)
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [1]}), file)
    with pytest.raises(OutputError, match=rf"did not write: {path}\. A reader would see both\. Nothing was sent\. Move them"):
        check_output(output, MINE, replace=replace)
    file.write_bytes(b"cut")
    with pytest.raises(OutputError, match=rf"did not write: {path}"):
        check_output(output, MINE, replace=replace)
    assert file.read_bytes() == b"cut"


def test_an_output_that_lost_its_marker_is_replaced_only_where_told(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    pq.write_table(pa.table({"id": [1]}).replace_schema_metadata({METADATA_KEY: "{}"}), tmp_path / "part-0.parquet")
    with pytest.raises(OutputError, match=rf"files of this tool, and its {MARKER} is missing\. Nothing was sent.*--replace"):
        check_output(output, MINE, replace=False)
    check_output(output, MINE, replace=True)


def test_answers_of_another_endpoint_are_not_mixed_in(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    write_marker(output, MINE)
    other = Marker(source="/data", endpoint="anthropic")
    with pytest.raises(
        OutputError, match=r"holds answers of 'simulator', and would get answers of 'anthropic'\. Nothing was sent.*--replace"
    ):
        check_output(output, other, replace=False)
    check_output(output, other, replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_one_file_and_partitions_are_not_mixed_in_a_folder(tmp_path: Path, replace: bool) -> None:
    output = Store(str(tmp_path))
    write_marker(output, MINE)
    with pytest.raises(OutputError, match=r"is one file, and would become partitioned by day.*Choose another folder"):
        check_output(output, Marker(source="/data", endpoint="simulator", partition_column="day"), replace=replace)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format":1}', b"\xff"])
def test_a_marker_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    output = Store(str(tmp_path))
    output.put(MARKER, content)
    with pytest.raises(OutputError, match=rf"The marker {tmp_path}/{MARKER} cannot be read.*Nothing was sent"):
        check_output(output, MINE, replace=False)


@pytest.mark.parametrize(
    ("partition", "path"),
    [
        ("2026-11-01", "day=2026-11-01/part-0.parquet"),
        ("a b", "day=a b/part-0.parquet"),
        ("a/b", "day=a%2Fb/part-0.parquet"),
        ("100%", "day=100%25/part-0.parquet"),
        ("x=ü", "day=x%3D%C3%BC/part-0.parquet"),
    ],
)
def test_a_partition_has_a_folder_in_hive_layout(partition: str, path: str) -> None:
    assert output_path("day", partition) == path
    assert output_path(None, None) == "part-0.parquet"


# Rows.


def test_answers_fill_columns_of_every_type(tmp_path: Path) -> None:
    value = {
        "text": "é\x00\u2028🎉שלום\n",
        "count": 2**62,
        "score": 3,
        "good": False,
        "nothing": None,
        "words": [],
        "parts": [{"word": "a", "weight": 1}, {"word": "b", "weight": 0.5}],
        "part": None,
        "either": {"b": 1, "a": [None]},
    }
    table, _ = publish(tmp_path, EVERYTHING, [answer(1, value), answer(2, {**value, "count": 3.0, "nothing": "x", "either": "y"})], [1, 2])
    first, second = table.select([field.name for field in EVERYTHING.fields]).to_pylist()
    assert first == {**value, "either": '{"a":[null],"b":1}'}
    assert (second["count"], second["nothing"], second["either"]) == (3, "x", '"y"')
    assert table["status"].to_pylist() == ["succeeded"] * 2


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


def test_a_replaced_file_is_whole_at_any_time(tmp_path: Path) -> None:
    publish(tmp_path, PLAIN, [answer(1, "old")], [1, 1])
    reader = pq.ParquetFile(tmp_path / "out" / "part-0.parquet")
    publish(tmp_path, PLAIN, [answer(1, "new")], [1, 1, 1])
    assert reader.read()["answer"].to_pylist() == ["old"] * 2
    assert pq.read_table(tmp_path / "out" / "part-0.parquet")["answer"].to_pylist() == ["new"] * 3
    reader.close()
