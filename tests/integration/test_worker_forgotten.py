"""A batch that the vendor does not find any more: looked for during ten minutes, by a key of the right workspace, before its rows are let go.

The activities are the worker's own, over the real simulator; only the times of their attempts are a test's.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from claude_batch_dagster.core.contract import BatchInput, Counts, ShardInput
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.storage.plans import pin_workspace
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import price_usage
from temporal_worker.activities import FORGOTTEN_AFTER_S, NOT_FOUND_SINCE, BatchActivities
from temporal_worker.batches import Batches
from temporal_worker.collect import Collector
from temporal_worker.preflight import Preflights
from temporal_worker.runs import Runs
from temporal_worker.submit import Submitter
from tests.stack import Bench, RunningSimulator, kind_of, texts

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Attempts:
    """Attempts of one activity, each told what the one before it beat last."""

    def __init__(self, activities: BatchActivities) -> None:
        self.activities = activities
        self.told: Sequence[Any] = ()

    def see_through(self, batch: BatchInput, after_s: float) -> Counts | ApplicationError:
        environment = ActivityEnvironment()
        environment.info = replace(
            environment.info, started_time=NOON + timedelta(seconds=after_s), heartbeat_details=cast(Any, list(self.told))
        )
        beats: list[Sequence[Any]] = []
        environment.on_heartbeat = lambda *details: beats.append(details)
        try:
            return cast(Counts, environment.run(self.activities.see_through, batch))
        except ApplicationError as error:
            return error
        finally:
            self.told = beats[-1] if beats else self.told


@pytest.fixture
def simulator(start_simulator: Callable[..., RunningSimulator]) -> RunningSimulator:
    return start_simulator(seconds=0.1)


@pytest.fixture
def entry(bench: Bench) -> LogEntry:
    return bench.stage(texts(3))


@pytest.fixture
def activities(simulator: RunningSimulator) -> Iterator[BatchActivities]:
    batches = Batches("any", simulator.url)
    preflights = Preflights(batches=batches, price_usage=price_usage, clock=lambda: NOON)
    yield BatchActivities(
        runs=Runs(open_store=Store, batches=batches, price_usage=price_usage, preflights=preflights, clock=lambda: NOON),
        submitter=Submitter(open_store=Store, batches=batches, clock=lambda: NOON, boot_s=time.monotonic, send_s=15, settle_s=60),
        settler=cast(Any, None),
        collector=Collector(open_store=Store, batches=batches, price_usage=price_usage),
        batches=batches,
        examiner=cast(Any, None),
        poll_s=0.2,
        is_called_off=lambda: False,
    )
    batches.close()


@pytest.fixture
def batch(bench: Bench, entry: LogEntry, activities: BatchActivities) -> BatchInput:
    """A batch that was sent, and not collected."""
    shard = ShardInput(root=bench.store.uri, number=entry.number, run_id=entry.run_id, round=1, shard=0)
    submitted = ActivityEnvironment().run(activities.submit, shard)
    assert submitted.batch_id is not None
    return BatchInput(root=bench.store.uri, number=entry.number, run_id=entry.run_id, round=1, shard=0, batch_id=submitted.batch_id)


def call(simulator: RunningSimulator, method: str, batch: BatchInput) -> Any:
    headers = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{simulator.url}/v1/messages/batches/{batch.batch_id}", headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.loads(reply.read())


def delete(simulator: RunningSimulator, batch: BatchInput) -> None:
    """Delete a batch at the vendor, as somebody may in the Console."""
    while call(simulator, "GET", batch)["processing_status"] != "ended":
        time.sleep(0.05)
    call(simulator, "DELETE", batch)


def test_ten_minutes_of_not_found_let_the_rows_go(
    bench: Bench, simulator: RunningSimulator, entry: LogEntry, activities: BatchActivities, batch: BatchInput
) -> None:
    """Not a second earlier, and however many attempts there are: the first of them hands its time on."""
    delete(simulator, batch)
    attempts = Attempts(activities)

    for after_s in (0, 60, FORGOTTEN_AFTER_S - 1):
        told = attempts.see_through(batch, after_s)
        assert isinstance(told, ApplicationError)
        assert (told.type, told.non_retryable) == ("VendorUnavailableError", False)
        assert "Check that the worker's key belongs to the workspace of this root." in str(told)
        assert attempts.told == (f"{NOT_FOUND_SINCE}{NOON.isoformat()}",)
        assert [kind_of(record) for record in bench.records(entry)[1, 0]] == ["send", "batch"]
    counts = attempts.see_through(batch, FORGOTTEN_AFTER_S)

    assert isinstance(counts, Counts)
    assert sum(counts.by_outcome.values()) == 3
    assert "succeeded" not in counts.by_outcome
    assert [kind_of(record) for record in bench.records(entry)[1, 0]] == ["send", "batch", "closed:collected"]
    assert len(simulator.batches()) == 1


def test_a_batch_that_was_seen_again_is_looked_for_anew(
    simulator: RunningSimulator, activities: BatchActivities, batch: BatchInput
) -> None:
    """Only what was not found all the time counts."""
    attempts = Attempts(activities)
    attempts.told = (f"{NOT_FOUND_SINCE}{NOON.isoformat()}",)
    simulator.switch_on("hold")
    seen = attempts.see_through(batch, FORGOTTEN_AFTER_S)
    assert isinstance(seen, ApplicationError | Counts)
    if isinstance(seen, Counts):
        pytest.fail("the batch had ended before it was held")
    assert seen.type == "BatchInProgress"
    simulator.clear()
    delete(simulator, batch)

    told = attempts.see_through(batch, 10 * FORGOTTEN_AFTER_S)

    assert isinstance(told, ApplicationError)
    assert told.type == "VendorUnavailableError"
    assert attempts.told == (f"{NOT_FOUND_SINCE}{(NOON + timedelta(seconds=10 * FORGOTTEN_AFTER_S)).isoformat()}",)


def test_answers_that_were_stored_stay_though_the_batch_is_gone(
    bench: Bench, simulator: RunningSimulator, entry: LogEntry, activities: BatchActivities, batch: BatchInput
) -> None:
    """Whoever collected it died before the shard was closed; what is paid for is not written over."""
    while call(simulator, "GET", batch)["processing_status"] != "ended":
        time.sleep(0.05)
    attempts = Attempts(activities)
    assert isinstance(attempts.see_through(batch, 0), Counts)
    bench.store.delete(f"submissions/{entry.run_id}/1-0/2.json")
    stored = bench.responses(entry)
    delete(simulator, batch)

    attempts.see_through(batch, 0)
    counts = attempts.see_through(batch, FORGOTTEN_AFTER_S)

    assert isinstance(counts, Counts)
    assert counts.by_outcome == {"succeeded": 3}
    assert bench.responses(entry) == stored
    assert [kind_of(record) for record in bench.records(entry)[1, 0]] == ["send", "batch", "closed:collected"]


def test_a_key_of_another_workspace_finds_nothing_for_ever_and_lets_nothing_go(
    bench: Bench, simulator: RunningSimulator, entry: LogEntry, activities: BatchActivities, batch: BatchInput
) -> None:
    delete(simulator, batch)
    bench.store.delete("workspace.json")
    pin_workspace(bench.store, "wrkspc_other")
    attempts = Attempts(activities)
    for after_s in (0, 100 * FORGOTTEN_AFTER_S):
        told = attempts.see_through(batch, after_s)
        assert isinstance(told, ApplicationError)
        assert "wrkspc_other" in str(told)
    assert [kind_of(record) for record in bench.records(entry)[1, 0]] == ["send", "batch"]
