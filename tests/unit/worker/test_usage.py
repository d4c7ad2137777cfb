"""What a run used: its batches, and what it paid to try its new tasks."""

from datetime import UTC, datetime
from pathlib import Path

from claude_batch_dagster.core.records import ModelUsage, TriedRecord
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.tries import write_tried
from temporal_worker.usage import read_usage, sum_cost

MODEL = "claude-haiku-5-5"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def answer(store: Store, batch_id: str, **fields: object) -> None:
    response = Response(
        **{"request_key": bytes(16), "outcome": "succeeded", "model": MODEL, "input_tokens": 10, "output_tokens": 5} | fields
    )  # type: ignore[arg-type]
    write_responses(store, endpoint="simulator", task_key="t", batch_id=batch_id, round_number=1, answered_at=NOON, responses=[response])


def tried(store: Store, run_id: str, model: str | None = MODEL, cost_nano_usd: int | None = 700) -> None:
    usage = None
    if model is not None:
        usage = ModelUsage(
            model=model,
            over_100k=False,
            requests=1,
            input_tokens=7,
            output_tokens=3,
            cache_read_tokens=2,
            cache_write_tokens=1,
            cost_nano_usd=cost_nano_usd,
        )
    record = TriedRecord(task_key="t", answered_at=NOON.isoformat(), outcome="succeeded", stop_reason=None, usage=usage, problem=None)
    write_tried(store, run_id, record)


def test_a_runs_try_is_added_to_its_batches_and_another_runs_is_not(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    answer(store, "b1", cost_nano_usd=100)
    tried(store, "r1")
    tried(store, "r2", cost_nano_usd=9_999)
    (line,) = read_usage(store, "simulator", ["t"], ["b1"], run_id="r1")
    assert (line.requests, line.input_tokens, line.output_tokens, line.cache_read_tokens, line.cache_write_tokens) == (2, 17, 8, 2, 1)
    assert sum_cost([line]) == 800
    assert sum_cost(read_usage(store, "simulator", ["t"], ["b1"])) == 100
    assert sum_cost(read_usage(store, "simulator", ["t"], ["b1"], run_id="r3")) == 100


def test_a_run_that_sent_nothing_paid_its_try(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tried(store, "r1")
    assert sum_cost(read_usage(store, "simulator", ["t"], [], run_id="r1")) == 700


def test_a_try_that_no_model_answered_cost_nothing_and_one_without_a_price_is_unknown(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tried(store, "r1", model=None)
    assert read_usage(store, "simulator", ["t"], [], run_id="r1") == ()
    tried(store, "r2", cost_nano_usd=None)
    assert sum_cost(read_usage(store, "simulator", ["t"], [], run_id="r2")) is None


def test_the_first_record_of_a_try_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tried(store, "r1", cost_nano_usd=1)
    tried(store, "r1", cost_nano_usd=2)
    assert sum_cost(read_usage(store, "simulator", ["t"], [], run_id="r1")) == 1


def test_models_and_long_prompts_are_summed_apart_and_one_answer_without_a_price_leaves_its_sum_without(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    answer(store, "b1", cost_nano_usd=100)
    answer(store, "b2", cost_nano_usd=5, input_tokens=90_000, cache_read_tokens=10_000, cache_write_5m_tokens=1)
    answer(store, "b3", cost_nano_usd=7, input_tokens=90_000, cache_read_tokens=10_000)
    answer(store, "b4", cost_nano_usd=None, model="another")
    answer(store, "b5", cost_nano_usd=3, model="another")
    answer(store, "b6", outcome="expired", model=None)
    found = read_usage(store, "simulator", ["t"], [f"b{number}" for number in range(1, 7)])
    assert [(line.model, line.over_100k, line.requests, line.input_tokens, line.cost_nano_usd) for line in found] == [
        ("another", False, 2, 20, None),
        (MODEL, False, 2, 90_010, 107),
        (MODEL, True, 1, 90_000, 5),
    ]
