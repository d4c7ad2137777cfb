import msgspec
import pytest

from claude_batch_dagster.core import records
from claude_batch_dagster.core.records import (
    CostRange,
    DoneRecord,
    KeysRef,
    LogEntry,
    ModelUsage,
    Owner,
    RootRecord,
    RoundRecord,
    ShardRef,
    SourceRef,
    TaskRef,
    TriedRecord,
    TryRecord,
    WorkspaceRecord,
)

SHARD = ShardRef(path="plans/r/requests/1-0-ab.json", sha256="ab", requests=2, body_bytes=99, worst_nano_usd=None)
ENTRY = LogEntry(
    run_id="r",
    number=42,
    admitted_at="2026-11-22T10:00:00.000+00:00",
    endpoint="anthropic",
    owner=Owner(host="h", pid=1),
    tasks=(TaskRef(name="summaries", task_key="t"),),
    source=SourceRef(uri="/data", fingerprint="f"),
    keys=KeysRef(path="plans/r/keys.parquet", sha256="cd", count=2),
    shards=(SHARD,),
    cost_nano_usd=CostRange(expected=1, worst=2, cap=3),
    max_attempts=3,
    max_in_flight_batches=2,
)
USAGE = ModelUsage(
    model="m", over_100k=False, requests=1, input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_tokens=4, cost_nano_usd=None
)
DONE = DoneRecord(
    run_id="r",
    finished_at="2026-11-22T11:00:00+00:00",
    outcome="finished",
    rows={"succeeded": 2},
    batches=1,
    usage=(USAGE,),
    cost_nano_usd=None,
)
# What stands in the JSON files is public: programs read it. A name here is never taken back.
NAMES = {
    RootRecord(root_id="i", endpoint="e", temporal_namespace="n"): "root_id endpoint temporal_namespace format",
    WorkspaceRecord(workspace_id="w"): "workspace_id format",
    RoundRecord(round=2, shards=(SHARD,)): "round shards why format",
    TryRecord(task_key="t", asked_at="a"): "task_key asked_at format",
    TriedRecord(task_key="t", answered_at="a", outcome="succeeded", stop_reason=None, usage=USAGE, problem=None): (
        "task_key answered_at outcome stop_reason usage problem format"
    ),
}
ENTRY_NAMES = (
    "run_id number admitted_at endpoint owner tasks source keys shards cost_nano_usd max_attempts max_in_flight_batches preflights format"
)
DONE_NAMES = "run_id finished_at outcome rows batches usage cost_nano_usd error format"


@pytest.mark.parametrize(("record", "names"), [*NAMES.items(), (ENTRY, ENTRY_NAMES)], ids=lambda value: type(value).__name__)
def test_a_record_has_its_public_names(record: msgspec.Struct, names: str) -> None:
    assert sorted(msgspec.to_builtins(record)) == sorted(names.split())


def test_the_last_record_of_a_run_has_its_public_names() -> None:
    assert sorted(msgspec.to_builtins(DONE)) == sorted(DONE_NAMES.split())


@pytest.mark.parametrize("record", [*NAMES, ENTRY, DONE], ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was_written_and_says_its_format(record: msgspec.Struct) -> None:
    content = msgspec.json.encode(record)
    assert msgspec.json.decode(content, type=type(record)) == record
    assert msgspec.json.decode(content)["format"] == 1


def test_parts_of_an_entry_have_their_public_names() -> None:
    found = msgspec.to_builtins(ENTRY)
    assert found["owner"].keys() == {"host", "pid", "dagster_run_id"}
    assert found["tasks"][0].keys() == {"name", "task_key", "largest_params_bytes"}
    assert found["source"].keys() == {"uri", "fingerprint"}
    assert found["keys"].keys() == {"path", "sha256", "count"}
    assert {"path", "sha256", "requests", "body_bytes"} <= found["shards"][0].keys()
    assert {"expected", "worst"} <= found["cost_nano_usd"].keys()


def test_a_record_of_a_later_version_with_more_in_it_can_be_read() -> None:
    content = msgspec.json.encode({**msgspec.to_builtins(ENTRY), "of_tomorrow": 1})
    assert msgspec.json.decode(content, type=LogEntry) == ENTRY


def test_people_call_a_run_by_its_number() -> None:
    assert ENTRY.label == "r42"


def test_records_cannot_be_changed() -> None:
    kinds = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    assert [kind.__name__ for kind in kinds if not kind.__struct_config__.frozen] == []
