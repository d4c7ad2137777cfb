"""A prompt with slots, and how a value becomes text in it. Part of a request's identity: golden tests freeze both."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal

import msgspec

from claude_batch_dagster.core.errors import TaskError

_BRACED = re.compile(r"\{[^{}\n]*\}")
_NAME_LIKE = re.compile(r"\{\s*([^\W\d][\w .\-]*?)\s*\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt, cut at its slots: literals[0], columns[0], literals[1], ..., literals[-1]."""

    literals: tuple[str, ...]
    columns: tuple[str, ...]


def parse_template(text: str, columns: Collection[str]) -> Template:
    """Find the slots of a prompt.

    A slot is `{exact column name}`, the longest name that fits; `{{` and `}}` are literal braces; any other brace stands for itself,
    unless it encloses something that looks like a name, which is then a name that is no column.

    Args:
        text: The prompt.
        columns: The source's columns, partition columns included.

    Raises:
        TaskError: Terminal. A slot names no column, or there is no slot.

    >>> parse_template('Review of {product}: {"text": {text}}', {"product", "text"})
    Template(literals=('Review of ', ': {"text": ', '}'), columns=('product', 'text'))
    """
    names = sorted(columns, key=len, reverse=True)
    literals: list[str] = []
    slots: list[str] = []
    literal: list[str] = []
    at = 0
    while at < len(text):
        pair = text[at : at + 2]
        name = next((n for n in names if text.startswith(f"{{{n}}}", at)), None) if text[at] == "{" and pair != "{{" else None
        if name is not None:
            literals.append("".join(literal))
            slots.append(name)
            literal = []
            at += len(name) + 2
        elif pair in ("{{", "}}"):
            literal.append(pair[0])
            at += 2
        else:
            if text[at] == "{" and (typo := _NAME_LIKE.match(text, at)):
                raise TaskError(_no_such_column(typo[0], typo[1], columns), column=typo[1])
            literal.append(text[at])
            at += 1
    if not slots:
        near = _BRACED.search(text)
        raise TaskError(
            f"The prompt has no slot{f' ({near[0]} is no column)' if near else ''}, so every row would ask the same. Nothing was sent. "
            f"Put a column in braces into it, for instance {{{next(iter(columns), 'text')}}}."
        )
    literals.append("".join(literal))
    return Template(literals=tuple(literals), columns=tuple(slots))


def _no_such_column(slot: str, name: str, columns: Collection[str]) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"Did you mean {{{near[0]}}}?" if near else "Name a column, or write {{ and }} for literal braces."
    return f"The prompt's slot {slot} is no column of the source, which has {', '.join(sorted(columns))}. Nothing was sent. {hint}"


def render_value(value: object) -> str:
    """Return the text of a value in a prompt.

    Strings as they are; booleans true and false; integers in decimal; floats as Python's repr; decimals in plain digits; dates and
    times in ISO 8601, UTC as `Z`; lists and structs as compact JSON with sorted keys; null as nothing.

    Raises:
        TaskError: Terminal. Binary and other types that have no text of their own.

    >>> [render_value(v) for v in ("a", True, 7, 0.5, None, {"b": 1, "a": [2]})]
    ['a', 'true', '7', '0.5', '', '{"a":[2],"b":1}']
    """
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(float(value))
        case Decimal():
            return format(value, "f")
        case datetime():
            text = value.isoformat()
            return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text
        case date() | time():
            return value.isoformat()
        case list() | dict() | tuple():
            return msgspec.json.encode(_jsonable(value), order="sorted").decode()
        case _:
            raise TaskError(
                f"A slot cannot show a value of type {type(value).__name__}. Nothing was sent. "
                "Use text, numbers, booleans, dates, lists or structs; turn anything else into text before.",
                type=type(value).__name__,
            )


def _jsonable(value: object) -> object:
    match value:
        case dict():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case None | bool() | str() | int():
            return value
        case float():
            return value if value - value == 0 else repr(value)
        case _:
            return render_value(value)


def is_blank(values: Sequence[str]) -> bool:
    """Tell whether there is nothing to ask about in any of these texts."""
    return not any(value.strip() for value in values)
