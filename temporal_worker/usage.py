"""What the batches of a run and its tries of new tasks used, read from what they left in the store."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from claude_batch_dagster.core.records import ModelUsage
from claude_batch_dagster.core.response import LONG_PROMPT_TOKENS
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import read_batches
from claude_batch_dagster.storage.tries import list_tried

TOKEN_COLUMNS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def read_usage(
    store: Store, endpoint: str, task_keys: Sequence[str], batch_ids: Sequence[str], run_id: str | None = None
) -> tuple[ModelUsage, ...]:
    """Sum up by model, prompts over 100,000 tokens apart; requests that no model answered used nothing and are left out.

    Args:
        store: The root.
        endpoint: Whose answers.
        task_keys: Of the run's tasks.
        batch_ids: The run's own.
        run_id: Whose tries of new tasks are counted too, None for nobody's.
    """
    tries = {} if run_id is None else list_tried(store, run_id, task_keys)
    parts = [tried.usage for tried in tries.values() if tried.usage is not None]
    for task_key in task_keys:
        for table in read_batches(store, endpoint, task_key, batch_ids, ["model", "cost_nano_usd", *TOKEN_COLUMNS]):
            parts += _sum_table(table)
    sums: dict[tuple[str, bool], ModelUsage] = {}
    for part in parts:
        place = (part.model, part.over_100k)
        sums[place] = _add(sums[place], part) if place in sums else part
    return tuple(sums[place] for place in sorted(sums))


def sum_cost(usage: Sequence[ModelUsage]) -> int | None:
    """Return the cost in nano-USD, None where a model without a price answered."""
    costs = [part.cost_nano_usd for part in usage]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _sum_table(table: pa.Table) -> list[ModelUsage]:
    table = table.filter(pc.is_valid(table["model"]))
    prompt = pc.add(pc.add(table["input_tokens"], table["cache_read_tokens"]), table["cache_write_tokens"])
    table = table.append_column("over_100k", pc.greater(prompt, LONG_PROMPT_TOKENS))
    table = table.append_column("unpriced", pc.cast(pc.is_null(table["cost_nano_usd"]), pa.int64()))
    sums = table.group_by(["model", "over_100k"]).aggregate(
        [("model", "count"), ("unpriced", "sum"), ("cost_nano_usd", "sum"), *((name, "sum") for name in TOKEN_COLUMNS)]
    )
    return [
        ModelUsage(
            model=row["model"],
            over_100k=row["over_100k"],
            requests=row["model_count"],
            cost_nano_usd=None if row["unpriced_sum"] else row["cost_nano_usd_sum"],
            input_tokens=row["input_tokens_sum"],
            output_tokens=row["output_tokens_sum"],
            cache_read_tokens=row["cache_read_tokens_sum"],
            cache_write_tokens=row["cache_write_tokens_sum"],
        )
        for row in sums.to_pylist()
    ]


def _add(left: ModelUsage, right: ModelUsage) -> ModelUsage:
    priced = left.cost_nano_usd is not None and right.cost_nano_usd is not None
    return ModelUsage(
        model=left.model,
        over_100k=left.over_100k,
        requests=left.requests + right.requests,
        input_tokens=left.input_tokens + right.input_tokens,
        output_tokens=left.output_tokens + right.output_tokens,
        cache_read_tokens=left.cache_read_tokens + right.cache_read_tokens,
        cache_write_tokens=left.cache_write_tokens + right.cache_write_tokens,
        cost_nano_usd=(left.cost_nano_usd or 0) + (right.cost_nano_usd or 0) if priced else None,
    )
