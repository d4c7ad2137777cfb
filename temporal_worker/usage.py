"""What the batches of a run and its tries of new tasks used, read from what they left in the store."""

from collections.abc import Sequence

import pyarrow as pa

from claude_batch_dagster.core.records import ModelUsage
from claude_batch_dagster.core.response import LONG_PROMPT_TOKENS
from claude_batch_dagster.storage.arrays import to_numpy
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
    # Not by pyarrow: its group_by imports pandas, and so does a plain value beside a column.
    models = table["model"].combine_chunks().dictionary_encode()
    codes, costs, priced = to_numpy(models.indices, -1), to_numpy(table["cost_nano_usd"]), to_numpy(table["cost_nano_usd"].is_valid())
    tokens = {name: to_numpy(table[name]) for name in TOKEN_COLUMNS}
    is_long = tokens["input_tokens"] + tokens["cache_read_tokens"] + tokens["cache_write_tokens"] > LONG_PROMPT_TOKENS
    parts = []
    for code, model in enumerate(models.dictionary.to_pylist()):
        for over_100k in (False, True):
            mine = (codes == code) & (is_long == over_100k)
            if mine.any():
                sums = {name: int(numbers[mine].sum()) for name, numbers in tokens.items()}
                cost = int(costs[mine].sum()) if priced[mine].all() else None
                parts.append(ModelUsage(model=model, over_100k=over_100k, requests=int(mine.sum()), cost_nano_usd=cost, **sums))
    return parts


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
