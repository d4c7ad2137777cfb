"""Twenty rows first, asking again, and why rows are asked."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import OutputError, RunError, UsageError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.output import MARKER, METADATA_KEY, Marker
from claude_batch_dagster.verbs.cap import explain_plan

HAIKU = "claude-haiku-5-5"


def failing(texts: Mapping[str, tuple[str, str]]) -> Any:
    """Return how a lake answers: these texts end so, the others succeed."""

    def how(asked: Any) -> dict[str, Any]:
        text = asked.text.removeprefix("<document>\n").removesuffix("\n</document>")
        if text in texts:
            outcome, error = texts[text]
            return {"outcome": outcome, "error": error}
        return {"answer": msgspec.json.encode({"summary": text}).decode(), "cost_nano_usd": 1_000}

    return how


def facts(path: Path) -> dict[str, Any]:
    return dict(msgspec.json.decode(pq.read_metadata(path).metadata[METADATA_KEY.encode()]))


def test_a_limit_asks_the_first_rows_only_and_the_full_run_does_not_ask_them_again(lake: Any) -> None:
    lake.texts("a", "b", "c", "d")
    limited = lake.job(limit=2)
    plan = lake.plan(limited)
    assert (plan.total.rows, plan.total.asked, plan.limit) == (2, 2, 2)
    lake.finish(limited)
    lake.publish(limited, limit=2)
    assert lake.read()["id"].to_pylist() == [0, 1]
    assert facts(lake.folder / "out" / "summaries" / "part-0.parquet")["limit"] == 2
    full = lake.plan(lake.job())
    assert (full.total.asked, full.total.already_answered, full.limit) == (2, 2, None)


def test_a_limit_counts_over_all_partitions_in_order_and_leaves_the_others_out(lake: Any) -> None:
    for day, texts in (("1", "ab"), ("2", "cd"), ("3", "ef")):
        lake.texts(*texts, path=f"days/day={day}/p.parquet")
    plan = lake.plan(lake.job(path="days", partition_column="day", limit=3))
    assert {partition: tally.rows for (_, partition), tally in plan.tallies.items()} == {"1": 2, "2": 1}


def test_a_limit_that_leaves_nothing_out_is_none(lake: Any) -> None:
    lake.texts("a", "b")
    assert lake.plan(lake.job(limit=2)).limit is None


def test_a_limited_run_keeps_no_keys_of_a_file_that_it_read_in_part(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job(limit=2))
    assert lake.store.list("keys") == []
    assert lake.plan(lake.job()).total.rows == 3


def test_a_limited_output_never_replaces_a_full_one_unless_told_to(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job())
    lake.publish(lake.job())
    with pytest.raises(OutputError, match=r"holds all rows, and --limit 2 would leave the first ones only.*--replace"):
        lake.plan(lake.job(limit=2))
    assert lake.plan(lake.job(limit=2, replace=True)).limit == 2


def test_a_full_output_replaces_a_limited_one(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job(limit=1))
    lake.publish(lake.job(limit=1), limit=1)
    lake.finish(lake.job())
    lake.publish(lake.job())
    assert lake.read().num_rows == 3


def test_rows_can_be_asked_again_by_their_key(lake: Any) -> None:
    lake.texts("a", "b", "c", "b")
    lake.finish(lake.job())
    plan = lake.plan(lake.job(ask_again=("1",)))
    assert (plan.total.asked, plan.total.already_answered, plan.reasons) == (1, 2, {"asked_again": 1})
    [[asked]] = lake.requests(plan)
    assert asked.text == "<document>\nb\n</document>"


def test_a_key_of_several_columns_is_joined_by_commas(lake: Any) -> None:
    lake.write({"shop": ["x", "x"], "id": [1, 2], "text": ["a", "b"]})
    job = lake.job(key=("shop", "id"))
    lake.finish(job)
    assert lake.plan(dataclasses.replace(job, ask_again=("x,2",))).total.asked == 1


def test_a_key_that_no_row_has_is_refused_by_name(lake: Any) -> None:
    lake.texts("a")
    with pytest.raises(UsageError, match=r"No row of .* has the key to ask again: nope\. Nothing was sent"):
        lake.plan(lake.job(ask_again=("0", "nope")))


def test_failures_for_good_are_asked_again_only_when_told_to(lake: Any) -> None:
    lake.texts("ok", "cut", "broken", "bad", "refused", "late")
    outcomes = {
        "cut": ("truncated", "max_tokens: x"),
        "broken": ("invalid", "schema: x"),
        "bad": ("errored", "invalid_request_error: x"),
        "refused": ("refused", "refusal: x"),
        "late": ("expired", "expired: x"),
    }
    lake.finish(lake.job(), failing(outcomes))
    plain = lake.plan(lake.job())
    assert (plain.total.asked, plain.reasons) == (1, {"failed_before": 1})
    retried = lake.plan(lake.job(retry_failed=True))
    assert (retried.total.asked, retried.reasons) == (4, {"failed_before": 4})


def test_reasons_tell_new_rows_from_changed_ones(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job())
    lake.publish(lake.job())
    lake.texts("a", "B", "c", "d")
    plan = lake.plan(lake.job(), preview=True)
    assert plan.reasons == {"changed": 1, "new": 1}
    assert plan.changed_parts == {}


def test_a_changed_task_is_named_by_its_part(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    lake.publish(lake.job())
    longer = Summarize(name="summaries", column="text", model=HAIKU, max_words=60)
    plan = lake.plan(lake.job(longer), preview=True)
    assert plan.reasons == {"task_changed": 2}
    assert plan.changed_parts == {"summaries": ("max_words: 40 -> 60",)}
    assert explain_plan(plan) == "2 because the task changed; what changed in summaries: max_words: 40 -> 60"


def test_too_many_failures_publish_nothing(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    lake.publish(lake.job())
    before = lake.read().to_pylist()
    lake.texts("a", "b", "c", "d", None)
    job = lake.job(fail_above=0.4)
    lake.finish(job, failing({"c": ("errored", "api_error: x"), "d": ("truncated", "max_tokens: x")}))
    with pytest.raises(RunError, match=r"2 of 4 rows that summaries asked about failed \(50\.0%: 1 truncated, 1 errored\)"):
        lake.publish(job)
    assert lake.read().to_pylist() == before
    assert lake.publish(lake.job(fail_above=0.5)).outputs[0].written.rows["errored"] == 1


def test_a_partition_with_a_damaged_page_is_left_out_and_the_others_are_planned(lake: Any) -> None:
    lake.texts("a", "b", path="days/day=1/p.parquet")
    broken = lake.texts("c" * 500, "d" * 500, path="days/day=2/p.parquet")
    column = pq.read_metadata(broken).row_group(0).column(1)
    content = bytearray(broken.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 12] = b"\xff" * 12
    broken.write_bytes(content)
    plan = lake.plan(lake.job(path="days", partition_column="day"))
    assert {partition for _, partition in plan.tallies} == {"1"}
    assert plan.total.asked == 2
    assert "day=2/p.parquet" in plan.bad_partitions["2"]


def test_replacing_another_endpoints_output_leaves_none_of_its_answers(lake: Any) -> None:
    for day in "12":
        lake.texts("a", path=f"days/day={day}/p.parquet")
    simulated = lake.job(path="days", partition_column="day")
    lake.finish(simulated)
    lake.publish(simulated, ["1", "2"])
    real = dataclasses.replace(simulated, endpoint="anthropic", replace=True, root=str(lake.folder / "real"))
    lake.publish(real, ["1"])
    left = sorted(path.parent.name for path in (lake.folder / "out" / "summaries").glob("*/part-0.parquet"))
    assert left == ["day=1"]
    assert msgspec.json.decode((lake.folder / "out" / "summaries" / MARKER).read_bytes(), type=Marker).endpoint == "anthropic"


def test_an_output_inside_the_source_is_refused(lake: Any) -> None:
    lake.texts("a")
    job = lake.job(path="")
    inside = dataclasses.replace(job.targets[0], output=f"{job.source.uri}/out")
    with pytest.raises(UsageError, match="lies inside the source"):
        dataclasses.replace(job, targets=(inside,))


def test_a_new_task_is_tried_on_a_text_that_is_no_row(lake: Any) -> None:
    lake.texts("a secret row")
    [preflight] = lake.plan(lake.job()).preflights
    assert b"secret" not in (lake.store.get(preflight.ref.path) or b"")
    assert lake.plan(lake.job(preflight=False)).preflights == ()
    lake.finish(lake.job())
    assert lake.plan(lake.job()).preflights == ()


def test_a_task_whose_prompt_is_a_function_is_not_tried(lake: Any) -> None:
    """The function would have to be given a row, and its prompt tried at the full price."""
    lake.texts("a secret row")
    task = ClaudeTask(name="asked", model="claude-haiku-5-5", prompt=lambda row: row["text"], version=1, max_tokens=50)
    plan = lake.plan(lake.job(task))
    assert (plan.total.asked, plan.preflights) == (1, ())
