"""A new task is tried once, on a fixed text of our own, before its first batch: what cannot work is known at once, not tomorrow."""

from claude_batch_dagster.core.records import PreflightRef
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.store import Store

SAMPLE_TEXT = (
    "The tent kept us dry for a week of rain, and its poles are light enough for a long walk. One zip broke on the third day. "
    "The shop answered within an hour and sent a new one, so we would buy it again."
)


def stage_preflight(store: Store, run_id: str, task: ClaudeTask, columns: list[str]) -> PreflightRef | None:
    """Stage a task's request on the sample text, None where it was tried before.

    Args:
        store: The root.
        run_id: Of the run that will try it.
        task: A task without any answer in the store.
        columns: The source's, which the prompt's slots name.
    """
    if store.exists(f"preflights/{task.task_key}.json"):
        return None
    renderer = Renderer(task, columns)
    (request,) = renderer.render([[SAMPLE_TEXT] * len(renderer.columns)])
    assert request is not None, "the sample text is not blank"
    path = f"plans/{run_id}/preflight-{task.task_key}.json"
    store.put(path, request.params)
    return PreflightRef(task_key=task.task_key, path=path)
