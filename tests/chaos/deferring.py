"""The processes of a deferred round: a Dagster run that does not wait, and the daemon that ticks the sensor and runs what it requests.

`python -m tests.chaos.deferring prepare | ask N [--wait] | watch`, in the round's folder. The daemon does what Dagster's does: a run key
once, the cursor after the requests, and a run whose process is gone has failed (run monitoring, for the runs that collect).
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import psutil
import pyarrow.parquet as pq

from claude_batch_dagster import (
    ClaudeBatchResource,
    Moderate,
    ParquetDataset,
    Summarize,
    build_claude_batch_sensor,
    claude_batch_assets,
    claude_batch_resources,
)
from claude_batch_dagster.resources.deferring import COLLECTS_TAG
from claude_batch_dagster.sensors import deferred as sensors
from claude_batch_dagster.verbs import ended
from tests.stack import MODEL

JOBS_FILE, TICK_FILE, CURSOR_FILE = Path("jobs.json"), Path("tick.json"), Path("cursor")
PID_TAG, RUN_KEY_TAG = "chaos/pid", "dagster/run_key"
TICK_EVERY_S = 1.0
OPEN_ROWS = 3
OPEN_STATUSES = frozenset({"errored", "expired", "canceled", "pending", "refused", "truncated", "invalid"})


class DeferredJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a client materializes."""

    task: str
    source: str
    output: str
    wait_s: float
    per_batch: int
    in_flight: int

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey([self.output, self.name])

    @property
    def name(self) -> str:
        return "summaries" if self.task == "summarize" else "labels"

    def define(self, *, waits: bool = False) -> dg.AssetsDefinition:
        task = (
            Summarize(name=self.name, column="text", model=MODEL)
            if self.task == "summarize"
            else Moderate(name=self.name, column="text", model=MODEL, labels=["ok", "spam", "hate"])
        )

        @claude_batch_assets(
            source=ParquetDataset(path=self.source, key="id"),
            tasks=[task],
            wait_for=None if waits else timedelta(seconds=self.wait_s),
            key_prefix=self.output,
            name=self.output.replace("-", "_"),
        )
        def body(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):  # type: ignore[no-untyped-def]
            yield from claude_batch.run(context)

        return body

    def resources(self) -> dict[str, object]:
        limits = {"max_requests_per_batch": self.per_batch, "max_in_flight_batches": self.in_flight}
        return claude_batch_resources(output=str(Path.cwd()), max_cost_usd=1000, **limits)


def main(words: Sequence[str]) -> int:
    """Do what the words say."""
    jobs = msgspec.json.decode(JOBS_FILE.read_bytes(), type=list[DeferredJob])
    with dg.DagsterInstance.get() as instance:
        match words:
            case ["prepare"]:
                instance.get_runs(limit=1)
            case ["ask", number]:
                return _materialize(instance, jobs[int(number)])
            case ["ask", number, "--wait"]:
                return _materialize(instance, jobs[int(number)], waits=True)
            case ["watch"]:
                _watch(instance, jobs)
    return 0


def _materialize(instance: dg.DagsterInstance, job: DeferredJob, *, waits: bool = False, **options: Any) -> int:
    tags = {PID_TAG: str(os.getpid()), **options.pop("tags", {})}
    result = dg.materialize(
        [job.define(waits=waits)], instance=instance, resources=job.resources(), raise_on_error=False, tags=tags, **options
    )
    if not result.success:
        for event in result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                print(data.user_failure_data.description if data.user_failure_data else data.error, flush=True)
        return 1
    if not waits:
        return 0
    statuses = pq.read_table(Path(job.output, job.name, "part-0.parquet"), columns=["status"])["status"].to_pylist()
    return OPEN_ROWS if OPEN_STATUSES & set(statuses) else 0


def _watch(instance: dg.DagsterInstance, jobs: Sequence[DeferredJob]) -> None:
    ended.LISTED_AFTER_S = 3.0
    sensors.AGAIN_AFTER_S = 3.0
    by_key = {job.key: job for job in reversed(jobs)}
    sensor = build_claude_batch_sensor(*(job.define() for job in by_key.values()))
    resource = jobs[0].resources()["claude_batch"]
    while True:
        _fail_dead_runs(instance)
        cursor = CURSOR_FILE.read_text() if CURSOR_FILE.exists() else None
        context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"claude_batch": resource})
        tick = sensor(context)
        assert isinstance(tick, (dg.SensorResult, dg.SkipReason))
        requests, told = ([], tick.skip_message) if isinstance(tick, dg.SkipReason) else (list(tick.run_requests or ()), None)
        if isinstance(tick, dg.SensorResult):
            told = tick.skip_reason.skip_message if tick.skip_reason else None
        _write(TICK_FILE, json.dumps({"at_s": time.time(), "requests": [request.run_key for request in requests], "told": told}))
        for request in requests:
            _launch(instance, by_key, request)
        if isinstance(tick, dg.SensorResult):
            _write(CURSOR_FILE, tick.cursor or "")
        time.sleep(TICK_EVERY_S)


def _launch(instance: dg.DagsterInstance, by_key: dict[dg.AssetKey, DeferredJob], request: dg.RunRequest) -> None:
    if instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: str(request.run_key)}), limit=1):
        return
    (key,) = request.asset_selection or ()
    print(f"collects {request.run_key}", flush=True)
    code = _materialize(instance, by_key[key], tags={**request.tags, RUN_KEY_TAG: str(request.run_key)}, selection=[key])
    print(f"collected {request.run_key}: {code}", flush=True)


def _fail_dead_runs(instance: dg.DagsterInstance) -> None:
    statuses = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    for run in instance.get_runs(dg.RunsFilter(statuses=statuses)):
        if COLLECTS_TAG in run.tags and not _lives(int(run.tags[PID_TAG])):
            instance.report_run_failed(run, "its process is gone")


def _lives(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def _write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
