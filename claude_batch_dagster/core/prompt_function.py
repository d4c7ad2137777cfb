"""A prompt that is a function of the row: for images, several turns, or logic that no template has."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from claude_batch_dagster.core.errors import TaskError

Prompt = str | Sequence[Mapping[str, object]] | None
PromptFunction = Callable[[Mapping[str, object]], Prompt]
"""Gets a row (column: value), and returns what is asked about it.

A text or a list of content blocks is one user message; a list of messages (each with its `role`) is all of them; None or a blank text asks
nothing, and the row is skipped. Bytes become base64, as image and document blocks want them.
"""
_encode = msgspec.json.Encoder(order="sorted").encode


def name_function(prompt: PromptFunction) -> str:
    """Return the name under which a function stands in its task's document."""
    return str(getattr(prompt, "__qualname__", type(prompt).__qualname__))


def encode_messages(task_name: str, prompt: PromptFunction, row: Mapping[str, object]) -> bytes:
    """Return the canonical bytes of a row's `messages`, nothing where the row is skipped.

    Raises:
        TaskError: Terminal. The function failed, or returned something that cannot be asked.
    """
    function = f"the prompt function {name_function(prompt)} of task {task_name!r}"
    try:
        asked = prompt(row)
    except Exception as error:  # whatever a user's function raises is told with its name
        raise TaskError(
            f"{function} failed with {type(error).__name__}: {error}. Nothing was sent. Mend it, or have it return None to skip."
        ) from error
    if asked is None or (isinstance(asked, str) and not asked.strip()):
        return b""
    if isinstance(asked, str) or _all_have(asked, "type"):
        asked = [{"content": asked, "role": "user"}]
    elif not _all_have(asked, "role"):
        raise TaskError(
            f"{function} returned {_describe(asked)}. Nothing was sent. Return a text, a list of content blocks (each with a "
            "`type`), a list of messages (each with a `role`), or None."
        )
    try:
        return _encode(asked)
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise TaskError(f"{function} returned what is no JSON: {error}. Nothing was sent. Use text, numbers, lists and dicts.") from error


def _describe(asked: object) -> str:
    """Return a value's type, never a row's content."""
    kind = type(asked).__name__
    return f"{kind} of {', '.join(sorted({type(item).__name__ for item in asked}))}" if isinstance(asked, list | tuple) and asked else kind


def _all_have(asked: object, key: str) -> bool:
    return isinstance(asked, list | tuple) and len(asked) > 0 and all(isinstance(item, Mapping) and key in item for item in asked)
