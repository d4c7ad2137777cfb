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
    prompt = pc.add(pc.add(table["input_tokens"], table["cache_read_tokens"]), table["cache_write_tokens"])
    is_long = pc.fill_null(pc.greater(prompt, LONG_PROMPT_TOKENS), False)
    parts = []
    # There are few models; and pyarrow's group_by imports pandas.
    for model in pc.unique(table["model"].drop_null()).to_pylist():
        for over_100k in (False, True):
            mine = table.filter(pc.and_(pc.equal(table["model"], model), pc.equal(is_long, over_100k)))
            if mine.num_rows:
                tokens = {name: pc.sum(mine[name]).as_py() for name in TOKEN_COLUMNS}
                cost = mine["cost_nano_usd"]
                cost_nano_usd = None if cost.null_count else pc.sum(cost).as_py()
                parts.append(ModelUsage(model=model, over_100k=over_100k, requests=mine.num_rows, cost_nano_usd=cost_nano_usd, **tokens))
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
