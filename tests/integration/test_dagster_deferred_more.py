"""Deferred runs: what is published of a table, what checks see, who collects after a kill, and what the sensor makes of odd roots."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pyarrow.parquet as pq
import pytest
from temporalio.client import Client

from claude_batch_dagster import build_claude_batch_checks, build_claude_batch_sensor
from claude_batch_dagster.core.contract import workflow_id
from claude_batch_dagster.core.records import DeferralRecord
from claude_batch_dagster.resources.deferring import COLLECTS_TAG
from claude_batch_dagster.sensors import deferred as sensor
from claude_batch_dagster.storage.deferrals import list_deferrals, read_deferral
from claude_batch_dagster.storage.plans import read_done, read_entries
from claude_batch_dagster.verbs import ended
from claude_batch_dagster.verbs.connection import external_connection
from tests.dagster_house import DAYS, SUMMARIES, TOPICS, House, OpenHouse, asked, define, failure_of, write_reviews
from tests.integration.test_dagster_deferred import AT_ONCE, Deferred, batches, events, held, until
from tests.stack import Bench, RunningSimulator

__all__ = ["held"]
REPOSITORY = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
LOADED_S = 240.0
"""A process of Dagster takes long to load on a machine that is busy."""

# A run of its own process: of Parquet files, or of a function whose rows are others at each call.
RUN = """
import json
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pandas as pd

from claude_batch_dagster import ClaudeBatchResource, TableSnapshot, claude_batch_assets
from tests.dagster_house import DAILY, SUMMARIES, House, define

place, options = Path(sys.argv[1]), json.loads(sys.argv[2])
wait_for = timedelta(seconds=options.pop("wait_s", 0))


def load(partition_key):
    with (place / "calls").open("a") as calls:
        calls.write(f"{partition_key}\\n")
    number = len((place / "calls").read_text().split())
    texts = [f"{place.name}, {partition_key}, call {number}: the tent number {row} is great." for row in range(3)]
    return pd.DataFrame({"review_id": range(3), "text": texts})


if options.pop("table", False):

    @claude_batch_assets(
        source=TableSnapshot(load=load, key="review_id", partition_column="day"),
        tasks=[SUMMARIES],
        columns="all",
        partitions_def=DAILY,
        wait_for=wait_for,
    )
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)
else:
    insights = define(place, SUMMARIES, wait_for=wait_for)

with dg.DagsterInstance.get() as instance:
    sys.exit(not House(place, instance).materialize(insights, **options).success)
"""


class Processes:
    """Runs in processes of their own, over one instance on disk."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def start(self, *, traps: str = "", **options: Any) -> "subprocess.Popen[bytes]":
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)} | ({"CLAUDE_BATCH_FAULT_POINTS": traps} if traps else {})
        with (self.place / "run.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", RUN, self.place, json.dumps(options)], env=environ, stdout=log, stderr=log)

    def run(self, **options: Any) -> int:
        return self.start(**options).wait(LOADED_S)


@pytest.fixture
def processes(place: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    home = place / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return Processes(place)


@pytest.fixture
def kept_house(place: Path, processes: Processes) -> Iterator[House]:
    """Resources over the instance of the processes."""
    with ExitStack() as stack:
        yield House(place, stack.enter_context(dg.DagsterInstance.get()))


def deferred_of(house: House, place: Path, **arguments: Any) -> Deferred:
    return Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE, **arguments), place)


def only_record(deferred: Deferred) -> DeferralRecord:
    (name,) = deferred.deferrals
    record = read_deferral(deferred.store, name)
    assert record is not None
    return record


def evaluated(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    found = [event.event_specific_data for event in events(result, "ASSET_CHECK_EVALUATION")]
    return {one.check_name: one for one in found}


def test_of_a_table_is_published_what_was_asked_though_it_changed_and_another_process_collects(
    place: Path, processes: Processes, kept_house: House, held: RunningSimulator
) -> None:
    """The function is called once, by the run that asked."""
    before = asked(held)
    assert processes.run(table=True, partition_key=DAYS[1]) == 0
    deferred = deferred_of(kept_house, place, partitioned=True)
    held.clear()
    (request,) = deferred.until_requested()
    assert request.partition_key == DAYS[1]
    assert processes.run(table=True, partition_key=DAYS[1], tags=dict(request.tags)) == 0
    assert (place / "calls").read_text().split() == [DAYS[1]]
    output = kept_house.output / "summaries" / f"day={DAYS[1]}" / "part-0.parquet"
    rows = pq.read_table(output, partitioning=None).to_pylist()
    assert [row["text"].partition(", call ")[2][:2] for row in rows] == ["1:"] * 3
    assert [row["summary"] for row in rows] == [f"[simulated] {row['text']}" for row in rows]
    assert (asked(held) - before, deferred.deferrals) == (3, [])
    # The next run asks about what is there by then.
    held.switch_on("hold")
    assert processes.run(table=True, partition_key=DAYS[1]) == 0
    assert (place / "calls").read_text().split() == [DAYS[1]] * 2
    assert len(deferred.deferrals) == 1


@pytest.mark.parametrize("day", [None, DAYS[1]], ids=["whole", "partition"])
def test_checks_are_of_the_run_that_collects(place: Path, open_house: OpenHouse, held: RunningSimulator, day: str | None) -> None:
    """Nothing is there to be judged before; then each limit, of the partition that was published."""
    write_reviews(place, *(DAYS if day else ()))
    house = open_house()
    deferred = deferred_of(house, place, partitioned=day is not None)
    checks = build_claude_batch_checks(deferred.assets, min_coverage=1, max_failure_rate=0)
    asked_for = {} if day is None else {"partition_key": day}
    assert evaluated(house.materialize(deferred.assets, *checks, **asked_for)) == {}
    held.clear()
    (request,) = deferred.until_requested()
    collected = house.materialize(
        deferred.assets, *checks, selection=request.asset_selection, partition_key=request.partition_key, tags=dict(request.tags)
    )
    found = evaluated(collected)
    assert {name: one.passed for name, one in found.items()} == {"rows_answered": True, "coverage": True, "failure_rate": True}
    if day is not None:
        assert found["coverage"].metadata["partitions"].value == day


def test_a_red_blocking_check_of_the_collecting_run_keeps_back_what_is_downstream(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    """The automation condition asks for the checks: downstream is never in the run that collects."""
    write_reviews(place)
    house = open_house(max_attempts=1)
    deferred = deferred_of(house, place)
    checks = build_claude_batch_checks(deferred.assets, max_failure_rate=0, blocking=True)

    @dg.asset(
        deps=["summaries"], automation_condition=dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
    def follower() -> None: ...

    defs = dg.Definitions(assets=[deferred.assets, follower], asset_checks=checks, resources=house.resources)

    def requested(cursor: Any = None) -> tuple[int, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            told = dg.evaluate_automation_conditions(defs, house.instance, cursor=cursor)
        return told.total_requested, told.cursor

    def collect() -> dg.ExecuteInProcessResult:
        (request,) = deferred.until_requested()
        return house.materialize(deferred.assets, *checks, selection=request.asset_selection, tags=dict(request.tags))

    count, cursor = requested()
    begun = batches(held)
    held.switch_on("expire", "all")
    house.materialize(deferred.assets, *checks)
    until(lambda: batches(held) > begun)
    held.clear()
    red = collect()
    assert evaluated(red)["failure_rate"].passed is False
    assert len(events(red, "ASSET_MATERIALIZATION")) == 1
    count, cursor = requested(cursor)
    assert count == 0
    held.switch_on("hold")
    house.materialize(deferred.assets, *checks)
    count, cursor = requested(cursor)
    assert count == 0, "a run that is deferred updates nothing"
    held.clear()
    assert evaluated(collect())["failure_rate"].passed is True
    assert requested(cursor)[0] == 1


def test_fail_above_fails_the_collecting_run_and_the_sensor_does_not_ask_again(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house(max_attempts=1)
    deferred = deferred_of(house, place, fail_above=0.5)
    begun = batches(held)
    held.switch_on("expire", "all")
    deferred.materialize()
    until(lambda: batches(held) > begun)
    held.clear()
    (request,) = deferred.until_requested()
    failed = deferred.collect(request)
    assert "than fail_above=50.0% allows" in failure_of(failed)
    assert not house.output.exists()
    assert deferred.tick().skip_reason.skip_message == "No run is deferred."
    assert batches(held) == begun + 1


def test_killed_between_the_intent_and_the_start_is_asked_by_the_run_that_the_sensor_requests(
    place: Path, processes: Processes, kept_house: House, held: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ended, "LISTED_AFTER_S", 0)
    write_reviews(place)
    before = asked(held)
    assert processes.run(traps="put:deferred.after=kill") == KILLED
    deferred = deferred_of(kept_house, place)
    assert only_record(deferred).intent is not None
    (request,) = deferred.until_requested()
    assert deferred.collect(request).success
    assert only_record(deferred).intent is None
    assert [run.label for run in only_record(deferred).runs] == ["r2"], "r1 asked nothing, and is no answer"
    held.clear()
    (request,) = deferred.until_requested()
    assert deferred.collect(request).success
    metadata = kept_house.metadata("summaries")[None]
    assert (metadata["claude_batch/succeeded"], metadata["claude_batch/requests"]) == (3, 3)
    assert (asked(held) - before, deferred.deferrals) == (3, [])


@pytest.mark.parametrize("wait_s", [0, 600])
def test_killed_after_the_start_is_collected_by_the_sensor_though_dagster_takes_the_run_for_alive(
    place: Path, processes: Processes, kept_house: House, held: RunningSimulator, wait_s: int
) -> None:
    write_reviews(place)
    before = asked(held)
    if wait_s:
        popen = processes.start(wait_s=wait_s)
        until(lambda: asked(held) > before, LOADED_S)
        popen.kill()
        popen.wait()
    else:
        assert processes.run(traps="put:deferred.before=kill@2") == KILLED
    (run,) = kept_house.instance.get_runs()
    assert not run.is_finished
    held.clear()
    deferred = deferred_of(kept_house, place)
    (request,) = deferred.until_requested()
    assert deferred.collect(request).success
    assert kept_house.metadata("summaries")[None]["claude_batch/succeeded"] == 3
    assert (asked(held) - before, deferred.deferrals) == (3, [])


def test_killed_before_the_intent_has_asked_nothing(
    place: Path, processes: Processes, kept_house: House, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    before = asked(simulator)
    assert processes.run(traps="put:deferred.before=kill") == KILLED
    deferred = deferred_of(kept_house, place)
    assert deferred.tick().skip_reason.skip_message == "No run is deferred."
    assert asked(simulator) == before
    assert processes.run(wait_s=600) == 0
    assert (asked(simulator) - before, kept_house.metadata("summaries")[None]["claude_batch/succeeded"]) == (3, 3)


def test_a_run_that_still_waits_is_left_alone_by_the_sensor_and_publishes_itself(
    place: Path, processes: Processes, kept_house: House, held: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its process here; by Dagster's status or the time elsewhere."""
    write_reviews(place)
    popen = processes.start(wait_s=600)
    deferred = deferred_of(kept_house, place)
    until(lambda: batches(held) and deferred.deferrals, LOADED_S)
    popen.send_signal(signal.SIGSTOP)
    held.clear()
    deferred.wait_for_end()
    assert deferred.tick().run_requests == []
    record = only_record(deferred)
    assert record.intent is not None
    (name,) = deferred.deferrals
    path = f"deferred/{name}.json"
    elsewhere = msgspec.structs.replace(record.intent.owner, host=f"not-{socket.gethostname()}")
    late = msgspec.structs.replace(record.intent, owner=elsewhere, leaves_at=record.deferred_at)
    deferred.store.put(path, msgspec.json.encode(msgspec.structs.replace(record, intent=late)))
    assert deferred.tick().run_requests == []
    with monkeypatch.context() as patch:
        patch.setattr(ended, "OVERDUE_AFTER", timedelta(0))
        assert len(deferred.tick().run_requests or ()) == 1, "nobody can be asked, and it should have left long ago"
    deferred.store.put(path, msgspec.json.encode(record))
    popen.send_signal(signal.SIGCONT)
    assert popen.wait(LOADED_S) == 0
    assert kept_house.metadata("summaries")[None]["claude_batch/succeeded"] == 3
    assert deferred.deferrals == []


def test_a_run_that_fails_while_it_waits_leaves_nothing_to_collect(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It told why."""
    write_reviews(place)
    house = open_house(preflight=False)
    simulator.switch_on("401-from", 0)
    monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", bench.task_queue)
    bench.start_worker(simulator)
    assert "Batch run r1 failed: " in failure_of(house.materialize(define(place, SUMMARIES, wait_for=timedelta(hours=1))))
    assert list_deferrals(deferred_of(house, place).store) == []


def test_the_new_rows_of_a_collecting_run_that_wait_for_a_person_are_published_once_they_are_answered(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house(preflight=False)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=timedelta(seconds=4)), place)
    deferred.materialize()
    held.clear()
    deferred.wait_for_end(1)
    (request,) = deferred.until_requested()
    write_reviews(place, rows=6)
    held.switch_on("spend-limit", "all")
    assert "Batch run r2 waits for an answer: " in failure_of(deferred.collect(request))
    assert [run.label for run in only_record(deferred).runs] == ["r1", "r2"]
    held.clear()
    answer_open_run(deferred)
    deferred.wait_for_end(2)
    (again,) = [one for one in deferred.until_requested() if not str(one.run_key).startswith("question/")]
    assert again.run_key != request.run_key
    assert deferred.collect(again).success
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 5


def answer_open_run(deferred: Deferred) -> None:
    (entry,) = [entry for entry in read_entries(deferred.store) if read_done(deferred.store, entry.number) is None]
    connection = external_connection()
    assert connection is not None

    async def say() -> None:
        await (await Client.connect(connection.address)).get_workflow_handle(workflow_id(entry.run_id)).signal("look_again")

    asyncio.run(say())


def test_a_collecting_run_that_fails_is_requested_three_times_in_all_and_publishes_by_hand(
    place: Path, open_house: OpenHouse, held: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time under a key of its own, not at once, and never in a loop."""
    write_reviews(place)
    house = open_house()
    deferred = deferred_of(house, place)
    deferred.materialize()
    held.clear()
    deferred.wait_for_end()
    # Where the output shall be, a file is.
    house.output.mkdir()
    (house.output / "summaries").touch()
    keys = []
    for _ in range(sensor.MOST_REQUESTED):
        with monkeypatch.context() as patch:
            patch.setattr(sensor, "AGAIN_AFTER_S", 0.0)
            (request,) = deferred.until_requested()
        keys.append(request.run_key)
        assert not deferred.collect(request).success
        assert deferred.tick().run_requests == [], "not at once"
    assert len(set(keys)) == sensor.MOST_REQUESTED
    monkeypatch.setattr(sensor, "AGAIN_AFTER_S", 0.0)
    told = deferred.tick()
    assert told.run_requests == []
    assert "3 runs that were to publish summaries failed, no further one is requested: materialize it." in told.skip_reason.skip_message
    (house.output / "summaries").unlink()
    assert deferred.materialize().success
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 3
    assert deferred.deferrals == []


def test_a_collecting_run_that_is_under_way_or_was_terminated_is_not_requested_again(
    place: Path, open_house: OpenHouse, held: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor, "AGAIN_AFTER_S", 0.0)
    write_reviews(place)
    house = open_house()
    deferred = deferred_of(house, place)
    deferred.materialize()
    held.clear()
    (request,) = deferred.until_requested()
    job = deferred.defs.resolve_implicit_global_asset_job_def()
    run = house.instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)
    assert deferred.tick().run_requests == []
    house.instance.report_run_canceled(run)
    assert deferred.tick().run_requests == []
    assert deferred.tick().run_requests == []
    assert run.tags[COLLECTS_TAG] == deferred.deferrals[0]


def test_an_asset_that_was_renamed_is_said_and_paid_once_and_its_neighbour_is_collected(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    write_reviews(place)
    house, before = open_house(preflight=False), asked(held)
    both = Deferred(house, define(place, SUMMARIES, TOPICS, wait_for=AT_ONCE), place)
    both.materialize()
    held.clear()
    both.wait_for_end()
    renamed = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE, key_prefix="shop"), place)
    told = renamed.tick()
    assert told.run_requests == []
    assert (
        "This sensor has no summaries, topics: its deferred run is another sensor's, or the asset is gone." in told.skip_reason.skip_message
    )
    assert renamed.materialize().success
    record = house.instance.fetch_materializations(dg.AssetKey(["shop", "summaries"]), limit=1).records[0]
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["claude_batch/succeeded"].value == 3
    assert asked(held) - before == 6, "the answers are the task's, whatever its asset is called"

    left = Deferred(house, define(place, TOPICS, wait_for=AT_ONCE), place)
    (request,) = left.until_requested()
    assert request.asset_selection == [dg.AssetKey("topics")]
    assert left.collect(request).success
    assert house.metadata("topics")[None]["claude_batch/succeeded"] == 3
    assert (left.deferrals, asked(held) - before) == ([], 6)


def test_of_two_code_locations_on_one_root_each_sensor_collects_its_own(place: Path, open_house: OpenHouse, held: RunningSimulator) -> None:
    """And where both have an asset, one run is requested."""
    write_reviews(place)
    house = open_house()
    first = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    second = Deferred(house, define(place, TOPICS, wait_for=AT_ONCE), place)
    first.materialize()
    second.materialize()
    held.clear()
    first.wait_for_end(1)
    first.wait_for_end(2)
    requests = [one.until_requested() for one in (first, second)]
    assert [[key.to_user_string() for key in request.asset_selection or ()] for (request,) in requests] == [["summaries"], ["topics"]]
    twin = build_claude_batch_sensor(first.assets, name="twin")
    (request,) = requests[0]
    job = first.defs.resolve_implicit_global_asset_job_def()
    house.instance.create_run_for_job(job, tags=dict(request.tags), status=dg.DagsterRunStatus.STARTED)
    context = dg.build_sensor_context(instance=house.instance, resources={"claude_batch": house.resources["claude_batch"]})
    told = twin(context)
    assert isinstance(told, dg.SensorResult)
    assert told.run_requests == []
    assert first.collect(request).success
    assert second.collect(requests[1][0]).success
    assert {key for key in ("summaries", "topics") if house.metadata(key)} == {"summaries", "topics"}
    assert first.deferrals == []


def test_after_a_day_without_the_sensor_each_end_is_requested_once(place: Path, open_house: OpenHouse, held: RunningSimulator) -> None:
    write_reviews(place, *DAYS)
    house = open_house()
    deferred = deferred_of(house, place, partitioned=True)
    for day in DAYS:
        assert deferred.materialize(partition_key=day).success
    held.clear()
    for number in range(1, len(DAYS) + 1):
        deferred.wait_for_end(number)
    for name in deferred.deferrals:
        record = read_deferral(deferred.store, name)
        assert record is not None
        long_ago = msgspec.structs.replace(record, deferred_at="2026-11-20T00:00:00+00:00", began_at="2026-11-20T00:00:00+00:00")
        deferred.store.put(f"deferred/{name}.json", msgspec.json.encode(long_ago))
    requests = list(deferred.tick(cursor="0000000009-of-another-day").run_requests or ())
    assert [request.partition_key for request in requests] == list(DAYS)
    assert len({request.run_key for request in requests}) == len(DAYS)
    for request in requests:
        assert deferred.collect(request).success
    assert set(house.metadata("summaries")) == set(DAYS)
    assert deferred.tick().skip_reason.skip_message == "No run is deferred."
