import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.request import submission_tag
from claude_batch_dagster.core.shard import iter_lines, line_params
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.plans import find_entry, read_log, read_task
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.estimate import Estimator

HAIKU = "claude-haiku-5-5"
SUMMARIES = Summarize(name="summaries", column="text", model=HAIKU)
LABELS = Moderate(name="labels", column="text", model=HAIKU, labels=("ok", "spam"))
TASKS = {task.name: task for task in (SUMMARIES, LABELS)}


def price_worst(task: ClaudeTask, params_bytes: int) -> int:
    worst = Estimator(HAIKU, task.max_tokens, None).add(np.array([params_bytes]))
    assert worst is not None
    return int(worst[0])


def owned(lake: Any, entry: LogEntry) -> list[tuple[str, str]]:
    """Return (task_key, request_key) of what a run owns, having checked that bodies, references and `keys.parquet` agree."""
    table = pq.read_table(lake.folder / "root" / entry.keys.path)
    keys = [uuid.hex for uuid in table["request_key"].to_pylist()]
    told = list(zip(table["task_key"].to_pylist(), keys, table["shard"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert entry.keys.sha256 == hashlib.sha256(lake.store.get(entry.keys.path)).hexdigest()
    staged, worst = [], 0
    for at, (shard, asked) in enumerate(zip(entry.shards, lake.requests(entry), strict=True)):
        body = lake.store.get(shard.path)
        assert len(json.loads(body)["requests"]) == shard.requests == len(asked)
        assert (shard.sha256, shard.body_bytes) == (hashlib.sha256(body).hexdigest(), len(body))
        assert f"/1-{at}-{shard.sha256[:16]}.json" in shard.path
        assert {one.tag for one in asked} == {submission_tag(entry.run_id, 1, at)}
        staged += [(TASKS[one.name].task_key, one.key, at, position) for position, one in enumerate(asked)]
        costs = [price_worst(TASKS[one.name], len(line_params(line))) for one, line in zip(asked, iter_lines([body]), strict=True)]
        assert shard.worst_nano_usd == sum(costs)
        worst += sum(costs)
    assert staged == told
    assert entry.keys.count == len(told) > 0
    by_key = {task.task_key: task for task in TASKS.values()}
    tries = [price_worst(by_key[ref.task_key], len(lake.store.get(ref.path))) for ref in entry.preflights]
    assert entry.cost_nano_usd.worst == worst + 2 * sum(tries)
    return [(task_key, key) for task_key, key, _, _ in told]


def test_an_admitted_plan_is_the_next_entry_of_the_log(lake: Any) -> None:
    lake.texts("a", "b")
    job = lake.job(SUMMARIES, LABELS, max_cost_usd=1.5, max_attempts=2, max_in_flight_batches=7, dagster_run_id="d")
    plan, admission = lake.admit(job)
    entry = admission.own
    assert entry is not None
    assert admission.waits == ()
    assert (entry.number, entry.run_id, entry.endpoint) == (1, plan.run_id, "simulator")
    assert [(task.name, task.task_key) for task in entry.tasks] == [(task.name, task.task_key) for task in (SUMMARIES, LABELS)]
    assert (entry.source.uri, entry.source.fingerprint) == (job.source.uri, plan.fingerprint)
    assert (entry.keys, entry.shards) == (plan.keys, plan.shards)
    assert (entry.cost_nano_usd.expected, entry.cost_nano_usd.worst) == (plan.expected_nano_usd, plan.worst_nano_usd)
    assert (entry.cost_nano_usd.cap, entry.max_attempts, entry.max_in_flight_batches) == (1_500_000_000, 2, 7)
    assert (entry.owner.dagster_run_id, entry.owner.pid > 0, bool(entry.owner.host)) == ("d", True, True)
    assert read_log(lake.store).open == (entry,)
    assert find_entry(lake.store, "r1") == entry
    assert len(owned(lake, entry)) == 4


def test_the_worker_finds_what_each_task_is(lake: Any) -> None:
    lake.texts("a")
    lake.admit(lake.job(SUMMARIES, LABELS))
    for task in (SUMMARIES, LABELS):
        assert read_task(lake.store, task.task_key) == json.loads(task.encode_document())


def test_a_plan_that_owns_nothing_is_not_admitted(lake: Any) -> None:
    lake.texts(None, "")
    _, admission = lake.admit(lake.job())
    assert (admission.own, admission.waits) == (None, ())
    assert (lake.store.list("log"), lake.store.list("plans")) == ([], [])


def test_the_loser_of_a_race_gives_up_what_the_winner_owns(lake: Any) -> None:
    job = lake.job(max_requests_per_batch=2)
    lake.texts("a", "b", "c")
    first = lake.plan(job)
    lake.texts("x", "c", "y", "b", "z")
    second = lake.plan(job)
    assert (first.total.asked, second.total.asked) == (3, 5)
    winner, loser = admit_plan(job, first), admit_plan(job, second)
    assert winner.own is not None
    assert loser.own is not None
    assert (winner.waits, loser.waits) == ((), (winner.own,))
    assert (winner.own.number, loser.own.number) == (1, 2)
    assert [[one.text for one in shard] for shard in lake.requests(loser.own)] == [
        ["<document>\nx\n</document>", "<document>\ny\n</document>"],
        ["<document>\nz\n</document>"],
    ]
    assert set(owned(lake, winner.own)).isdisjoint(owned(lake, loser.own))
    assert loser.own.cost_nano_usd.expected == round((second.expected_nano_usd or 0) * 3 / 5)


def test_who_loses_everything_only_waits_and_leaves_nothing_behind(lake: Any) -> None:
    lake.texts("a", "b")
    first, second = lake.plan(lake.job()), lake.plan(lake.job())
    winner, loser = admit_plan(lake.job(), first), admit_plan(lake.job(), second)
    assert (loser.own, loser.waits) == (None, (winner.own,))
    assert lake.store.list("log") == ["log/1.json"]
    assert lake.store.list(f"plans/{second.run_id}") == []


def test_who_loses_the_number_and_no_key_is_admitted_as_it_was_staged(lake: Any) -> None:
    lake.texts("a")
    first = lake.plan(lake.job())
    lake.texts("b")
    second = lake.plan(lake.job())
    admit_plan(lake.job(), first)
    admission = admit_plan(lake.job(), second)
    assert admission.own is not None
    assert (admission.own.number, admission.own.shards, admission.own.keys, admission.waits) == (2, second.shards, second.keys, ())


def test_a_winner_that_is_already_done_is_not_bought_again(lake: Any) -> None:
    lake.texts("a", "b")
    late = lake.plan(lake.job())
    lake.texts("b", "c")
    lake.finish(lake.job())
    admission = admit_plan(lake.job(), late)
    assert admission.own is not None
    assert [one.text for one in lake.requests(admission.own)[0]] == ["<document>\na\n</document>"]
    assert len(owned(lake, admission.own)) == 1


def test_the_winner_of_another_task_takes_nothing(lake: Any) -> None:
    lake.texts("a")
    late = lake.plan(lake.job(SUMMARIES))
    lake.admit(lake.job(LABELS))
    admission = admit_plan(lake.job(SUMMARIES), late)
    assert admission.own is not None
    assert (len(owned(lake, admission.own)), admission.waits) == (1, ())


def test_one_task_may_lose_and_the_other_keep(lake: Any) -> None:
    lake.texts("a", "b")
    late = lake.plan(lake.job(SUMMARIES, LABELS, max_requests_per_batch=3))
    lake.texts("b", "c")
    lake.admit(lake.job(LABELS))
    admission = admit_plan(lake.job(SUMMARIES, LABELS, max_requests_per_batch=3), late)
    assert admission.own is not None
    assert sorted(task_key for task_key, _ in owned(lake, admission.own)) == sorted([SUMMARIES.task_key] * 2 + [LABELS.task_key])


def test_three_planners_of_the_same_moment_own_disjoint_keys(lake: Any) -> None:
    jobs = [lake.job(SUMMARIES, LABELS), lake.job(LABELS), lake.job(SUMMARIES, max_requests_per_batch=1)]
    plans = []
    for job, texts in zip(jobs, (["a", "b", "c"], ["b", "c", "d"], ["c", "d", "e", "a"]), strict=True):
        lake.texts(*texts)
        plans.append(lake.plan(job))
    admissions = [admit_plan(job, plan) for job, plan in zip(jobs, plans, strict=True)]
    entries = [admission.own for admission in admissions if admission.own is not None]
    keys = [key for entry in entries for key in owned(lake, entry)]
    assert len(keys) == len(set(keys)) == 3 + 4 + 2
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert [[entry.number for entry in admission.waits] for admission in admissions] == [[], [1], [1]]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whoever_is_faster_every_key_has_one_owner(new_lake: Callable[[], Any], data: st.DataObject) -> None:
    lake = new_lake()
    words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6)
    wanted: list[tuple[str, str]] = []
    plans = []
    for _ in range(data.draw(st.integers(2, 3))):
        tasks = data.draw(st.sampled_from([(SUMMARIES,), (LABELS,), (SUMMARIES, LABELS)]))
        job = lake.job(*tasks, max_requests_per_batch=data.draw(st.integers(1, 3)))
        texts = data.draw(words)
        lake.texts(*texts)
        wanted += [(task.name, text) for task in tasks for text in texts]
        plans.append((job, lake.plan(job)))
    entries = []
    for job, plan in data.draw(st.permutations(plans)):
        admission = admit_plan(job, plan)
        waited = {entry.number for entry in admission.waits}
        assert waited <= {entry.number for entry in entries}
        if admission.own is not None:
            entries.append(admission.own)
    held = [key for entry in entries for key in owned(lake, entry)]
    assert len(held) == len(set(held))
    asked = {(one.name, one.text.removeprefix("<document>\n")[0]) for entry in entries for shard in lake.requests(entry) for one in shard}
    assert asked == set(wanted)
    assert len(held) == len(asked)


def test_planners_who_race_in_earnest_get_consecutive_numbers(lake: Any) -> None:
    planners = 4
    plans = []
    for at in range(planners):
        lake.texts("shared", f"own {at}")
        plans.append(lake.plan(lake.job()))
    with ThreadPoolExecutor(planners) as pool:
        admissions = list(pool.map(lambda plan: admit_plan(lake.job(), plan), plans))
    entries = [admission.own for admission in admissions if admission.own is not None]
    assert sorted(entry.number for entry in entries) == list(range(1, planners + 1))
    keys = [key for entry in entries for key in owned(lake, entry)]
    assert len(keys) == len(set(keys)) == planners + 1
