"""What a task asks against what the vendor says that its model can: found out before anything is sent, not a day later row by row.

What the vendor's reply does not speak of is no mismatch: older servers tell less. What a reply cannot tell, such as an effort that goes
with one kind of thinking only, the try of a new task finds (`preflight.py`).
"""

import math
from collections.abc import Callable, Mapping

from claude_batch_dagster.core.records import TaskRef
from temporal_worker.vendor import Model

BYTES_PER_TOKEN = 3.5
NOTHING_SENT = "Nothing was sent."


def find_mismatch(task: TaskRef, document: Mapping[str, object], find_model: Callable[[str], Model | None]) -> str | None:
    """Return why a task cannot be asked, None where nothing speaks against it.

    Args:
        task: Its name and its largest request.
        document: Its canonical document.
        find_model: Asks the vendor for a model by its id; None where there is none.
    """
    model_id = str(document["model"])
    model = find_model(model_id)
    if model is None:
        return f"Task {task.name!r} asks {model_id}, which the API does not know. {NOTHING_SENT} Correct the model's id."
    if model.lifecycle == "retired":
        return f"Task {task.name!r} asks {model_id}, which is retired. {NOTHING_SENT} Name a current model."
    problem = _compare(task, document, model)
    return None if problem is None else f"Task {task.name!r}: {problem}"


def _compare(task: TaskRef, document: Mapping[str, object], model: Model) -> str | None:
    if model.supports("batch") is False:
        return f"the Message Batches API does not take {model.id}. {NOTHING_SENT} Name another model."
    max_tokens = document.get("max_tokens")
    if isinstance(max_tokens, int) and model.max_tokens is not None and max_tokens > model.max_tokens:
        return (
            f"max_tokens is {max_tokens:,}, the most that {model.id} answers is {model.max_tokens:,} tokens. {NOTHING_SENT} "
            f"Lower max_tokens to {model.max_tokens:,} or less."
        )
    if document.get("schema") is not None and model.supports("structured_outputs") is False:
        return (
            f"its output has a schema, and {model.id} does not support structured outputs. {NOTHING_SENT} Name another model, or leave output "
            "out for plain text."
        )
    return (
        _compare_effort(document.get("effort"), model) or _compare_thinking(document.get("thinking"), model) or _compare_size(task, model)
    )


def _compare_effort(effort: object, model: Model) -> str | None:
    if effort is None:
        return None
    if model.supports("effort") is False:
        return f"effort is {effort!r}, and {model.id} takes no effort. {NOTHING_SENT} Leave effort out, or name another model."
    if model.supports("effort", str(effort)) is False:
        allowed = _list_supported(model, "effort")
        return f"effort is {effort!r}, {model.id} takes {allowed}. {NOTHING_SENT} Use one of these, or name another model."
    return None


def _compare_thinking(thinking: object, model: Model) -> str | None:
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind is None or model.supports("thinking", "types", str(kind)) is not False:
        return None
    allowed = _list_supported(model, "thinking", "types")
    return f"thinking is {kind!r}, {model.id} takes {allowed}. {NOTHING_SENT} Use one of these, leave thinking out, or name another model."


def _compare_size(task: TaskRef, model: Model) -> str | None:
    tokens = math.ceil(task.largest_params_bytes / BYTES_PER_TOKEN)
    if model.max_input_tokens is None or tokens <= model.max_input_tokens:
        return None
    return (
        f"its largest request has {task.largest_params_bytes:,} bytes, about {tokens:,} tokens, the context window of {model.id} is "
        f"{model.max_input_tokens:,} tokens. {NOTHING_SENT} Shorten or leave out the longest rows, or name a model with a larger window."
    )


def _list_supported(model: Model, *path: str) -> str:
    found: object = model.capabilities
    for step in path:
        found = found.get(step) if isinstance(found, Mapping) else None
    names = [str(name) for name in found if model.supports(*path, str(name))] if isinstance(found, Mapping) else []
    return ", ".join(names) or "none"
