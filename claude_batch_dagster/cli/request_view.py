"""A request as people read it: model, limits, the texts, the schema; long parts cut, with a note."""

import json
from collections.abc import Mapping
from textwrap import wrap
from typing import cast

SHOWN_CHARACTERS = 600
WRAPPED_AT = 110
OWN_LINES = ("model", "max_tokens", "system", "messages", "output_config", "thinking")


def request_lines(params: Mapping[str, object], characters: int = SHOWN_CHARACTERS) -> list[str]:
    r"""Return a request's `params` as lines.

    Args:
        params: Messages parameters.
        characters: How much of a text is shown.

    >>> print("\n".join(request_lines({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]})))
    model       m
    max_tokens  9
    user        Hello
    """
    config = cast(Mapping[str, object], params.get("output_config") or {})
    parts: list[tuple[str, str]] = [("model", str(params.get("model"))), ("max_tokens", str(params.get("max_tokens")))]
    if config.get("effort") is not None:
        parts.append(("effort", str(config["effort"])))
    if params.get("thinking") is not None:
        parts.append(("thinking", _one_line(params["thinking"])))
    parts += [(name, _one_line(value)) for name, value in sorted(params.items()) if name not in OWN_LINES]
    if params.get("system") is not None:
        parts.append(("system", _text(params["system"])))
    messages = cast(list[Mapping[str, object]], params.get("messages") or [])
    parts += [(str(message.get("role")), _text(message.get("content"))) for message in messages]
    if config.get("format") is not None:
        form = cast(Mapping[str, object], config["format"])
        parts.append(("schema", _one_line(form.get("schema", form))))
    width = max(len(name) for name, _ in parts) + 2
    lines = []
    for name, text in parts:
        first, *rest = [part for line in cut_text(text, characters).splitlines() for part in wrap(line, WRAPPED_AT) or [""]] or [""]
        lines += [f"{name:<{width}}{first}".rstrip(), *(f"{'':<{width}}{line}".rstrip() for line in rest)]
    return lines


def cut_text(text: str, characters: int) -> str:
    """Return a text, cut where it is longer, with a note of how much is missing.

    >>> cut_text("abcdef", 4)
    'abcd ... (2 more of 6 characters)'
    """
    if len(text) <= characters:
        return text
    return f"{text[:characters].rstrip()} ... ({len(text) - characters:,} more of {len(text):,} characters)"


def _text(value: object) -> str:
    return value if isinstance(value, str) else _one_line(value)


def _one_line(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
