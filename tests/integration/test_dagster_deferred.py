"""Runs that do not wait: deferred, seen to their end by the sensor, collected. A real instance, Temporal, worker and simulator."""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import dagster as dg
import msgspec
import pyarrow.parquet as pq
import pytest
from temporalio.client import Client
from temporalio.service import _BridgeServiceClient

from claude_batch_dagster import build_claude_batch_sensor
from claude_batch_dagster.core.contract import WORKFLOW_TYPE, RunInput, workflow_id
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.records import AwaitedRun, DeferralRecord, DoneRecord
from claude_batch_dagster.storage.deferrals import digest_deferral, list_deferrals, name_deferral, read_deferral
from claude_batch_dagster.storage.plans import read_done, read_entries, write_done
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs import ended
from claude_batch_dagster.verbs.connection import external_connection
from claude_batch_dagster.verbs.run import cancel_run
from tests.dagster_house import (
    DAYS,
    RANGE,
    SUMMARIES,
    TOPICS,
    House,
    OpenHouse,
    asked,
    config,
    define,
    failure_metadata,
    failure_of,
    info_lines,
    write_reviews,
)
from tests.stack import Bench, RunningSimulator

T = TypeVar("T")

AT_ONCE = timedelta(0)
END_S = 60.0


def until(look: Callable[[], T], timeout_s: float = END_S) -> T:
    """Look until there is something, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing within {timeout_s} s"
        time.sleep(0.2)
    return found


@pytest.fixture
def held(simulator: RunningSimulator) -> Iterator[RunningSimulator]:
    """A vendor whose batches end once they are let go."""
    simulator.switch_on("hold")
    yield simulator
    simulator.clear()


class Deferred:
    """Assets that are deferred, and their sensor."""

    def __init__(self, house: House, assets: dg.AssetsDefinition, place: Path) -> None:
        self.house, self.assets = house, assets
        self.sensor = build_claude_batch_sensor(assets)
        self.store = Store(str(place / "root" / "simulated"))
        self.defs = dg.Definitions(assets=[assets], sensors=[self.sensor], resources=house.resources)

    def materialize(self, **options: Any) -> dg.ExecuteInProcessResult:
        return self.house.materialize(self.assets, **options)

    def tick(self, cursor: str | None = None) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=self.house.instance,
            cursor=cursor,
            definitions=self.defs,
            resources={"claude_batch": self.house.resources["claude_batch"]},
        )
        found = self.sensor(context)
        assert isinstance(found, (dg.SensorResult, dg.SkipReason))
        return found if isinstance(found, dg.SensorResult) else dg.SensorResult(skip_reason=found)

    def until_requested(self) -> list[dg.RunRequest]:
        return until(lambda: list(self.tick().run_requests or ()))

    def collect(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run a request as the daemon would."""
        return self.materialize(
            selection=request.asset_selection,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=dict(request.run_config),
        )

    @property
    def deferrals(self) -> list[str]:
        return list_deferrals(self.store)

    def wait_for_end(self, number: int = 1) -> None:
        until(lambda: read_done(self.store, number))


def events(result: dg.ExecuteInProcessResult, kind: str) -> list[Any]:
    return [event for event in result.all_events if event.event_type_value == kind]


def batches(simulator: RunningSimulator) -> int:
    return len(simulator.batches())


def test_a_deferred_run_ends_well_and_the_sensor_requests_the_run_that_publishes(
    place: Path, open_house: OpenHouse, held: RunningSimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    """One batch, no materialization until it is over, then metadata as if one run had waited."""
    write_reviews(place)
    house, before = open_house(), asked(held)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    result = deferred.materialize()
    assert result.success
    assert events(result, "ASSET_MATERIALIZATION") == []
    (observation,) = events(result, "ASSET_OBSERVATION")
    metadata = {key: value.value for key, value in observation.event_specific_data.asset_observation.metadata.items()}
    assert metadata["claude_batch/run"] == "batch run r1"
    assert metadata["claude_batch/workflow"].startswith("http://temporal.example/namespaces/default/workflows/claude-batch")
    assert 0 < metadata["claude_batch/expected_usd"] < metadata["claude_batch/worst_usd"]
    last, dagsters = info_lines(capfd.readouterr().err)[-2:]
    assert dagsters.startswith("op 'insights' did not yield")
    assert last.startswith("Deferred: batch run r1 goes on without this run")
    assert last.endswith("materialize the same assets and partitions again, which publishes and asks nothing twice.")

    waiting = deferred.tick()
    assert (waiting.run_requests, waiting.skip_reason.skip_message) == ([], "1 deferred run waits for its batches.")
    status = [Path(sys.executable).with_name("claude-batch"), "status", "r1", "--root", str(place / "root"), "--simulate"]
    told = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    assert f"Deferred  by Dagster run {result.run_id}" in told
    held.clear()
    (request,) = deferred.until_requested()
    collected = deferred.collect(request)
    assert collected.success
    assert [event.event_specific_data.passed for event in events(collected, "ASSET_CHECK_EVALUATION")] == [True]
    metadata = house.metadata("summaries")[None]
    assert (metadata["claude_batch/requests"], metadata["claude_batch/batches"]) == (3, 1)
    assert metadata["claude_batch/cost_usd"] > 0
    assert metadata["claude_batch/run"] == "batch run r1"
    assert asked(held) - before == 3
    assert deferred.tick().skip_reason.skip_message == "No run is deferred."


def test_a_run_that_was_collected_meanwhile_has_nothing_to_do_and_one_executed_again_publishes(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    deferred.materialize()
    held.clear()
    (request,) = deferred.until_requested()
    # By hand, before the requested run begins.
    assert deferred.materialize().success
    assert deferred.deferrals == []
    late = deferred.collect(request)
    assert late.success
    assert events(late, "ASSET_MATERIALIZATION") == []
    again = deferred.materialize(tags={**request.tags, "dagster/parent_run_id": late.run_id, "dagster/root_run_id": late.run_id})
    assert len(events(again, "ASSET_MATERIALIZATION")) == 1


def test_rows_that_failed_are_published_as_they_are_and_not_asked_at_once_again(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    """Else it would be deferred for ever."""
    write_reviews(place)
    house = open_house(max_attempts=1)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    before = batches(held)
    held.switch_on("expire", "all")
    deferred.materialize()
    until(lambda: batches(held) > before)
    held.clear()
    (request,) = deferred.until_requested()
    before = batches(held)
    assert deferred.collect(request).success
    assert batches(held) == before
    metadata = house.metadata("summaries")[None]
    assert metadata["claude_batch/succeeded"] == 0
    assert metadata["claude_batch/expired"] == 3


def test_the_run_of_a_failed_batch_run_fails_with_its_reason_and_the_next_one_begins_anew(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reviews(place)
    house = open_house(preflight=False)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    simulator.switch_on("401-from", 0)
    monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", bench.task_queue)
    deferred.materialize()
    bench.start_worker(simulator)
    (request,) = deferred.until_requested()
    description = failure_of(deferred.collect(request))
    assert "Batch run r1 failed: " in description
    assert deferred.deferrals == []
    assert deferred.tick().run_requests in (None, [])
    simulator.clear()
    assert house.materialize(define(place, SUMMARIES)).success
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 3


def test_who_materializes_by_hand_after_a_failed_batch_run_is_told_and_begins_anew(
    place: Path,
    open_house: OpenHouse,
    simulator: RunningSimulator,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_reviews(place)
    house = open_house(preflight=False)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    simulator.switch_on("401-from", 0)
    monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", bench.task_queue)
    deferred.materialize()
    bench.start_worker(simulator)
    deferred.wait_for_end()
    simulator.clear()
    assert house.materialize(define(place, SUMMARIES)).success
    assert "An earlier run was deferred, and its batch run failed (r1, " in capfd.readouterr().err
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 3
    assert deferred.deferrals == []


def test_what_a_canceled_run_was_not_answered_is_published_as_canceled(place: Path, open_house: OpenHouse, held: RunningSimulator) -> None:
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    result = deferred.materialize()
    connection = external_connection()
    assert connection is not None
    done = cancel_run(deferred.store.uri, "r1", connection, 60)
    assert done is not None
    assert done.outcome == "canceled"
    (request,) = deferred.until_requested()
    assert deferred.collect(request).success
    metadata = house.metadata("summaries")[None]
    # What the vendor had answered when it was told is kept.
    assert {status: metadata[f"claude_batch/{status}"] for status in done.rows} == done.rows
    assert sum(done.rows.values()) == 3
    assert events(result, "ASSET_MATERIALIZATION") == []


def test_a_run_that_was_terminated_by_hand_is_settled_by_who_collects(
    place: Path, open_house: OpenHouse, held: RunningSimulator, temporal_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    deferred.materialize()
    (entry,) = read_entries(deferred.store)
    until(lambda: batches(held))

    async def terminate() -> None:
        await (await Client.connect(temporal_server)).get_workflow_handle(workflow_id(entry.run_id)).terminate()

    asyncio.run(terminate())
    assert deferred.tick().run_requests == [], "Temporal's list may lag behind"
    monkeypatch.setattr(ended, "LISTED_AFTER_S", 0)
    # The run that deferred is this process, which lives on; elsewhere it has ended.
    gone = subprocess.Popen(["true"])
    gone.wait()
    ended_owner = msgspec.structs.replace(entry, owner=msgspec.structs.replace(entry.owner, pid=gone.pid))
    deferred.store.put("log/1.json", msgspec.json.encode(ended_owner))
    (request,) = deferred.until_requested()
    # It settles what is open and then leaves it alone again, for what lives at the vendor may take a day.
    again = deferred.collect(request)
    assert again.success
    held.clear()
    deferred.wait_for_end()
    requests = deferred.until_requested()
    assert [one.run_key != request.run_key for one in requests] == [True]
    assert deferred.collect(requests[0]).success
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 3


def test_an_open_question_requests_one_run_that_fails_with_it_and_the_answered_run_is_collected(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house(preflight=False)
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    simulator.switch_on("spend-limit", "all")
    deferred.materialize()
    (request,) = deferred.until_requested()
    assert [one.run_key for one in deferred.tick().run_requests or ()] == [request.run_key], "the same question, the same key"
    failed = deferred.collect(request)
    description = failure_of(failed)
    assert "Batch run r1 waits for an answer: " in description
    assert f"claude-batch answer r1 resume --root {place / 'root'} --simulate" in description
    assert "resume" in failure_metadata(failed)["claude_batch/question"].value
    assert len(deferred.deferrals) == 1
    simulator.clear()
    simulator.switch_on("hold")
    answer(deferred)
    until(lambda: deferred.tick().run_requests == [])
    simulator.clear()
    deferred.wait_for_end()
    (collecting,) = deferred.until_requested()
    assert collecting.run_key != request.run_key
    assert deferred.collect(collecting).success
    assert house.metadata("summaries")[None]["claude_batch/succeeded"] == 3


def answer(deferred: Deferred) -> None:
    (entry,) = read_entries(deferred.store)
    connection = external_connection()
    assert connection is not None

    async def say() -> None:
        await (await Client.connect(connection.address)).get_workflow_handle(workflow_id(entry.run_id)).signal("look_again")

    asyncio.run(say())


def test_where_nothing_is_to_be_waited_for_it_publishes_at_once(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    house = open_house()
    assert house.materialize(define(place, SUMMARIES)).success
    result = house.materialize(define(place, SUMMARIES, wait_for=AT_ONCE))
    assert len(events(result, "ASSET_MATERIALIZATION")) == 1


def test_a_run_that_is_over_within_its_patience_publishes_and_one_that_is_not_is_deferred(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house()
    patient = define(place, SUMMARIES, wait_for=timedelta(minutes=5))
    assert len(events(house.materialize(patient), "ASSET_MATERIALIZATION")) == 1
    simulator.switch_on("hold")
    short = Deferred(house, define(place, TOPICS, wait_for=timedelta(seconds=1)), place)
    result = short.materialize()
    assert result.success
    assert events(result, "ASSET_MATERIALIZATION") == []
    assert len(short.deferrals) == 1


def test_a_backfill_waits_and_makes_the_deferred_days_needless(place: Path, open_house: OpenHouse, held: RunningSimulator) -> None:
    """A backfill takes a run without materializations for failed; what it published is not collected again."""
    write_reviews(place, *DAYS)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, partitioned=True, wait_for=AT_ONCE), place)
    for day in DAYS[:2]:
        assert deferred.materialize(partition_key=day).success
    assert len(deferred.deferrals) == 2
    held.clear()
    result = deferred.materialize(tags={**RANGE, "dagster/backfill": "some-backfill"})
    assert result.success
    assert set(house.metadata("summaries")) == set(DAYS)
    assert deferred.deferrals == []


def test_a_range_is_collected_as_a_range(place: Path, open_house: OpenHouse, held: RunningSimulator) -> None:
    write_reviews(place, *DAYS)
    house = open_house()
    deferred = Deferred(house, define(place, partitioned=True, wait_for=AT_ONCE), place)
    result = deferred.materialize(tags=RANGE, run_config=config(limit=8))
    observed = [event.event_specific_data.asset_observation for event in events(result, "ASSET_OBSERVATION")]
    assert {(one.asset_key.to_user_string(), one.partition) for one in observed} == {
        (name, day) for name in ("summaries", "labels") for day in DAYS
    }
    held.clear()
    (request,) = deferred.until_requested()
    assert {key: request.tags[key] for key in RANGE} == RANGE
    assert request.run_config["ops"]["insights"]["config"]["limit"] == 8
    # The record says how many rows, whatever the run config is.
    assert deferred.materialize(selection=request.asset_selection, tags=dict(request.tags)).success
    assert {day: one["dagster/partition_row_count"] for day, one in house.metadata("labels").items()} == {DAYS[0]: 4, DAYS[1]: 4}
    assert deferred.deferrals == []


@pytest.mark.parametrize("choices", [{}, {"retry_failed": True}], ids=["gone_on_with", "asked_again_on_purpose"])
def test_of_one_days_assets_that_were_deferred_twice_one_run_is_requested(
    place: Path, open_house: OpenHouse, held: RunningSimulator, choices: dict[str, Any]
) -> None:
    """The second one waits for the first one's run, and what the source got meanwhile is its own."""
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    deferred.materialize()
    write_reviews(place, rows=6)
    deferred.materialize(run_config=config(**choices))
    (name,) = deferred.deferrals
    record = read_deferral(deferred.store, name)
    assert record is not None
    assert [(run.label, run.own) for run in record.runs] == [("r1", True), ("r2", True)]
    held.clear()
    deferred.wait_for_end(1)
    deferred.wait_for_end(2)
    (request,) = deferred.until_requested()
    assert deferred.collect(request).success
    metadata = house.metadata("summaries")[None]
    assert (metadata["claude_batch/succeeded"], metadata["claude_batch/batches"]) == (5, 2)
    assert deferred.deferrals == []


def test_what_the_source_got_meanwhile_is_asked_and_deferred_again_but_not_for_ever(
    place: Path, open_house: OpenHouse, held: RunningSimulator
) -> None:
    """A source that changes all the time is published in the end, its newest rows pending."""
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, wait_for=AT_ONCE), place)
    deferred.materialize()
    keys = set()
    for times in range(1, 5):
        held.clear()
        (request,) = deferred.until_requested()
        held.switch_on("hold")
        keys.add(request.run_key)
        write_reviews(place, rows=4 + times)
        result = deferred.collect(request)
        assert result.success
        if events(result, "ASSET_MATERIALIZATION"):
            break
    assert len(keys) == 4, "each time under another key"
    metadata = house.metadata("summaries")[None]
    assert metadata["dagster/row_count"] == 8
    assert (metadata["claude_batch/succeeded"], metadata["claude_batch/pending"]) == (6, 1)
    assert pq.read_table(house.output / "summaries").num_rows == 8


@pytest.mark.usefixtures("held")
def test_the_log_says_that_what_is_downstream_is_skipped(place: Path, open_house: OpenHouse, capfd: pytest.CaptureFixture[str]) -> None:
    write_reviews(place)

    @dg.asset(deps=["summaries"])
    def downstream() -> None: ...

    result = open_house().materialize(define(place, SUMMARIES, wait_for=AT_ONCE), downstream)
    assert result.success
    assert [event.node_name for event in events(result, "STEP_SKIPPED")] == ["downstream"]
    (line,) = [line for line in info_lines(capfd.readouterr().err) if line.startswith("Deferred: ")]
    assert line.endswith("are skipped, and the collecting run is without them: let them follow by an automation condition.")


def test_deferred_runs_of_other_assets_are_named_and_not_waited_for(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    """The sensor was built before loading prefixed the keys: what it leaves must not read as if it waited."""
    write_reviews(place)
    house = open_house()
    assets = define(place, SUMMARIES, wait_for=AT_ONCE)
    stranger = Deferred(house, assets, place)
    module = ModuleType("module")
    module.assets = assets  # type: ignore[attr-defined]
    (prefixed,) = dg.load_assets_from_modules([module], key_prefix="pre")
    assert isinstance(prefixed, dg.AssetsDefinition)
    simulator.switch_on("hold")
    assert house.materialize(prefixed).success
    assert reason_of(stranger.tick()) == "1 deferred run waits for its batches."
    simulator.clear()
    stranger.wait_for_end()
    assert reason_of(stranger.tick()) == (
        "This sensor has no pre/summaries: its deferred run is another sensor's, or the asset is gone. Where loading prefixed its key, give "
        "build_claude_batch_sensor what loading returned."
    )
    (request,) = Deferred(house, prefixed, place).until_requested()
    assert request.asset_selection == [dg.AssetKey(["pre", "summaries"])]


def reason_of(result: dg.SensorResult) -> str:
    assert not result.run_requests
    return str(result.skip_reason.skip_message) if isinstance(result.skip_reason, dg.SkipReason) else str(result.skip_reason)


def test_what_a_sensor_cannot_collect_is_refused(tmp_path: Path) -> None:
    assets = define(tmp_path, SUMMARIES, wait_for=AT_ONCE)
    assert build_claude_batch_sensor([assets]).metadata == build_claude_batch_sensor(assets).metadata

    @dg.asset
    def other() -> None: ...

    for stranger in (other, dg.AssetKey("summaries"), [assets, "summaries"]):
        with pytest.raises(UsageError, match=r"build_claude_batch_sensor was given .*, which is no asset of @claude_batch_assets"):
            build_claude_batch_sensor(stranger)  # type: ignore[arg-type]


def test_hundreds_of_deferred_runs_cost_a_tick_a_few_calls_whatever_their_number(
    place: Path, open_house: OpenHouse, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One list of deferrals, one of ends, one of workflows; 100 records where something can be done, the next tick goes on behind them."""
    write_reviews(place)
    house = open_house()
    deferred = Deferred(house, define(place, SUMMARIES, partitioned=True, wait_for=AT_ONCE), place)
    monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", bench.task_queue)
    monkeypatch.setattr(ended, "LISTED_AFTER_S", 0)
    many = 300
    start_many(deferred, bench, many)
    calls = count_calls(monkeypatch)

    until(lambda: deferred.tick().run_requests == [])
    calls.clear()
    assert deferred.tick().skip_reason.skip_message == "300 deferred runs wait for their batches."
    assert calls == {"list:deferred": 1, "list:done": 1, "list_workflow_executions": 1}

    monkeypatch.setattr(ended, "PAGE_SIZE", 100)
    calls.clear()
    deferred.tick()
    assert calls["list_workflow_executions"] == 4, "three full pages, and the end"
    monkeypatch.setattr(ended, "PAGE_SIZE", 1_000)

    for number in range(1, 251):
        done = DoneRecord(run_id=f"run-{number}", finished_at="", outcome="finished", rows={}, batches=0, usage=(), cost_nano_usd=0)
        write_done(deferred.store, number, done)
    requested: list[str | None] = []
    cursor = None
    for reads in (100, 100, 100):
        calls.clear()
        tick = deferred.tick(cursor)
        cursor = tick.cursor
        requested += [request.partition_key for request in tick.run_requests or ()]
        assert calls == {"list:deferred": 1, "list:done": 1, "list_workflow_executions": 1, "get:deferred": reads}
    assert set(requested) == {f"day-{number}" for number in range(1, 251)}, "after the end it begins anew"
    assert len(requested) == 300


def start_many(deferred: Deferred, bench: Bench, many: int) -> None:
    """Deferrals of a day each, whose workflows no worker takes up."""

    async def start() -> None:
        client = await Client.connect(bench.address)

        async def start_one(number: int) -> None:
            await client.start_workflow(
                WORKFLOW_TYPE,
                RunInput(root=deferred.store.uri, number=number, run_id=f"{bench.task_queue}-{number}"),
                id=f"{bench.task_queue}-{number}",
                task_queue=bench.task_queue,
                memo={"root": deferred.store.uri, "number": number},
            )

        for first in range(1, many + 1, 50):
            await asyncio.gather(*(start_one(number) for number in range(first, first + 50)))

    asyncio.run(start())
    for number in range(1, many + 1):
        record = DeferralRecord(
            deferred_at="2026-11-23T00:00:00+00:00",
            began_at="2026-11-23T00:00:00+00:00",
            dagster_run_id=f"dagster-{number}",
            assets=(("summaries",),),
            partitions=(f"day-{number}",),
            runs=(AwaitedRun(number=number, run_id=f"run-{number}", own=True),),
            planned=(),
        )
        digest = digest_deferral(record.assets, record.partitions, None)
        deferred.store.put(f"deferred/{name_deferral(number, digest)}.json", msgspec.json.encode(record))


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what goes to the store, by the points that each call passes, and what goes to Temporal."""
    calls: Counter[str] = Counter()
    rpc = _BridgeServiceClient._rpc_call

    def reach(point: str) -> None:
        name, _, when = point.partition(".")
        if when == "before":
            calls[name] += 1

    async def count_rpc(self: Any, **named: Any) -> Any:
        calls[named["rpc"]] += 1
        return await rpc(self, **named)

    monkeypatch.setattr("claude_batch_dagster.storage.store.reach", reach)
    monkeypatch.setattr(_BridgeServiceClient, "_rpc_call", count_rpc)
    return calls
