import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import ClaudeBatchError, OutputError, RootError, SourceError, TaskError
from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.request import submission_tag
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import read_owned_keys
from claude_batch_dagster.storage.plans import read_log
from claude_batch_dagster.verbs.plan import plan_job
from claude_batch_dagster.verbs.tally import Tally
from tests.lines import key_digits

HAIKU = "claude-haiku-5-5"
SUMMARIES = Summarize(name="summaries", column="text", model=HAIKU)
LABELS = Moderate(name="labels", column="text", model=HAIKU, labels=("ok", "spam"))


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_equal_rows_are_asked_once_and_blank_ones_never(lake: Any) -> None:
    lake.texts("a", "b", "a", None, " ", "a")
    plan = lake.plan(lake.job())
    assert plan.tallies == {("summaries", None): Tally(rows=6, skipped=2, asked=2)}
    [shard] = lake.requests(plan)
    assert [asked.text for asked in shard] == ["<document>\na\n</document>", "<document>\nb\n</document>"]


def test_a_plan_is_staged_truthfully_and_not_admitted(lake: Any) -> None:
    lake.texts(*(f"text {i} é\u2028\x00" for i in range(25)))
    plan = lake.plan(lake.job(SUMMARIES, LABELS, max_requests_per_batch=10))
    assert (plan.batches, [shard.requests for shard in plan.shards]) == (5, [10, 10, 10, 10, 10])
    tasks = {task.name: task.task_key for task in (SUMMARIES, LABELS)}
    owned = pq.read_table(lake.folder / "root" / plan.keys.path)
    places = []
    for at, (shard, asked) in enumerate(zip(plan.shards, lake.requests(plan), strict=True)):
        body = lake.store.get(shard.path)
        assert json.loads(body).keys() == {"requests"}
        assert (shard.sha256, shard.body_bytes) == (hashlib.sha256(body).hexdigest(), len(body))
        assert {one.tag for one in asked} == {submission_tag(plan.run_id, 1, at)}
        places += [(tasks[one.name], one.key, at, position) for position, one in enumerate(asked)]
    keys = [uuid.hex for uuid in owned["request_key"].to_pylist()]
    found = zip(owned["task_key"].to_pylist(), keys, owned["shard"].to_pylist(), owned["position"].to_pylist(), strict=True)
    assert list(found) == places
    content = lake.store.get(plan.keys.path)
    assert (plan.keys.count, plan.keys.sha256) == (50, hashlib.sha256(content).hexdigest())
    tries = [preflight.worst_nano_usd or 0 for preflight in plan.preflights]
    assert sum(shard.worst_nano_usd or 0 for shard in plan.shards) + sum(tries) == plan.worst_nano_usd
    assert lake.store.list("log") == []
    assert plan.example is None


def test_bodies_hold_what_rendering_says_for_difficult_texts(lake: Any) -> None:
    texts = ["🎉👩‍🚀", "\x00", "\x01\x1f\x7f", "a\u2028b\u2029c\r\n", "שלום עולם", '"}]}', "{text}", "\ufeffx", "é" * 2_500_000]
    lake.texts(*texts)
    [asked] = lake.requests(lake.plan(lake.job()))
    assert [one.text for one in asked] == [f"<document>\n{text}\n</document>" for text in texts]


def test_a_preview_counts_the_same_and_writes_nothing(lake: Any) -> None:
    lake.texts(*(f"text {i}" for i in range(30)), None)
    job = lake.job(SUMMARIES, LABELS, max_requests_per_batch=7)
    before = tree(lake.folder)
    preview = lake.plan(job, preview=True)
    assert tree(lake.folder) == before
    assert (preview.shards, preview.keys) == ((), None)
    assert json.loads(preview.example)["messages"][0]["content"] == "<document>\ntext 0\n</document>"
    plan = lake.plan(job)
    assert (preview.tallies, preview.batches, preview.estimates) == (plan.tallies, plan.batches, plan.estimates)
    before = tree(lake.folder)
    assert lake.plan(job, preview=True).tallies == plan.tallies
    assert tree(lake.folder) == before


def test_a_preview_of_an_admitted_root_writes_nothing_either(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job())
    lake.texts("a", "c")
    before = tree(lake.folder)
    preview = lake.plan(lake.job(), preview=True)
    assert tree(lake.folder) == before
    assert preview.total == Tally(rows=2, asked=1, already_answered=1)


def test_a_preview_of_a_plan_that_was_staged_and_not_admitted_is_not_bought_by_the_next(lake: Any) -> None:
    lake.texts("a")
    lake.plan(lake.job())
    assert lake.plan(lake.job()).total.asked == 1


def test_answered_rows_are_never_asked_again_and_changed_ones_are(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job())
    assert lake.plan(lake.job()).total == Tally(rows=3, already_answered=3)
    assert lake.finish(lake.job()) is None
    lake.texts("b", "new", "a", "a")
    plan = lake.plan(lake.job())
    assert plan.total == Tally(rows=4, asked=1, already_answered=2)
    assert [one.text for one in lake.requests(plan)[0]] == ["<document>\nnew\n</document>"]


@pytest.mark.parametrize(
    ("outcome", "error", "asked"),
    [
        ("succeeded", None, 0),
        ("refused", "refusal: x", 0),
        ("truncated", "max_tokens: x", 0),
        ("invalid", "not_json: x", 0),
        ("errored", "invalid_request_error: x", 0),
        ("errored", "request_too_large: x", 0),
        ("errored", "api_error: x", 1),
        ("expired", "expired: x", 1),
        ("canceled", "canceled: x", 1),
    ],
)
def test_what_failed_for_good_is_not_asked_again_and_the_rest_is(lake: Any, outcome: str, error: str | None, asked: int) -> None:
    lake.texts("a")
    lake.finish(lake.job(), lambda _: {"outcome": outcome, "error": error})
    assert lake.plan(lake.job()).total.asked == asked


def test_what_an_own_run_concluded_is_not_planned_twice_in_one_invocation(lake: Any) -> None:
    lake.texts("a", "b")
    own = lake.finish(lake.job(), lambda _: {"outcome": "expired", "error": "expired: x"})
    lake.texts("a", "b", "c")
    plan = lake.plan(lake.job(), concluded_runs=[own.run_id])
    assert [one.text for one in lake.requests(plan)[0]] == ["<document>\nc\n</document>"]


def test_answers_are_the_tasks_own(lake: Any) -> None:
    lake.texts("a")
    lake.finish(lake.job(SUMMARIES))
    renamed = Summarize(name="renamed", column="text", model=HAIKU)
    longer = Summarize(name="summaries", column="text", model=HAIKU, max_words=41)
    assert [lake.plan(lake.job(task)).total.asked for task in (SUMMARIES, renamed, longer, LABELS)] == [0, 0, 1, 1]


def test_what_an_open_run_owns_is_waited_for_and_not_asked(lake: Any) -> None:
    lake.texts("a", "b")
    _, first = lake.admit(lake.job())
    lake.texts("b", "c")
    plan, second = lake.admit(lake.job())
    assert plan.total == Tally(rows=2, asked=1, in_flight=1)
    assert plan.waits == second.waits == (first.own,)
    lake.texts("c", "d")
    assert [entry.number for entry in lake.plan(lake.job()).waits] == [2]
    lake.texts("d")
    assert lake.plan(lake.job()).waits == ()


def test_the_run_of_another_task_is_not_waited_for(lake: Any) -> None:
    lake.texts("a")
    lake.admit(lake.job(LABELS))
    assert lake.plan(lake.job(SUMMARIES)).total == Tally(rows=1, asked=1)


def test_a_canceled_runs_keys_are_free_again_but_for_its_answers(lake: Any) -> None:
    lake.texts("a", "b")
    _, admission = lake.admit(lake.job())
    lake.answer(
        lake.job(),
        admission.own,
        lambda one: {"outcome": "succeeded", "answer": "{}"} if "a" in one.text[11:12] else {"outcome": "canceled"},
    )
    assert lake.plan(lake.job()).total == Tally(rows=2, in_flight=2)
    lake.end(admission.own, "canceled")
    assert lake.plan(lake.job()).total == Tally(rows=2, asked=1, already_answered=1)


def test_a_run_that_ends_between_the_two_reads_is_in_one_of_them(lake: Any) -> None:
    lake.texts("a", "b")
    _, admission = lake.admit(lake.job())
    snapshot = read_log(lake.store)
    lake.answer(lake.job(), admission.own)
    lake.end(admission.own)
    answers = Answers(lake.store, "simulator", SUMMARIES.task_key)
    [(task_key, keys)] = read_owned_keys(lake.store, admission.own.run_id)
    assert task_key == SUMMARIES.task_key
    assert [entry.run_id for entry in snapshot.open] == [admission.own.run_id]
    assert answers.final(keys).all()
    # In the other order it would be in neither: no answers yet, and no open run any more.
    assert read_log(lake.store).open == ()


PLANNER = """
import sys
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.plan import plan_job
folder = sys.argv[1]
task = Summarize(name="summaries", column="text", model="claude-haiku-5-5")
job = Job(root=f"{folder}/root", endpoint="simulator", temporal_namespace="default",
          source=ParquetDataset(path=f"{folder}/source/reviews.parquet", key="id"), targets=(Target(task=task, output=f"{folder}/out/summaries"),))
plan = plan_job(job)
print(plan.total.asked, plan.total.in_flight, plan.total.already_answered, len(plan.waits))
"""


@pytest.mark.parametrize("point", ["list:responses.before", "list:done.before"])
def test_a_planner_that_stalls_while_a_run_ends_does_not_buy_it_again(lake: Any, point: str) -> None:
    lake.texts("a", "b")
    _, admission = lake.admit(lake.job())
    environment = {**os.environ, "CLAUDE_BATCH_FAULT_POINTS": f"{point}=stop"}
    planner = subprocess.Popen([sys.executable, "-c", PLANNER, str(lake.folder)], env=environment, stdout=subprocess.PIPE, text=True)
    _, status = os.waitpid(planner.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    lake.answer(lake.job(), admission.own)
    lake.end(admission.own)
    planner.send_signal(signal.SIGCONT)
    printed, _ = planner.communicate(timeout=60)
    asked, in_flight, answered, _ = (int(word) for word in printed.split())
    assert (asked, in_flight + answered) == (0, 2)


def test_an_unchanged_source_is_not_rendered_again(lake: Any) -> None:
    path = lake.texts("a", "b", None)
    lake.finish(lake.job())
    [keys] = lake.store.list("keys")
    before = lake.store.version(keys)
    os.utime(path, (1, 1))
    plan = lake.plan(lake.job())
    assert plan.total == Tally(rows=3, skipped=1, already_answered=2)
    assert (lake.store.version(keys), lake.store.list("keys")) == (before, [keys])


def test_the_keys_that_were_kept_count_also_where_rows_are_asked(lake: Any) -> None:
    lake.texts("a", "b", "c", "a", "b", " ")
    first = lake.plan(lake.job())
    assert len(lake.store.list("keys")) == 1
    second = lake.plan(lake.job())
    assert (second.tallies, second.estimates) == (first.tallies, first.estimates)
    assert [[(one.key, one.text) for one in shard] for shard in lake.requests(second)] == [
        [(one.key, one.text) for one in shard] for shard in lake.requests(first)
    ]


def test_partitions_share_batches_and_requests(lake: Any) -> None:
    for day in ("1", "2", "3"):
        lake.texts("shared", f"of day {day}", path=f"day={day}/part-0.parquet")
    plan = lake.plan(lake.job(path="", partition_column="day"))
    assert plan.tallies == {
        ("summaries", "1"): Tally(rows=2, asked=2),
        ("summaries", "2"): Tally(rows=2, asked=1),
        ("summaries", "3"): Tally(rows=2, asked=1),
    }
    assert plan.batches == 1
    assert lake.plan(lake.job(path="", partition_column="day", partitions=("2",))).total == Tally(rows=2, asked=2)


def test_progress_is_the_sum_so_far(lake: Any) -> None:
    lake.texts(*(f"text {i}" for i in range(5_000)))
    seen: list[Tally] = []
    lake.plan(lake.job(SUMMARIES, LABELS), on_rows=seen.append, preview=True)
    rows = [tally.rows for tally in seen]
    assert rows == sorted(rows)
    assert (rows[-1], seen[-1].asked) == (10_000, 10_000)


def test_the_mean_of_answers_so_far_is_expected(lake: Any) -> None:
    lake.texts("a")
    assert "a quarter of max_tokens" in lake.plan(lake.job()).estimates["summaries"].assumption
    lake.finish(lake.job())
    lake.texts("b", "c")
    estimate = lake.plan(lake.job()).estimates["summaries"]
    assert (estimate.expected_output_tokens, estimate.requests) == (10, 2)


def test_the_fingerprint_is_of_the_planned_content(lake: Any) -> None:
    path = lake.texts("a")
    first = lake.plan(lake.job(), preview=True).fingerprint
    os.utime(path, (1, 1))
    assert lake.plan(lake.job(), preview=True).fingerprint == first
    lake.texts("b")
    assert lake.plan(lake.job(), preview=True).fingerprint != first


# Bad input: each is said before anything is sent, admitted or written.


def bad(lake: Any, table: dict[str, Any] | None = None, **job: Any) -> Callable[[], Any]:
    if table is not None:
        lake.write(table)
    return lambda: plan_job(lake.job(**job))


REFUSED: dict[str, tuple[type[ClaudeBatchError], str, Callable[[Any], Any]]] = {
    "missing file": (SourceError, "does not exist", lambda lake: bad(lake)),
    "missing text column": (TaskError, "the source does not have; it has id", lambda lake: bad(lake, {"id": [1]})),
    "missing key column": (SourceError, "no column 'id'", lambda lake: bad(lake, {"text": ["a"]})),
    "missing carried column": (SourceError, "no column 'x'", lambda lake: bad(lake, {"id": [1], "text": ["a"]}, columns=["x"])),
    "zero rows": (
        SourceError,
        "has zero rows",
        lambda lake: bad(lake, {"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}),
    ),
    "null key": (SourceError, "is null in 1 row, first in row 2", lambda lake: bad(lake, {"id": [1, None], "text": ["a", "b"]})),
    "key twice": (
        SourceError,
        "1 key (id) occurs more than once: 1 (rows 1 and 3)",
        lambda lake: bad(lake, {"id": [1, 2, 1], "text": ["a", "b", "c"]}),
    ),
    "collision": (
        OutputError,
        "two columns named 'status'",
        lambda lake: bad(lake, {"id": [1], "text": ["a"], "status": ["x"]}, columns="all"),
    ),
    "collision with the task": (OutputError, "named 'summary'", lambda lake: bad(lake, {"summary": [1], "text": ["a"]}, key="summary")),
    "binary text": (TaskError, "cannot show a value of type bytes", lambda lake: bad(lake, {"id": [1], "text": [b"a"]})),
    "partition column": (SourceError, "is no folder level", lambda lake: bad(lake, {"id": [1], "text": ["a"]}, partition_column="day")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_anything_is_admitted(lake: Any, case: str) -> None:
    kind, said, make = REFUSED[case]
    call = make(lake)
    with pytest.raises(kind) as refused:
        call()
    assert said in str(refused.value)
    assert any(words in str(refused.value) for words in ("Nothing was sent", "Nothing of it was sent"))
    assert (lake.store.list("log"), lake.store.list("plans"), (lake.folder / "out").exists()) == ([], [], False)


def test_a_slot_that_is_no_column_is_refused(lake: Any) -> None:
    lake.texts("a")
    task = ClaudeTask(name="t", model=HAIKU, prompt="{txt}", max_tokens=1)
    with pytest.raises(TaskError, match=r"slot \{txt\} is no column.*Did you mean \{text\}"):
        lake.plan(lake.job(task))


def test_a_corrupt_footer_is_refused(lake: Any) -> None:
    path = lake.texts("a")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match="not a Parquet file, or its footer is damaged"):
        lake.plan(lake.job())


@pytest.mark.parametrize("replace", [False, True])
def test_an_output_with_somebody_elses_files_is_refused(lake: Any, replace: bool) -> None:
    lake.texts("a")
    (lake.folder / "out" / "summaries").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), lake.folder / "out" / "summaries" / "theirs.parquet")
    with pytest.raises(OutputError, match=r"this tool did not write: theirs\.parquet"):
        lake.plan(lake.job(replace=replace))


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize(("name", "said"), [("endpoint", "endpoint 'simulator'"), ("temporal_namespace", "Temporal namespace 'default'")])
def test_a_root_that_belongs_to_another_is_refused(lake: Any, name: str, said: str, preview: bool) -> None:
    lake.texts("a")
    lake.plan(lake.job())
    with pytest.raises(RootError, match=rf"belongs to the {said}, and this run is for 'other'\. Nothing was sent\. Use another root"):
        lake.plan(lake.job(**{name: "other"}), preview=preview)


def test_a_root_that_cannot_be_written_is_refused(lake: Any) -> None:
    lake.texts("a")
    (lake.folder / "root").write_text("a file")
    with pytest.raises(RootError, match=r"root\.json cannot be written: a file is where a folder should be"):
        lake.plan(lake.job())


def spoil(lake: Any, path: str, how: str) -> None:
    match how:
        case "corrupt":
            (lake.folder / "source" / path).write_bytes(b"PAR1 nothing PAR1")
        case "key twice":
            lake.write({"id": [1, 1], "text": ["a", "b"]}, path)
        case "no key":
            lake.write({"text": ["a", "b"]}, path)
        case "no text":
            lake.write({"id": [1]}, path)
        case "zero rows":
            lake.write({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}, path)


@pytest.mark.parametrize("day", ["1", "2"])
@pytest.mark.parametrize("how", ["corrupt", "key twice", "no key", "no text", "zero rows"])
def test_a_bad_partition_is_named_and_the_others_are_planned(lake: Any, how: str, day: str) -> None:
    for one in ("1", "2", "3"):
        lake.texts("a", f"of {one}", path=f"day={one}/part-0.parquet")
    spoil(lake, f"day={day}/part-0.parquet", how)
    plan = lake.plan(lake.job(path="", partition_column="day"))
    assert list(plan.bad_partitions) == [day]
    assert "Nothing of it was sent" in plan.bad_partitions[day] or "Nothing was sent" in plan.bad_partitions[day]
    assert {partition for _, partition in plan.tallies} == {"1", "2", "3"} - {day}
    assert plan.total.rows == 4


def test_a_partition_that_does_not_exist_is_named(lake: Any) -> None:
    lake.texts("a", path="day=1/part-0.parquet")
    plan = lake.plan(lake.job(path="", partition_column="day", partitions=("1", "2")))
    assert "has no folder day=2/" in plan.bad_partitions["2"]


def test_a_partition_that_is_not_wanted_may_be_bad(lake: Any) -> None:
    for one in ("1", "2"):
        lake.texts("a", path=f"day={one}/part-0.parquet")
    spoil(lake, "day=1/part-0.parquet", "corrupt")
    plan = lake.plan(lake.job(path="", partition_column="day", partitions=("2",)))
    assert (plan.bad_partitions, plan.total.rows) == ({}, 1)


@pytest.mark.parametrize(("how", "kind"), [("corrupt", SourceError), ("no text", TaskError)])
def test_where_every_partition_is_bad_the_plan_is_refused_with_the_first_reason(lake: Any, how: str, kind: type[ClaudeBatchError]) -> None:
    for one in ("1", "2"):
        lake.texts("a", path=f"day={one}/part-0.parquet")
        spoil(lake, f"day={one}/part-0.parquet", how)
    with pytest.raises(kind, match=r"None of 2 partitions of .* can be asked about\. "):
        lake.plan(lake.job(path="", partition_column="day"))


def test_a_collision_in_any_partition_is_refused_before_anything_is_sent(lake: Any) -> None:
    lake.texts("a", path="day=1/part-0.parquet")
    lake.write({"id": [1], "text": ["a"], "cost_usd": [1.0]}, "day=2/part-0.parquet")
    with pytest.raises(OutputError, match="two columns named 'cost_usd'"):
        lake.plan(lake.job(path="", partition_column="day", columns="all"))


def test_files_of_one_output_that_do_not_fit_together_are_refused_before_anything_is_sent(lake: Any) -> None:
    lake.write({"id": [1], "text": ["a"], "stars": [1]}, "a.parquet")
    lake.write({"id": [2], "text": ["b"], "stars": ["five"]}, "b.parquet")
    with pytest.raises(SourceError, match=r"The column 'stars' is string in .*b\.parquet and int64 in .*a\.parquet"):
        lake.plan(lake.job(path="", columns="all"))
    assert lake.plan(lake.job(path="")).total.asked == 2


def test_keys_of_the_example_are_those_of_the_plan(lake: Any) -> None:
    lake.texts("a")
    plan = lake.plan(lake.job())
    [(_, keys)] = read_owned_keys(lake.store, plan.run_id)
    example = lake.plan(lake.job(), preview=True).example
    assert key_digits(keys) == [hashlib.sha256(example.encode()).hexdigest()[:32].encode()]


def test_a_partition_with_a_value_that_cannot_be_read_is_left_out(lake: Any) -> None:
    lake.write({"id": [1], "text": ["a"]}, "s/day=1/a.parquet")
    lake.write(pa.table({"id": [1], "text": pa.array([2**62], pa.timestamp("us"))}), "s/day=2/a.parquet")
    lake.write(pa.table({"id": pa.array([2**62], pa.timestamp("us")), "text": ["b"]}), "s/day=3/a.parquet")
    plan = lake.plan(lake.job(path="s", partition_column="day"))
    assert (plan.total.asked, sorted(plan.bad_partitions)) == (1, ["2", "3"])
    assert "out of range in text, row 1 (key 1)" in plan.bad_partitions["2"]
