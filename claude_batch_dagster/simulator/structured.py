"""Answers that obey a JSON schema: walked for plausibility, checked by a validator before anybody sees them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

import jsonschema_rs

from claude_batch_dagster.simulator.lexicon import KINDS, choose_label, is_benign, label_name
from claude_batch_dagster.simulator.normal_form import Form, UnsatisfiableError, prepare
from claude_batch_dagster.simulator.patterns import format_string, match_pattern
from claude_batch_dagster.simulator.reading import PREFIX, Reading, read_prompt, word_limit

_TRIALS = 48
_TRIALS_A_ROW = 4
_WORDS_OF = {"title": 8, "name": 4, "reason": 20, "rationale": 20, "explanation": 20, "topic": 4, "category": 4, "keyword": 3, "quote": 20}
_RATINGS = frozenset({"rating", "stars", "score"})
_SHARES = frozenset({"confidence", "probability", "certainty", "likelihood", "share"})


class TooComplexError(Exception):
    """No answer to this schema was found: the schema is refused, never broken."""


@dataclass(slots=True)
class _Walk:
    """One attempt at one answer."""

    reading: Reading
    attempt: int
    label: str | None = None
    skip: int = 0

    def roll(self, salt: str, sides: int) -> int:
        return self.reading.roll(f"{salt}#{self.attempt}", sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSchema:
    """A compiled schema. `answer` always returns a value that obeys it."""

    form: Form
    validator: jsonschema_rs.Draft202012Validator
    plain: object = field(repr=False)
    """A known good answer, for the row that finds no other."""

    def answer(self, reading: Reading) -> object:
        """The answer to one prompt."""
        for attempt in range(_TRIALS_A_ROW):
            value = _try_value(self.form, _Walk(reading, attempt))
            if value is not _NOTHING and self.validator.is_valid(value):
                return value
        return self.plain


def compile_schema(schema: Mapping[str, object]) -> AnswerSchema:
    """Make a schema ready to be answered.

    Raises:
        TooComplexError: it is no schema, nothing obeys it, or nothing was found that does.
    """
    try:
        validator = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True, retriever=_retrieve_nothing)
        form = prepare(schema)
    except (UnsatisfiableError, ValueError, RecursionError) as error:
        raise TooComplexError(str(error)) from error
    for trial in range(_TRIALS):
        reading = read_prompt("", "Simulated.", trial * 0x9E3779B97F4A7C15)
        plain = _try_value(form, _Walk(reading, trial))
        if plain is not _NOTHING and validator.is_valid(plain):
            return AnswerSchema(form=form, validator=validator, plain=plain)
    raise TooComplexError("Schema is too complex for compilation.")


_NOTHING = object()


def _retrieve_nothing(uri: str) -> NoReturn:
    # The validator would fetch an external $ref over the network.
    raise ValueError(f"External $ref {uri!r} is not supported")


def _try_value(form: Form, walk: _Walk) -> object:
    try:
        return _value(form, walk, "")
    except (UnsatisfiableError, RecursionError):
        return _NOTHING


def _value(form: Form, walk: _Walk, name: str) -> object:
    if "anyOf" in form:
        return _value(_pick_branch(form["anyOf"], walk, name), walk, name)
    if "enum" in form:
        return _choose(form, walk, name)
    match _pick_type(form, walk, name):
        case "object":
            return _object(form, walk, name)
        case "array":
            return _array(form, walk, name)
        case "boolean":
            return walk.reading.mood > 0 if walk.reading.mood and walk.attempt == 0 else walk.roll(name, 2) == 1
        case "null":
            return None
        case "integer" | "number" as kind:
            return _number(form, walk, name, whole=kind == "integer")
        case _:
            return _string(form, walk, name)


def _pick_branch(branches: object, walk: _Walk, name: str) -> Form:
    forms = [branch for branch in branches if isinstance(branch, dict)] if isinstance(branches, list) else []
    full = [branch for branch in forms if branch.get("type") != "null" and branch.get("enum") != [None]]
    if full and (len(full) == len(forms) or walk.roll(f"{name}?", 8)):
        forms = full
    return forms[walk.roll(f"{name}|", len(forms))]


def _pick_type(form: Form, walk: _Walk, name: str) -> str:
    declared = form.get("type")
    if isinstance(declared, str):
        return declared
    if isinstance(declared, list):
        full = [str(kind) for kind in declared if kind != "null"]
        if "null" in declared and (not full or not walk.roll(f"{name}?", 8)):
            return "null"
        return full[walk.roll(f"{name}|", len(full))]
    if "properties" in form or "required" in form:
        return "object"
    return "array" if "items" in form else "integer" if "minimum" in form or "maximum" in form else "string"


def _choose(form: Form, walk: _Walk, name: str) -> object:
    values = form["enum"]
    options = values if isinstance(values, list) else [values]
    if not options:
        raise UnsatisfiableError
    labels, numbers = form.get("labels"), form.get("numbers")
    if walk.attempt == 0 and isinstance(labels, tuple):
        label = choose_label(labels, walk.reading.words, walk.reading.mood, lambda sides: walk.roll(name, sides))
        walk.label = walk.label or label
        return label
    if walk.attempt == 0 and isinstance(numbers, list) and walk.label is not None:
        return numbers[0] if is_benign(walk.label) else numbers[1 + walk.roll(name, len(numbers) - 1)]
    return options[walk.roll(name, len(options))]


def _object(form: Form, walk: _Walk, name: str) -> dict[str, object]:
    declared = form.get("properties")
    properties: Form = declared if isinstance(declared, dict) else {}
    first = _names(form["first"])
    out: dict[str, object] = dict.fromkeys(first)
    # The label before what has to agree with it, in whatever order they stand.
    for key in sorted(first, key=lambda key: not _is_label(properties.get(key))):
        child = properties.get(key)
        if isinstance(child, dict):
            out[key] = _value(child, walk, key)
        elif form.get("additionalProperties") is False or key in _names(form.get("forbidden")):
            raise UnsatisfiableError
        else:
            out[key] = _string({}, walk, key)
    for key in _names(form["then"]):
        child = properties[key]
        if isinstance(child, dict) and walk.roll(f"{name}.{key}?", 3):
            out[key] = _value(child, walk, key)
    return out


def _is_label(form: object) -> bool:
    return isinstance(form, dict) and isinstance(form.get("labels"), tuple)


def _array(form: Form, walk: _Walk, name: str) -> list[object]:
    least, most = _whole(form.get("minItems"), 0), _whole(form.get("maxItems"), 1 << 30)
    items = form.get("items", {})
    if not isinstance(items, dict):
        if least:
            raise UnsatisfiableError
        return []
    labels = items.get("labels")
    if isinstance(labels, tuple):
        chosen = _categories(labels, walk, name)
        chosen += [label for label in labels if label not in chosen][: max(0, least - len(chosen))]
        return list(chosen[:most])
    size = max(least, min(most, walk.roll(f"{name}#", 3)))
    out: list[object] = []
    for position in range(size):
        walk.skip += position > 0
        out.append(_value(items, walk, name if items.get("type", "string") == "string" and "format" not in items else f"{name}{position}"))
    return out


def _categories(options: tuple[str, ...], walk: _Walk, name: str) -> list[str]:
    if walk.label not in options and not any(label_name(option) in KINDS for option in options):
        # Topics, which no label speaks of: those that the text names.
        named = [option for option in options if label_name(option) in walk.reading.words]
        return named[:3] or [options[walk.roll(name, len(options))]]
    if walk.label is not None and is_benign(walk.label):
        return [option for option in options if option == walk.label]
    hits = [option for option in options if KINDS.get(label_name(option), frozenset()) & walk.reading.words]
    if walk.label is not None:
        others = [option for option in hits if option != walk.label][: 1 if walk.label in options else 2]
        return [option for option in options if option == walk.label or option in others]
    if hits:
        return hits[:2]
    start = walk.roll(name, len(options))
    return list(dict.fromkeys(options[start:] + options[:start]))[: walk.roll(f"{name}#", 3)]


def _string(form: Form, walk: _Walk, name: str) -> str:
    if isinstance(pattern := form.get("pattern"), str):
        return match_pattern(pattern, lambda salt, sides: walk.roll(name + salt, sides)) or PREFIX
    if isinstance(text_format := form.get("format"), str):
        return format_string(text_format, lambda salt, sides: walk.roll(name + salt, sides))
    words = _words_of(name, str(form.get("description", ""))) or walk.reading.max_words
    text = walk.reading.extract(words, skip=walk.skip)
    return text[: _whole(form.get("maxLength"), 1 << 30)].ljust(_whole(form.get("minLength"), 0), ".")


@lru_cache(maxsize=1024)
def _words_of(name: str, description: str) -> int:
    by_name = next((words for key, words in _WORDS_OF.items() if key in name.lower()), 0)
    return word_limit(description, default=by_name)


def _number(form: Form, walk: _Walk, name: str, *, whole: bool) -> float | int:
    step = _real(form.get("multipleOf")) or 1.0
    low, high = _real(form.get("minimum")), _real(form.get("maximum"))
    above, below = _real(form.get("exclusiveMinimum")), _real(form.get("exclusiveMaximum"))
    low = above + step if above is not None else low
    high = below - step if below is not None else high
    if low is None and high is None:
        if name.lower() in _RATINGS and whole:
            return max(1, min(5, 3 + walk.reading.mood))
        if not whole and "multipleOf" not in form:
            return walk.roll(name, 101) / 100 if name.lower() in _SHARES else walk.roll(name, 101) / 10
        low, high = 0.0, 5.0 * step
    low = low if low is not None else (high or 0.0) - 5 * step
    high = high if high is not None else low + 5 * step
    first = -(-low // step)
    count = int(high // step - first) + 1
    if count < 1:
        return low if not whole else round(low)
    value = (first + walk.roll(name, count)) * step
    return int(value) if whole or value == int(value) else value


def _names(value: object) -> list[str]:
    return value if isinstance(value, list) else []


def _whole(value: object, otherwise: int) -> int:
    return int(value) if isinstance(value, int | float) else otherwise


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
