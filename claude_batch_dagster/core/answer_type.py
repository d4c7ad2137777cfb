"""From a task's JSON Schema to a type that msgspec decodes and checks at once.

What the type takes, the schema takes; the reverse does not hold. A spelling that a schema allows and the type does not (1.0 for an integer) is
left to the schema's validator, and so is every schema with a rule that no type can say.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

import msgspec

_SILENT = frozenset(("description",))
"""Keywords that allow and refuse nothing."""
_INTEGER = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_PLAIN: dict[str, Any] = {"string": str, "integer": _INTEGER, "number": _INTEGER | float, "boolean": bool, "null": None}


class UnsayableError(Exception):
    """No type says what the schema says."""


def answer_type(schema: Mapping[str, object]) -> Any:
    """Return the type of a schema's valid answers, None where no type refuses all that the schema refuses."""
    try:
        kind = _type(schema, schema)
        # msgspec refuses here what it cannot tell apart (an object or another, say), and numbers without end.
        msgspec.json.Decoder(kind)
    except (UnsayableError, KeyError, TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return kind


def _type(node: object, root: Mapping[str, Any]) -> Any:
    if not isinstance(node, Mapping):
        raise UnsayableError
    said = {keyword: value for keyword, value in node.items() if keyword not in _SILENT}
    match said:
        case {"$ref": str(reference), **rest} if not rest:
            return _type(root["$defs"][reference.removeprefix("#/$defs/")], root)
        case {"anyOf": [*options], **rest} if not rest:
            return reduce(or_, (_type(option, root) for option in options))
        case {"enum": [*words], **rest} if words:
            return _literal(words, rest)
        case {"const": word, **rest}:
            return _literal([word], rest)
        case {"type": [*kinds], **rest} if not rest:
            return reduce(or_, (_type({"type": kind}, root) for kind in kinds))
        case {"type": "array", "items": Mapping() as items, **rest} if not rest:
            return list[_type(items, root)]  # type: ignore[misc]
        case {"type": "object", "properties": Mapping() as properties, "additionalProperties": False, **rest}:
            if rest.keys() <= {"required", "$defs"}:
                return _struct(properties, set(rest.get("required", ())), root)
        case {"type": str(kind), **rest} if not rest and kind in _PLAIN:
            return _PLAIN[kind]
    raise UnsayableError


def _literal(words: list[object], rest: Mapping[str, object]) -> Any:
    # By their class: to Python true is a 1.
    for kind, name in ((str, "string"), (int, "integer")):
        if all(type(word) is kind for word in words) and rest in ({}, {"type": name}):
            return Literal[tuple(words)]
    raise UnsayableError


def _struct(properties: Mapping[str, object], required: set[str], root: Mapping[str, Any]) -> Any:
    if not required <= properties.keys():
        raise UnsayableError
    fields: list[Any] = []
    # Attributes are named by their place, since a property may have any name; those with a default stand behind the others.
    for at, name in sorted(enumerate(properties), key=lambda item: item[1] not in required):
        kind = _type(properties[name], root)
        fields.append((f"f{at}", kind) if name in required else (f"f{at}", kind | msgspec.UnsetType, msgspec.UNSET))
    renamed = {f"f{at}": name for at, name in enumerate(properties)}
    return msgspec.defstruct("Answer", fields, rename=renamed, forbid_unknown_fields=True, gc=False)
