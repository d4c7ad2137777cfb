"""Deferred runs on a live daemon: `dagster dev` with its sensors, the embedded Temporal, a backfill, an old day, downstream assets."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.embedded import find_stack
from claude_batch_dagster.storage.deferrals import list_deferrals
from claude_batch_dagster.storage.store import Store
from tests.e2e.conftest import END_S, until
from tests.stack import Process, RunningSimulator, free_port

DEFINITIONS = """
from datetime import timedelta

import dagster as dg
import pandas as pd

from claude_batch_dagster import (
    ClaudeBatchResource,
    ParquetDataset,
    Summarize,
    build_claude_batch_checks,
    build_claude_batch_sensor,
    claude_batch_assets,
    claude_batch_resources,
)

daily = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-08")


@claude_batch_assets(
    source=ParquetDataset(path="reviews", key="review_id", partition_column="day"),
    tasks=[Summarize(name="summaries", column="text", model="claude-haiku-5-5", max_words=10)],
    partitions_def=daily,
    wait_for=timedelta(0),
)
def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    yield from claude_batch.run(context)


@dg.asset(
    partitions_def=daily,
    automation_condition=dg.AutomationCondition.eager().without(dg.AutomationCondition.in_latest_time_window()),
)
def lengths(summaries: pd.DataFrame) -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"rows": len(summaries)})


defs = dg.Definitions(
    assets=[insights, lengths],
    asset_checks=build_claude_batch_checks(insights, min_coverage=1, blocking=True),
    sensors=[
        build_claude_batch_sensor(insights, minimum_interval_seconds=2),
        dg.AutomationConditionSensorDefinition(
            "follow", target=[lengths], default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=2
        ),
    ],
    resources=claude_batch_resources(root="root"),
)
"""
INSTANCE = "telemetry: {enabled: false}\nnux: {enabled: false}\n"
LOCATION = "definitions"
DAYS = [f"2026-11-0{day}" for day in range(1, 8)]
RUNS_END_S = 180.0


@dataclass(kw_only=True)
class Dagster:
    """A running `dagster dev`."""

    popen: "subprocess.Popen[bytes]"
    folder: Path
    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", data=body, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            told = json.load(reply)
        assert "errors" not in told, told
        return told["data"]

    def launch(self, **tags: str) -> str:
        """Materialize the summaries, as the UI does."""
        told = self.ask(
            "mutation($params: ExecutionParams!) {launchRun(executionParams: $params) {__typename ... on LaunchRunSuccess {run {runId}}}}",
            params={
                "selector": {
                    "repositoryLocationName": LOCATION,
                    "repositoryName": "__repository__",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": ["summaries"]}],
                },
                "mode": "default",
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
            },
        )
        return str(told["launchRun"]["run"]["runId"])

    def backfill(self, *days: str) -> str:
        told = self.ask(
            "mutation($params: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $params) {__typename "
            "... on LaunchBackfillSuccess {backfillId}}}",
            params={"assetSelection": [{"path": ["summaries"]}], "partitionNames": list(days)},
        )
        return str(told["launchPartitionBackfill"]["backfillId"])

    def backfill_status(self, backfill: str) -> str:
        told = self.ask("query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {status}}}", id=backfill)
        return str(told["partitionBackfillOrError"]["status"])

    def runs(self) -> list[dict[str, Any]]:
        told = self.ask("{runsOrError {... on Runs {results {runId status assetSelection {path} tags {key value}}}}}")
        found = told["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def status(self, run: str) -> str:
        return next(str(one["status"]) for one in self.runs() if one["runId"] == run)

    def await_success(self, run: str) -> None:
        ended = until(lambda: status if (status := self.status(run)) in ("SUCCESS", "FAILURE", "CANCELED") else None, RUNS_END_S)
        assert ended == "SUCCESS", self.log()

    def materialized(self, asset: str) -> set[str]:
        told = self.ask(
            "query($key: AssetKeyInput!) {assetOrError(assetKey: $key) {... on Asset {assetMaterializations(limit: 100) {partition}}}}",
            key={"path": [asset]},
        )
        return {one["partition"] for one in told["assetOrError"].get("assetMaterializations") or ()}

    def checked_by(self, asset: str, check: str) -> list[str]:
        """The runs that evaluated a check."""
        told = self.ask(
            "query($key: AssetKeyInput!, $name: String!) {assetCheckExecutions(assetKey: $key, checkName: $name, limit: 100) {runId status}}",
            key={"path": [asset]},
            name=check,
        )
        return [str(one["runId"]) for one in told["assetCheckExecutions"] if one["status"] == "SUCCEEDED"]

    def ticks(self, sensor: str) -> int:
        told = self.ask(
            "query($selector: SensorSelector!) {sensorOrError(sensorSelector: $selector) {... on Sensor {sensorState {ticks(limit: 3) {status}}}}}",
            selector={"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "sensorName": sensor},
        )
        return len(told["sensorOrError"]["sensorState"]["ticks"])

    def log(self) -> str:
        return (self.folder / "dev.log").read_text(errors="replace")[-6000:]

    @property
    def root(self) -> str:
        return str(self.folder / "root" / "simulated")

    @property
    def simulator(self) -> RunningSimulator:
        stack = until(lambda: find_stack(self.root))
        assert stack.simulator_url is not None
        return RunningSimulator(url=stack.simulator_url, process=Process(popen=self.popen))

    @property
    def deferrals(self) -> list[str]:
        return list_deferrals(Store(self.root))


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[Dagster]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(INSTANCE)
    (tmp_path / f"{LOCATION}.py").write_text(DEFINITIONS)
    for day in DAYS:
        file = tmp_path / "reviews" / f"day={day}" / "part-0.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"review_id": [1, 2], "text": [f"{day}: the tent leaks.", f"{day}: the tent is dry."]}), file)
    port = free_port()
    with (tmp_path / "dev.log").open("wb") as log:
        popen = subprocess.Popen(
            [Path(sys.executable).with_name("dagster"), "dev", "-m", LOCATION, "-d", str(tmp_path), "-h", "127.0.0.1", "-p", str(port)],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(home), "CLAUDE_BATCH_SIMULATE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = Dagster(popen=popen, folder=tmp_path, url=f"http://127.0.0.1:{port}")

    def is_up() -> bool:
        assert popen.poll() is None, running.log()
        try:
            return running.ticks("follow") > 0 and running.ticks("claude_batch_sensor") > 0
        except (OSError, KeyError):
            return False

    try:
        until(is_up, 150)
        yield running
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait(END_S)
        # A run that is open keeps it up.
        stop = [Path(sys.executable).with_name("claude-batch"), "stop", "--root", str(tmp_path / "root"), "--simulate"]
        subprocess.run(stop, check=False, capture_output=True)


@pytest.mark.timeout(900)
def test_old_days_are_deferred_collected_and_followed_and_a_backfill_waits(dagster: Dagster) -> None:
    """Nobody holds a run: a range of old days is published by the run that the sensor requests, and what is downstream follows it."""
    first = dagster.launch(**{"dagster/asset_partition_range_start": DAYS[1], "dagster/asset_partition_range_end": DAYS[2]})
    dagster.await_success(first)
    collecting = until(lambda: next((run for run in dagster.runs() if "claude_batch/collects" in run["tags"]), None), RUNS_END_S)
    assert collecting["tags"]["claude_batch/deferred_by"] == first
    dagster.await_success(collecting["runId"])
    assert dagster.materialized("summaries") == {DAYS[1], DAYS[2]}
    assert dagster.deferrals == []
    assert dagster.checked_by("summaries", "coverage") == [collecting["runId"]], (
        "the request has the assets' checks, the deferred run skipped them"
    )
    until(lambda: dagster.materialized("lengths") == {DAYS[1], DAYS[2]}, RUNS_END_S)

    # A day that is deferred while a backfill wants it too.
    deferred = dagster.launch(**{"dagster/partition": DAYS[3]})
    until(lambda: find_stack(dagster.root) is not None or None)
    dagster.simulator.switch_on("hold")
    dagster.await_success(deferred)
    assert find_stack(dagster.root) is not None, "nobody is attached, and the run goes on"
    assert DAYS[3] not in dagster.materialized("summaries")
    backfill = dagster.backfill(DAYS[3], DAYS[4])
    until(
        lambda: [run for run in dagster.runs() if run["tags"].get("dagster/backfill") == backfill and run["status"] == "STARTED"],
        RUNS_END_S,
    )
    dagster.simulator.clear()
    ended = until(
        lambda: status if (status := dagster.backfill_status(backfill)).startswith(("COMPLETED", "FAIL", "CANCEL")) else None, RUNS_END_S
    )
    assert ended == "COMPLETED_SUCCESS", dagster.log()
    assert {DAYS[3], DAYS[4]} <= dagster.materialized("summaries")
    until(lambda: dagster.deferrals == [])
    until(lambda: {DAYS[3], DAYS[4]} <= dagster.materialized("lengths"), RUNS_END_S)
    assert {run["status"] for run in dagster.runs()} <= {"SUCCESS", "QUEUED", "STARTING", "STARTED"}
