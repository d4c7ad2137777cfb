"""A new task is tried once, on a fixed text of our own, before its first batch: what cannot work is known at once, not tomorrow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from claude_batch_dagster.core.models import FULL_PRICE
from claude_batch_dagster.core.records import PreflightRef
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import Estimator

SAMPLE_TEXT = (
    "The tent kept us dry for a week of rain, and its poles are light enough for a long walk. One zip broke on the third day. "
    "The shop answered within an hour and sent a new one, so we would buy it again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """A new task's try.

    Attributes:
        ref: Where its request is staged.
        expected_nano_usd: At the full price of a single call; None where the model has no price.
        worst_nano_usd: Likewise, at most.
    """

    ref: PreflightRef
    expected_nano_usd: int | None
    worst_nano_usd: int | None


def plan_preflight(store: Store, run_id: str, task: ClaudeTask, columns: Sequence[str], *, stage: bool) -> Preflight | None:
    """Plan a task's request on the sample text, None where it was tried before, or where a function writes the prompts: of our text it knows nothing.

    Args:
        store: The root.
        run_id: Of the run that will try it.
        task: A task without any answer in the store.
        columns: The source's, which the prompt's slots name.
        stage: Whether to write the request into the root.
    """
    if callable(task.prompt) or store.exists(f"preflights/{task.task_key}.json"):
        return None
    params = _render_sample(task, columns)
    path = f"plans/{run_id}/preflight-{task.task_key}.json"
    if stage:
        store.put(path, params)
    estimator = Estimator(task.model, task.max_tokens, None)
    estimator.add(np.array([len(params)]))
    estimate = estimator.finish()
    return Preflight(
        ref=PreflightRef(task_key=task.task_key, path=path),
        expected_nano_usd=_full_price(estimate.expected_nano_usd),
        worst_nano_usd=_full_price(estimate.worst_nano_usd),
    )


def _render_sample(task: ClaudeTask, columns: Sequence[str]) -> bytes:
    renderer = Renderer(task, columns)
    (request,) = renderer.render([[SAMPLE_TEXT] * len(renderer.columns)])
    assert request is not None, "the sample text is not blank"
    return request.params


def _full_price(batch_nano_usd: int | None) -> int | None:
    return None if batch_nano_usd is None else FULL_PRICE * batch_nano_usd
