"""Before a run's first batch: what its models can, and one try of each new task on a sample text."""

import asyncio
import urllib.request
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.records import LogEntry, PreflightRecord, PreflightRef, TaskRef
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.core.task import ClaudeTask
from tests.stack import MODEL, SUMMARIZE, Bench, Driver, RunningSimulator, texts, until

StartSimulator = Callable[..., RunningSimulator]
SAMPLE = "A sample text of our own: the lamp is bright, its switch broke on the third day, and the shop sent a new one."
LABELS = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"], "additionalProperties": False}


def plain(name: str = "words", **options: Any) -> ClaudeTask:
    return ClaudeTask(**{"name": name, "model": MODEL, "prompt": "{text}", "max_tokens": 200, "thinking": {"type": "disabled"}, **options})


def stage(bench: Bench, *tasks: ClaudeTask, number: int = 1, rows: int = 2, largest_params_bytes: int = 0) -> LogEntry:
    """Stage a plan whose tasks are new."""
    entry = bench.stage(texts(rows), tasks=tasks, number=number)
    refs = []
    for task in tasks:
        (request,) = Renderer(task, ["text"]).render([(SAMPLE,)])
        assert request is not None
        refs.append(PreflightRef(task_key=task.task_key, path=f"plans/{entry.run_id}/preflight-{task.task_key}.json"))
        bench.store.put(refs[-1].path, request.params)
    sizes = tuple(TaskRef(name=task.name, task_key=task.task_key, largest_params_bytes=largest_params_bytes) for task in tasks)
    entry = msgspec.structs.replace(entry, preflights=tuple(refs), tasks=sizes)
    bench.store.put(f"log/{entry.number}.json", msgspec.json.encode(entry))
    return entry


def record(bench: Bench, task: ClaudeTask) -> PreflightRecord | None:
    content = bench.store.get(f"preflights/{task.task_key}.json")
    return None if content is None else msgspec.json.decode(content, type=PreflightRecord)


def messages(simulator: RunningSimulator) -> list[bytes]:
    with urllib.request.urlopen(simulator.url + "/simulator/messages", timeout=10) as reply:
        return list(reply.read().splitlines())


def test_a_new_task_is_tried_once_before_its_first_batch(bench: Bench, start_simulator: StartSimulator) -> None:
    """One message call, the staged bytes, no row's text in it; the record says what it cost: twice the batch price."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    entry = stage(bench, SUMMARIZE)

    report = bench.finish(entry)

    assert report.counts.by_outcome == {"succeeded": 2}
    assert simulator.books()["calls"]["message"] == 1
    (asked,) = messages(simulator)
    assert asked == bench.store.get(entry.preflights[0].path)
    assert SAMPLE.encode() in asked
    assert b"Row " not in asked
    tried = record(bench, SUMMARIZE)
    assert tried is not None
    assert (tried.task_key, tried.model, tried.outcome, tried.stop_reason) == (SUMMARIZE.task_key, MODEL, "succeeded", "end_turn")
    # Haiku 5.5 costs 0.10 and 0.50 USD for a million tokens: 100 and 500 nano-USD for each.
    assert tried.cost_nano_usd == 100 * tried.input_tokens + 500 * tried.output_tokens
    assert tried.input_tokens > 0


def test_a_task_that_was_tried_is_not_tried_again(bench: Bench, start_simulator: StartSimulator) -> None:
    """The record of any earlier run counts."""
    simulator = start_simulator()
    bench.start_worker(simulator)

    assert bench.finish(stage(bench, SUMMARIZE)).outcome == "finished"
    assert bench.finish(stage(bench, SUMMARIZE, number=2)).outcome == "finished"

    assert simulator.books()["calls"]["message"] == 1


def test_a_refusal_of_the_sample_is_an_answer(bench: Bench, start_simulator: StartSimulator) -> None:
    """The task can be asked; what Claude thinks of the sample is no fault of it."""
    simulator = start_simulator("refusal@message")
    bench.start_worker(simulator)

    report = bench.finish(stage(bench, SUMMARIZE))

    assert report.counts.by_outcome == {"succeeded": 2}
    tried = record(bench, SUMMARIZE)
    assert tried is not None
    assert (tried.outcome, tried.stop_reason) == ("refused", "refusal")


@pytest.mark.parametrize(
    ("fault", "task", "words"),
    [
        (None, plain(max_tokens=3), ["cut after 3 output tokens, max_tokens is 3", "Raise max_tokens"]),
        ("truncated@message", plain(), ["was cut after", "max_tokens is 200"]),
        ("invalid@message", plain(output=LABELS), ["schema_violation: / breaks the rule", "Change the schema"]),
        ("pause@message", plain(), ["stop_reason: pause_turn is no complete answer"]),
        (None, plain(params={"stop": 1}), ["HTTP 400 invalid_request_error", "Extra inputs are not permitted", "row by row"]),
        (None, plain(effort="max"), ["HTTP 400 invalid_request_error", "thinking.type: 'disabled' is not supported"]),
        ("spend-limit@message", plain(), ["You have reached your specified API usage limits"]),
        ("spend-cap@message", plain(), ["HTTP 429 rate_limit_error", "Raise its limit"]),
        ("403@message", plain(), ["Check ANTHROPIC_API_KEY of the worker"]),
        ("error-504-after@message", plain(), ["no answer within 600 s", "--no-preflight"]),
    ],
    ids=["too-short", "truncated", "invalid", "pause", "unknown-parameter", "effort", "spend-limit", "spend-cap", "403", "504"],
)
def test_a_try_that_fails_stops_the_run_before_it_sends(
    bench: Bench, start_simulator: StartSimulator, fault: str | None, task: ClaudeTask, words: list[str]
) -> None:
    """The task by name, what came, that no batch was sent, what to do; nothing is recorded, so the mended task is tried."""
    simulator = start_simulator(*([fault] if fault else []))
    bench.start_worker(simulator)
    entry = stage(bench, task)

    report = bench.finish(entry)

    assert report.outcome == "failed"
    for word in [f"Task {task.name!r}", "Nothing was sent to the Message Batches API", *words]:
        assert word in (report.error or "")
    assert SAMPLE not in (report.error or "")
    assert simulator.batches() == []
    assert simulator.books()["calls"]["message"] == 1
    assert record(bench, task) is None
    assert bench.done(entry).rows == {"pending": 2}


@pytest.mark.parametrize(
    "fault", ["429@message=2", "529@message", "error-500-before@message", "drop-before@message", "garbled-after@message"]
)
def test_a_vendor_that_cannot_now_is_asked_again(bench: Bench, start_simulator: StartSimulator, fault: str) -> None:
    """Temporal waits and repeats; the run goes on."""
    simulator = start_simulator(fault)
    bench.start_worker(simulator)

    report = bench.finish(stage(bench, SUMMARIZE))

    assert report.counts.by_outcome == {"succeeded": 2}
    assert simulator.books()["calls"]["message"] == (3 if fault.endswith("=2") else 2)
    assert simulator.books()["calls"].get("retries", 0) == 0
    assert record(bench, SUMMARIZE) is not None


@pytest.mark.parametrize(
    ("point", "asked"),
    [
        ("put:plans.before=kill", 1),
        ("put:plans.after=kill", 1),
        ("preflight.before=kill", 1),
        ("preflight.after=kill", 2),
        ("put:plans.before=kill@2", 2),
        ("put:plans.after=kill@2", 1),
        ("put:preflights.after=kill", 1),
    ],
)
def test_a_killed_worker_costs_one_sample_at_most(bench: Bench, start_simulator: StartSimulator, point: str, asked: int) -> None:
    """Between the reply and its record it is asked again; the batch is sent once."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS=point)
    entry = stage(bench, SUMMARIZE)

    async def work(driver: Driver) -> Any:
        handle = await driver.start(entry)

        async def dead() -> bool | None:
            return True if worker.popen.poll() is not None else None

        await until(dead)
        await asyncio.to_thread(bench.start_worker, simulator)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 1
    assert simulator.books()["calls"]["message"] == asked


def test_a_try_that_failed_is_paid_once_though_the_worker_dies(bench: Bench, start_simulator: StartSimulator) -> None:
    """What came of it is recorded before it is told."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator, CLAUDE_BATCH_FAULT_POINTS="put:plans.after=kill@2")
    entry = stage(bench, plain(max_tokens=3))

    async def work(driver: Driver) -> Any:
        handle = await driver.start(entry)

        async def dead() -> bool | None:
            return True if worker.popen.poll() is not None else None

        await until(dead)
        await asyncio.to_thread(bench.start_worker, simulator)
        return await driver.result(handle)

    report = bench.run(work)

    assert report.outcome == "failed"
    assert "cut after 3 output tokens" in (report.error or "")
    assert simulator.books()["calls"]["message"] == 1


def test_a_drain_tries_nothing(bench: Bench, start_simulator: StartSimulator) -> None:
    """It buys nothing, so it needs to know nothing."""
    simulator = start_simulator()
    bench.start_worker(simulator)

    report = bench.finish(stage(bench, plain(model="claude-nonesuch-9")), mode=Mode.DRAIN)

    assert report.outcome == "finished"
    assert not {"message", "models"} & simulator.books()["calls"].keys()


def test_a_run_that_began_tries_nothing(bench: Bench, start_simulator: StartSimulator) -> None:
    """A second driver of a run with a batch goes on with it, whatever became of the tasks' records."""
    simulator = start_simulator(seconds=1)
    bench.start_worker(simulator)
    entry = stage(bench, SUMMARIZE)

    async def work(driver: Driver) -> Any:
        handle = await driver.start(entry)

        async def sent() -> bool | None:
            return True if simulator.batches() else None

        await until(sent)
        await handle.terminate()
        bench.store.delete(f"preflights/{SUMMARIZE.task_key}.json")
        return await driver.result(await driver.start(entry))

    assert bench.run(work).counts.by_outcome == {"succeeded": 2}
    assert len(simulator.batches()) == 1
    assert simulator.books()["calls"]["message"] == 1


@pytest.mark.parametrize(
    ("task", "largest_params_bytes", "words"),
    [
        (plain(max_tokens=128_001), 0, ["max_tokens is 128,001", "128,000 tokens"]),
        (plain(model="claude-haiku-4-5", effort="low", thinking=None), 0, ["effort is 'low'", "takes no effort"]),
        (plain(model="claude-opus-4-5", effort="max", thinking=None), 0, ["effort is 'max'", "takes low, medium, high"]),
        (plain(model="claude-sonnet-5-5"), 0, ["thinking is 'disabled'", "takes adaptive, between_tools"]),
        (plain(), 3_500_004, ["3,500,004 bytes, about 1,000,002 tokens", "1,000,000 tokens"]),
    ],
    ids=["max_tokens", "no effort", "effort", "thinking", "window"],
)
def test_what_a_model_cannot_do_is_found_before_anything_is_asked(
    bench: Bench, start_simulator: StartSimulator, task: ClaudeTask, largest_params_bytes: int, words: list[str]
) -> None:
    """The vendor's catalogue costs nothing, so it comes before the try."""
    simulator = start_simulator()
    bench.start_worker(simulator)

    report = bench.finish(stage(bench, task, largest_params_bytes=largest_params_bytes))

    assert report.outcome == "failed"
    for word in [f"Task {task.name!r}", "Nothing was sent.", *words]:
        assert word in (report.error or "")
    assert not {"message", "create"} & simulator.books()["calls"].keys()


def test_two_tasks_of_one_model_ask_for_it_once(bench: Bench, start_simulator: StartSimulator) -> None:
    """Each is tried, the model is looked up once; the first one's success is kept when the second fails."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    short = Summarize(name="short", column="text", model=MODEL, max_words=5)

    report = bench.finish(stage(bench, short, plain(max_tokens=3)))

    assert report.outcome == "failed"
    assert (simulator.books()["calls"]["models"], simulator.books()["calls"]["message"]) == (1, 2)
    assert record(bench, short) is not None
