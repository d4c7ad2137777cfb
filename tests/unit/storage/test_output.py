import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.status import FAILED_STATUSES, STATUS_DESCRIPTIONS, STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.output import (
    MARKER,
    METADATA_KEY,
    STATUS_FIELDS,
    Marker,
    carried_columns,
    check_output,
    output_path,
    output_schema,
    write_marker,
)
from claude_batch_dagster.storage.store import Store

HAIKU = "claude-haiku-5-5"
MINE = Marker(source="/data", endpoint="simulator")
STATUS_NAMES = [field.name for field in STATUS_FIELDS]
SUMMARIZE = Summarize(name="summaries", column="text", model=HAIKU)
PLAIN = ClaudeTask(name="answers", model=HAIKU, prompt="{text}", max_tokens=5)


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
