import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.errors import OutputError, SourceError
from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.shard import MAX_BODY_BYTES
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage import source as source_module
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.keys import ASKED, LARGE, RowKeys, pack_keys, row_keys_path
from claude_batch_dagster.storage.output import MARKER, STATUS_FIELDS
from claude_batch_dagster.storage.output_file import OutputWriter, WrittenOutput
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store

HAIKU = "claude-haiku-5-5"
SUMMARIES = Summarize(name="summaries", column="text", model=HAIKU)
LABELS = Moderate(name="labels", column="text", model=HAIKU, labels=("ok", "spam"))
PLAIN = ClaudeTask(name="answers", model=HAIKU, prompt="{text}", max_tokens=5)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
STATUS_NAMES = [field.name for field in STATUS_FIELDS]


def request_key(task: ClaudeTask, text: str) -> str:
    [request] = Renderer(task, ["text"]).render([(text,)])
    assert request is not None
    return request.key.hex()


def test_rows_come_out_as_they_went_in_with_their_answers(lake: Any) -> None:
    lake.texts("a", None, "b", "a")
    lake.finish(lake.job())
    [output] = lake.publish(lake.job()).outputs
    table = lake.read()
    assert table.column_names == ["id", "summary", *STATUS_NAMES]
    assert table.to_pylist()[0] == {
        "id": 0,
        "summary": "a",
        "status": "succeeded",
        "error": None,
        "stop_reason": None,
        "model": HAIKU,
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "cost_usd": 1e-6,
        "request_key": request_key(SUMMARIES, "a"),
        "task_key": SUMMARIES.task_key,
        "batch_id": "batch-1-0",
        "answered_at": NOON,
    }
    assert table.select(["id", "summary", "status", "cost_usd"]).to_pylist() == [
        {"id": 0, "summary": "a", "status": "succeeded", "cost_usd": 1e-6},
        {"id": 1, "summary": None, "status": "skipped", "cost_usd": None},
        {"id": 2, "summary": "b", "status": "succeeded", "cost_usd": 1e-6},
        {"id": 3, "summary": "a", "status": "succeeded", "cost_usd": 0.0},
    ]
    assert (output.task, output.partition, output.written.uri) == ("summaries", None, f"{lake.folder}/out/summaries/part-0.parquet")
    assert output.written.rows == dict.fromkeys(STATUSES, 0) | {"succeeded": 3, "skipped": 1}


TEXTS = st.none() | st.sampled_from(["a", "b", "c", "", " ", "é\x00\u2028", "🎉", "שלום"])
OUTCOMES = st.sampled_from(
    [("succeeded", None), ("refused", "refusal: x"), ("errored", "api_error: x"), ("expired", "expired: x"), (None, None)]
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(TEXTS, min_size=1, max_size=8),
    changes=st.dictionaries(st.integers(0, 7), TEXTS, max_size=3),
    added=st.lists(TEXTS, max_size=2),
    outcomes=st.fixed_dictionaries(dict.fromkeys(("a", "b", "c", "é\x00\u2028", "🎉", "שלום"), OUTCOMES)),
    rows=st.integers(1, 4),
)
def test_publishing_is_a_left_join_by_content(
    new_lake: Callable[[], Any],
    before: list[str | None],
    changes: dict[int, str | None],
    added: list[str | None],
    outcomes: dict[str, tuple[str | None, str | None]],
    rows: int,
) -> None:
    lake = new_lake()
    lake.texts(*before)
    _, admission = lake.admit(lake.job())
    if admission.own is not None:
        # Who answers leaves some out: their outcome is None.
        lake.answer(lake.job(), admission.own, lambda one: _told(one.text[11:-12], outcomes))
    after = [*(changes.get(at, text) for at, text in enumerate(before)), *added]
    ids = list(range(100, 100 + len(after)))
    lake.write({"id": ids, "text": pa.array(after, pa.string())}, row_group_size=rows)
    [output] = lake.publish(lake.job(columns="all")).outputs

    found = lake.read().to_pandas()
    source = pd.DataFrame({"id": ids, "text": pd.Series(after, dtype=object)})
    asked = {text for text in before if text is not None and text.strip()}
    answers = pd.DataFrame(
        [
            {
                "text": text,
                "status": outcomes[text][0],
                "error": outcomes[text][1],
                "summary": text if outcomes[text][0] == "succeeded" else None,
            }
            for text in asked
            if outcomes[text][0]
        ],
        columns=["text", "status", "error", "summary"],
        dtype=object,
    )
    expected = source.merge(answers, how="left", on="text", sort=False)
    blank = np.array([text is None or not text.strip() for text in after])
    expected["status"] = np.where(blank, "skipped", np.where(expected["status"].isna(), "pending", expected["status"]))
    assert found["id"].tolist() == expected["id"].tolist()
    assert [_none(text) for text in found["text"]] == after
    assert found["status"].tolist() == expected["status"].tolist()
    assert [_none(value) for value in found["summary"]] == [_none(value) for value in expected["summary"]]
    answered = found["batch_id"].notna()
    firsts = answered & ~found["request_key"].where(answered, None).duplicated()
    assert found["cost_usd"].fillna(-1).tolist() == np.where(firsts, 1e-6, np.where(answered, 0.0, -1)).tolist()
    assert (found["request_key"].isna() == blank).all()
    assert output.written.rows == dict.fromkeys(STATUSES, 0) | found["status"].value_counts().to_dict()


def _told(text: str, outcomes: Mapping[str, tuple[str | None, str | None]]) -> dict[str, Any]:
    outcome, error = outcomes[text]
    if outcome is None:
        # An answer that the index cannot find: another request's.
        return {"request_key": b"\xee" * 16, "outcome": "canceled"}
    return {
        "outcome": outcome,
        "error": error,
        "answer": json.dumps({"summary": text}) if outcome == "succeeded" else None,
        "cost_nano_usd": 1_000,
    }


def _none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def test_a_row_that_changed_meanwhile_is_pending_and_an_equal_one_elsewhere_is_not(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    lake.texts("changed", "a", "b")
    lake.publish(lake.job())
    assert lake.read().select(["summary", "status"]).to_pylist() == [
        {"summary": None, "status": "pending"},
        {"summary": "a", "status": "succeeded"},
        {"summary": "b", "status": "succeeded"},
    ]
    assert lake.read()["error"][0].as_py().startswith("pending: ")
    assert lake.read()["request_key"][0].as_py() == request_key(SUMMARIES, "changed")


def test_without_any_answer_every_row_is_pending(lake: Any) -> None:
    lake.texts("a", None)
    lake.publish(lake.job())
    assert lake.read()["status"].to_pylist() == ["pending", "skipped"]


def test_rows_that_are_too_large_are_errored_and_counted(lake: Any) -> None:
    path = lake.texts("a", "b")
    source = Source(ParquetDataset(path=str(path), key="id"))
    rows = RowKeys(lake.folder / "rows.parquet")
    rows.append(pack_keys([None, bytes.fromhex(request_key(SUMMARIES, "b"))]), np.array([LARGE, ASKED], np.int8))
    rows.close()
    lake.store.put_file(row_keys_path(source.digest(source.files[0]), SUMMARIES.task_key), rows.file)
    plan = lake.plan(lake.job())
    assert (plan.total.rows, plan.total.too_large, plan.total.asked) == (2, 1, 1)
    [output] = lake.publish(lake.job()).outputs
    assert lake.read()["status"].to_pylist() == ["errored", "pending"]
    assert f"{MAX_BODY_BYTES:,} bytes" in lake.read()["error"][0].as_py()
    assert (output.written.rows["errored"], output.written.rows["pending"]) == (1, 1)


def test_several_tasks_write_several_outputs(lake: Any) -> None:
    lake.texts("a")
    job = lake.job(SUMMARIES, LABELS, PLAIN)
    values = {
        "summaries": json.dumps({"summary": "s"}),
        "labels": json.dumps({"label": "ok", "categories": ["ok"], "severity": 0, "reason": "r"}),
        "answers": "plain",
    }
    lake.finish(job, lambda one: {"answer": values[one.name]})
    assert [output.task for output in lake.publish(job).outputs] == ["summaries", "labels", "answers"]
    assert lake.read("summaries")["summary"].to_pylist() == ["s"]
    assert lake.read("labels").select(["label", "categories", "severity", "reason"]).to_pylist() == [
        {"label": "ok", "categories": ["ok"], "severity": 0, "reason": "r"}
    ]
    assert lake.read("answers")["answer"].to_pylist() == ["plain"]


CARRIED: dict[str, pa.Array] = {
    "large": pa.array(["é\x00\u2028", None], pa.large_string()),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "binary": pa.array([b"\x00\xff", None]),
    "large_binary": pa.array([b"\x00", None], pa.large_binary()),
    "fixed": pa.array([b"ab", None], pa.binary(2)),
    "decimal": pa.array([Decimal("12345678901234567890.12"), None], pa.decimal128(38, 2)),
    "uuid": pa.array([UUID(int=7).bytes, None], pa.uuid()),
    "bool": pa.array([True, None]),
    "int8": pa.array([-3, None], pa.int8()),
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "float32": pa.array([0.1, None], pa.float32()),
    "double": pa.array([float("nan"), None]),
    "date": pa.array([date(2026, 11, 1), None]),
    "time": pa.array([time(9, 5), None], pa.time64("us")),
    "seconds": pa.array([datetime(2026, 11, 1), None], pa.timestamp("ms")),  # noqa: DTZ001 - without a zone on purpose
    "zoned": pa.array([NOON, None], pa.timestamp("us", "Europe/Berlin")),
    "nanos": pa.array([1, None], pa.timestamp("ns", "UTC")),
    "duration": pa.array([5, None], pa.duration("us")),
    "list": pa.array([[1, None], None], pa.list_(pa.int32())),
    "struct": pa.array(
        [{"a": [{"b": "x"}], "c": None}, None], pa.struct([("a", pa.list_(pa.struct([("b", pa.string())]))), ("c", pa.int8())])
    ),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "null": pa.nulls(2),
    "with space {and} braces": pa.array(["x", "y"]),
    "a.b": pa.array(["x", "y"]),
    "day": pa.array(["not in a path", None]),
}


def test_carried_columns_come_out_identical_whatever_their_type(lake: Any) -> None:
    source = pa.table({"id": [1, 2], "text": ["a", None], **CARRIED})
    path = lake.write(source, row_group_size=1)
    lake.finish(lake.job(columns="all"))
    lake.publish(lake.job(columns="all"))
    table = lake.read()
    assert table.column_names == [*source.column_names, "summary", *STATUS_NAMES]
    was = pq.ParquetFile(path).read()
    for name in source.column_names:
        assert table.schema.field(name).type == was.schema.field(name).type, name
        assert str(table[name].to_pylist()) == str(was[name].to_pylist()), name
    assert {name: table[name].type for name in CARRIED if name != "dictionary"} == {
        name: column.type for name, column in CARRIED.items() if name != "dictionary"
    }


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([1, 2]),
        pa.array(["a", "ü"]),
        pa.array([UUID(int=1).bytes, UUID(int=2).bytes], pa.uuid()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([Decimal("1.0"), Decimal("2.0")]),
    ],
)
def test_keys_of_any_plain_type_are_carried(lake: Any, keys: pa.Array) -> None:
    lake.write(pa.table({"review id {x}": keys, "text": ["a", "b"]}))
    job = lake.job(key="review id {x}")
    lake.finish(job)
    lake.publish(job)
    assert lake.read().column_names[0] == "review id {x}"
    assert lake.read()["review id {x}"].to_pylist() == keys.to_pylist()


def test_an_output_may_carry_nothing_of_its_source(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job(columns=[]))
    lake.publish(lake.job(columns=[]))
    assert lake.read().column_names == ["summary", *STATUS_NAMES]
    assert lake.read()["summary"].to_pylist() == ["a", "b"]


DAYS = ("2026-11-01", "a b", "ü/%?#*", "x=y", "🎉")


def folder_of(day: str) -> str:
    return "day=" + "".join(f"%{ord(c):02X}" if c in "/%?#*=" else c for c in day)


def test_partitions_keep_their_names_whatever_characters_they_have(lake: Any) -> None:
    for day in DAYS:
        lake.texts("a", day, path=f"{folder_of(day)}/part-0.parquet")
    job = lake.job(path="", partition_column="day", columns="all")
    lake.finish(job)
    published = lake.publish(job, sorted(DAYS))
    assert [(output.partition, output.written.rows["succeeded"]) for output in published.outputs] == [(day, 2) for day in sorted(DAYS)]
    folder = lake.folder / "out" / "summaries"
    dataset = pads.dataset(
        folder, partitioning=pads.partitioning(pa.schema([("day", pa.string())]), flavor="hive"), exclude_invalid_files=True
    )
    table = dataset.to_table(columns=["day", "id", "summary"])
    assert sorted((row["day"], row["id"], row["summary"]) for row in table.to_pylist()) == sorted(
        row for day in DAYS for row in ((day, 0, "a"), (day, 1, day))
    )
    again = Source(ParquetDataset(path=str(folder), key="id", partition_column="day"))
    assert again.partition_keys() == sorted(DAYS)
    assert "day" not in pq.ParquetFile(next(folder.rglob("*.parquet"))).schema_arrow.names


def test_a_partition_of_several_files_is_one_file_in_their_order(lake: Any) -> None:
    lake.write({"id": [3, 4], "text": pa.array(["c", "d"]), "tag": pa.array(["x", "y"]).dictionary_encode()}, "day=1/b.parquet")
    lake.write({"id": [1, 2], "text": pa.array(["a", "b"], pa.large_string()), "tag": pa.array(["y", "z"])}, "day=1/a.parquet")
    job = lake.job(path="", partition_column="day", columns="all")
    lake.finish(job)
    lake.publish(job, ["1"])
    table = lake.read(path="day=1/part-0.parquet")
    assert table["id"].to_pylist() == [1, 2, 3, 4]
    assert table["summary"].to_pylist() == ["a", "b", "c", "d"]
    assert table["tag"].to_pylist() == ["y", "z", "x", "y"]


def test_a_column_of_the_path_that_is_no_partition_is_carried_as_text(lake: Any) -> None:
    for hour in ("1", "2"):
        lake.write({"id": [hour], "text": ["a"], "hour": [int(hour)]}, f"day=x/hour={hour}/a.parquet")
    job = lake.job(path="", partition_column="day", columns=["id", "hour"])
    lake.finish(job)
    lake.publish(job, ["x"])
    assert lake.read(path="day=x/part-0.parquet").select(["id", "hour"]).to_pylist() == [{"id": "1", "hour": "1"}, {"id": "2", "hour": "2"}]


def test_a_partition_that_went_bad_is_named_and_the_others_are_written(lake: Any) -> None:
    for day in ("1", "2", "3"):
        lake.texts("a", path=f"day={day}/part-0.parquet")
    job = lake.job(path="", partition_column="day")
    lake.finish(job)
    (lake.folder / "source" / "day=2" / "part-0.parquet").write_bytes(b"PAR1 nothing PAR1")
    published = lake.publish(job, ["1", "2", "3", "4"])
    assert [output.partition for output in published.outputs] == ["1", "3"]
    assert "its footer is damaged" in published.failed_partitions["2"]
    assert "has no folder day=4/" in published.failed_partitions["4"]
    assert not (lake.folder / "out" / "summaries" / "day=2").exists()


def test_a_single_output_whose_source_went_bad_is_refused_and_the_old_file_stays(lake: Any) -> None:
    path = lake.texts("a")
    lake.finish(lake.job())
    lake.publish(lake.job())
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(SourceError, match="its footer is damaged"):
        lake.publish(lake.job())
    assert lake.read()["summary"].to_pylist() == ["a"]


def test_the_folder_is_claimed_and_the_file_says_where_it_comes_from(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job())
    lake.publish(lake.job(), run="r42")
    marker = json.loads((lake.folder / "out" / "summaries" / MARKER).read_bytes())
    assert marker == {"source": f"{lake.folder}/source/reviews.parquet", "endpoint": "simulator", "partition_column": None, "format": 1}
    facts = json.loads(pq.read_metadata(lake.folder / "out" / "summaries" / "part-0.parquet").metadata[b"claude_batch"])
    assert facts == {
        "task_key": SUMMARIES.task_key,
        "task": "summaries",
        "run": "r42",
        "endpoint": "simulator",
        "source": f"{lake.folder}/source/reviews.parquet",
        "limit": None,
        "key": ["id"],
        "rows": dict.fromkeys(STATUSES, 0) | {"succeeded": 1},
    }
    assert lake.plan(lake.job()).total.already_answered == 1


def test_an_output_of_another_endpoint_is_replaced_only_when_told(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job())
    lake.publish(lake.job())
    other = {"endpoint": "anthropic", "root": str(lake.folder / "other root")}
    with pytest.raises(OutputError, match="holds answers of 'simulator', and would get answers of 'anthropic'"):
        lake.plan(lake.job(**other))
    job = lake.job(**other, replace=True)
    lake.plan(job)
    lake.publish(job)
    assert lake.read()["status"].to_pylist() == ["pending"]
    assert json.loads((lake.folder / "out" / "summaries" / MARKER).read_bytes())["endpoint"] == "anthropic"


def test_what_was_paid_by_this_invocation_is_told_apart_from_what_was_there(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job())
    lake.texts("a", "b", "b")
    lake.finish(lake.job())
    [output] = lake.publish(lake.job(), own_batch_ids=frozenset({"batch-2-0"})).outputs
    assert (output.written.input_tokens, output.written.cost_nano_usd, output.written.batches, output.written.answers) == (10, 1_000, 1, 2)
    assert lake.read()["cost_usd"].to_pylist() == [1e-6, 1e-6, 0.0]


def test_publishing_does_not_render_a_source_that_was_planned(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    [keys] = lake.store.list("keys")
    before = lake.store.version(keys)
    lake.publish(lake.job())
    assert [lake.store.version(path) for path in lake.store.list("keys")] == [before]


def test_nothing_but_the_outputs_and_kept_keys_is_written(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job())
    before = set(lake.folder.rglob("*"))
    lake.publish(lake.job())
    made = {path for path in set(lake.folder.rglob("*")) - before if Path(path).is_file()}
    assert made == {lake.folder / "out" / "summaries" / name for name in (MARKER, "part-0.parquet")}


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**62, 3], pa.timestamp("us")),
        pa.array([2**30, 3], pa.date32()),
        pa.array([b"\xff", b"b"]).view(pa.string()),
        pa.array([1, None], pa.timestamp("us", "Mars/Base")),
    ],
)
def test_what_python_cannot_hold_is_carried_and_missing_in_the_preview_only(lake: Any, values: pa.Array) -> None:
    lake.write(pa.table({"id": [1, 2], "text": ["a", "b"], "strange": values}))
    job = lake.job(columns="all")
    lake.finish(job)
    [output] = lake.publish(job).outputs
    assert [row["strange"] is None for row in output.written.preview] == [True, values.type.equals(pa.timestamp("us", "Mars/Base"))]
    assert [row["summary"] for row in output.written.preview] == ["a", "b"]
    assert lake.read()["strange"].combine_chunks().equals(values)


def test_a_later_file_may_have_nulls_where_the_first_one_declares_none(lake: Any) -> None:
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    lake.write(pa.table({"id": [1], "text": ["a"]}, schema=strict), "s/a.parquet")
    lake.write(pa.table({"id": [2], "text": pa.array([None], pa.string())}), "s/b.parquet")
    job = lake.job(path="s", columns="all")
    lake.finish(job)
    lake.publish(job)
    assert lake.read().select(["id", "text"]).to_pylist() == [{"id": 1, "text": "a"}, {"id": 2, "text": None}]


def test_the_source_is_listed_once_for_all_outputs_and_partitions(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [str(day) for day in range(5)]
    for day in days:
        lake.texts(day, path=f"s/day={day}/a.parquet")
    job = lake.job(SUMMARIES, LABELS, path="s", partition_column="day", fail_above=1)
    lake.finish(job, lambda asked: {"answer": json.dumps({"summary": "s", "label": "ok"})})
    listed, list_files = [], source_module.list_dataset
    monkeypatch.setattr(source_module, "list_dataset", lambda dataset: listed.append(dataset) or list_files(dataset))
    lake.publish(job, days)
    assert len(listed) == 1


def test_a_file_that_is_rewritten_while_others_are_published_is_listed_again(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are those of the new file, and none of it was asked about."""
    for day in "12":
        lake.texts("a", path=f"s/day={day}/a.parquet")
    job = lake.job(path="s", partition_column="day")
    lake.finish(job)
    finish = OutputWriter.finish

    def rewrite(self: OutputWriter, output: Store, path: str) -> WrittenOutput:
        if path.startswith("day=1/"):
            lake.texts("a", "new", path="s/day=2/a.parquet")
        return finish(self, output, path)

    monkeypatch.setattr(OutputWriter, "finish", rewrite)
    published = lake.publish(job, ["1", "2"])
    assert published.failed_partitions == {}
    assert lake.read(path="day=2/part-0.parquet").select(["id", "summary"]).to_pylist() == [
        {"id": 0, "summary": "a"},
        {"id": 1, "summary": None},
    ]
