"""A run of more shards than one history may hold: it continues as new with its live batches, and never waits for them to do so."""

from collections import Counter
from collections.abc import Callable

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter

from claude_batch_dagster.core.contract import RunInput, RunState, workflow_id
from tests.stack import Bench, Driver, RunningSimulator, texts

SHARDS = 300
IN_FLIGHT = 60
EVENTS_BEFORE_CONTINUE = 500
EVENTS_A_SHARD, EVENTS_A_RUN = 19, 5


def test_hundreds_of_shards_in_one_run(bench: Bench, start_simulator: Callable[..., RunningSimulator]) -> None:
    """Each is sent once and answered once; each history is short; batches live on from one to the next."""
    simulator = start_simulator(seconds=1.0)
    bench.start_worker(simulator)
    entry = bench.stage(texts(SHARDS), max_requests=1, max_in_flight=IN_FLIGHT)

    async def work(driver: Driver) -> list[WorkflowHistory]:
        report = await driver.result(await driver.start(entry, events_before_continue=EVENTS_BEFORE_CONTINUE))
        assert report.counts.by_outcome == {"succeeded": SHARDS}
        return await chain(driver, workflow_id(entry.run_id))

    histories = bench.run(work)

    assert len(simulator.batches()) == SHARDS
    assert Counter(row["request_key"] for row in bench.responses(entry)).most_common(1)[0][1] == 1
    assert len(bench.responses(entry)) == SHARDS
    lengths = [len(history.events) for history in histories]
    assert sum(lengths) <= EVENTS_A_SHARD * SHARDS + EVENTS_A_RUN
    # What is under way when the limit is reached still ends.
    assert max(lengths) <= EVENTS_BEFORE_CONTINUE + 6 * IN_FLIGHT
    states = [state for history in histories[1:] if (state := handed_on(history)) is not None]
    # How many shards a history takes in before it continues depends on how fast they end: at least two hand over.
    assert len(states) == len(histories) - 1 >= 2
    assert all(state.live for state in states if state.next_shard < SHARDS), [len(state.live) for state in states]


async def chain(driver: Driver, name: str) -> list[WorkflowHistory]:
    """Return the histories of a workflow that continued as new, first to last."""
    histories: list[WorkflowHistory] = []
    at: str | None = None
    while at != "":
        histories.insert(0, await driver.client.get_workflow_handle(name, run_id=at).fetch_history())
        at = histories[0].events[0].workflow_execution_started_event_attributes.continued_execution_run_id
    return histories


def handed_on(history: WorkflowHistory) -> RunState | None:
    """Return the state with which a history begins."""
    begun = history.events[0]
    assert begun.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
    payloads = begun.workflow_execution_started_event_attributes.input.payloads
    (run,) = DataConverter.default.payload_converter.from_payloads(payloads, [RunInput])
    return run.state if isinstance(run, RunInput) else None
