"""From a Pydantic model or a JSON Schema to what structured outputs take, and to the columns that it fills.

The canonical schema is part of a request's identity: titles and defaults are dropped, keys are sorted.
Source: platform.claude.com/docs structured outputs, limits of schemas (checked 2026-11-22).
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, cast

from claude_batch_dagster.core.errors import TaskError

REFUSED_KEYWORDS = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength maxItems uniqueItems minProperties maxProperties "
    "patternProperties propertyNames not if then else dependentRequired dependentSchemas prefixItems contains".split()
)
DROPPED_KEYWORDS = frozenset(("title", "default", "examples", "$schema", "$id", "deprecated", "readOnly", "writeOnly"))
MAX_OPTIONAL_PROPERTIES = 24
MAX_UNIONS = 16
_NO_VALIDATION = frozenset(("serialization", "metadata", "default"))
"""Keywords of Pydantic's core schema below which nothing validates."""
_PREDICATE = "apply_known_metadata.<locals>.val_func"
"""What Pydantic wraps `annotated_types.Predicate` in."""


class OutputModel(Protocol):
    """A Pydantic model's class, as far as it is used here."""

    __name__: str

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """Return the model's JSON Schema."""
        ...


class FieldType(StrEnum):
    """What a column holds; `json` is the text of a value that has no column type of its own."""

    STRING = "string"
    INTEGER = "int64"
    NUMBER = "double"
    BOOLEAN = "bool"
    LIST = "list"
    STRUCT = "struct"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column, or a part of one.

    Attributes:
        item: Of a list: what it holds.
        children: Of a struct.
        required: Whether a valid answer always has a value here.
        values: Of an enum: what it may be; empty for anything.
    """

    name: str
    type: FieldType
    description: str | None = None
    item: "Field | None" = None
    children: "tuple[Field, ...]" = ()
    required: bool = True
    values: tuple[object, ...] = ()


def canonical_schema(task_name: str, output: "type[OutputModel] | Mapping[str, object]") -> dict[str, object]:
    """Return the schema as it goes to the API.

    Raises:
        TaskError: Terminal. The API would refuse the schema, or it is no object's.
    """
    schema = _source_schema(task_name, output)
    if schema.get("type") != "object" or not schema.get("properties"):
        raise TaskError(
            f"Task {task_name!r}: the output schema is not an object with properties. Nothing was sent. "
            "Wrap it: its properties become the output's columns."
        )
    canonical = cast(dict[str, object], _canonical(task_name, schema, "$", at_schema=True))
    _refuse_missing_definitions(task_name, canonical)
    _refuse_recursion(task_name, canonical)
    optional = sum(
        len(set(cast(dict[str, object], node.get("properties", {}))) - set(cast(list[str], node.get("required", []))))
        for node in _nodes(canonical)
    )
    if optional > MAX_OPTIONAL_PROPERTIES:
        raise TaskError(
            f"Task {task_name!r}: the schema has {optional} optional properties; the API takes {MAX_OPTIONAL_PROPERTIES}. Nothing was sent. Make more of them required."
        )
    unions = sum(1 for node in _nodes(canonical) if "anyOf" in node or isinstance(node.get("type"), list))
    if unions > MAX_UNIONS:
        raise TaskError(
            f"Task {task_name!r}: the schema has {unions} unions; the API takes {MAX_UNIONS}. Nothing was sent. Make fewer properties nullable."
        )
    return canonical


def schema_fields(task_name: str, output: "type[OutputModel] | Mapping[str, object]") -> tuple[Field, ...]:
    """Return the columns that answers of this schema fill, in the order of its properties."""
    schema = _source_schema(task_name, output)
    return _object_fields(schema, schema)


def _source_schema(task_name: str, output: "type[OutputModel] | Mapping[str, object]") -> dict[str, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if not hasattr(output, "model_json_schema"):
        raise TaskError(
            f"Task {task_name!r}: output is {output!r}. Nothing was sent. Give a Pydantic model's class, a JSON Schema as a dict, or None for plain text."
        )
    schema = output.model_json_schema()
    custom = list(dict.fromkeys(_find_validators(getattr(output, "__pydantic_core_schema__", None))))
    if custom:
        raise TaskError(
            f"Task {task_name!r}: {output.__name__} has validators of its own ({', '.join(custom)}). They would not run: answers are validated "
            "by JSON Schema, in the worker. Nothing was sent. Say it in the schema (an enum, a pattern), or check the output asset."
        )
    return schema


def _find_validators(node: object) -> Iterator[str]:
    """Yield the names of functions that Pydantic would call, other than its own, anywhere below a node of its core schema.

    Decorated methods, `Annotated` validators, nested models and types of the user's own all end there.
    """
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _find_validators(item)
    if not isinstance(node, Mapping):
        return
    if str(node.get("type")).startswith("function-"):
        found = node["function"]
        name = _own_name(found["function"] if isinstance(found, Mapping) else found)
        if name is not None:
            yield name
    for keyword, child in node.items():
        if keyword not in _NO_VALIDATION:
            yield from _find_validators(child)


def _own_name(function: Any) -> str | None:
    """Return the name of a user's function, None for one of Pydantic's own."""
    function = getattr(function, "func", function)
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    if name == _PREDICATE:
        return "Predicate"
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    # Types of the standard library are checked by calling their class.
    if package in ("pydantic", "pydantic_core") or (isinstance(function, type) and package in sys.stdlib_module_names - {"builtins"}):
        return None
    return name.rpartition("<locals>.")[2]


def _canonical(task_name: str, node: object, path: str, *, at_schema: bool) -> object:
    """Sort and clean a schema; `at_schema` is false where the keys are names (of properties, of definitions) and not keywords."""
    if isinstance(node, list):
        return [_canonical(task_name, item, f"{path}[{i}]", at_schema=at_schema) for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if not at_schema:
        return {str(name): _canonical(task_name, node[name], f"{path}.{name}", at_schema=True) for name in sorted(node)}
    clean: dict[str, object] = {}
    for keyword in sorted(node, key=lambda k: "anyOf" if k == "oneOf" else k):
        value = node[keyword]
        if keyword in DROPPED_KEYWORDS:
            continue
        if keyword in REFUSED_KEYWORDS or (keyword == "minItems" and value not in (0, 1)):
            raise TaskError(
                f"Task {task_name!r}: the output schema uses {keyword!r} at {path}, which structured outputs do not take. Nothing was sent. "
                "Leave it out, or say it as an enum or in the description."
            )
        if keyword == "$ref" and not str(value).startswith("#/$defs/"):
            raise TaskError(
                f"Task {task_name!r}: the output schema refers to {value!r} at {path}; only '#/$defs/...' works. Nothing was sent. Move the definition into $defs."
            )
        if keyword == "allOf" and any("$ref" in branch for branch in value):
            raise TaskError(
                f"Task {task_name!r}: the output schema has a $ref inside allOf at {path}, which structured outputs do not take. Nothing was sent. Write the $ref alone."
            )
        free = node.get("type") == "object" and not node.get("properties") and value is True
        if keyword == "additionalProperties" and (free or value not in (False, True)):
            raise TaskError(
                f"Task {task_name!r}: the output schema has free keys at {path} (additionalProperties). Nothing was sent. Use a list of objects with a name and a value."
            )
        if keyword in ("enum", "const", "required", "description", "type"):
            clean[keyword] = sorted(value) if keyword == "required" else value
        else:
            clean["anyOf" if keyword == "oneOf" else keyword] = _canonical(
                task_name, value, f"{path}.{keyword}", at_schema=keyword not in ("properties", "$defs")
            )
    if clean.get("type") == "object" or "properties" in clean:
        clean["additionalProperties"] = False
    return dict(sorted(clean.items()))


def _nodes(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    if isinstance(node, (dict, list)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _nodes(child)


def _refuse_missing_definitions(task_name: str, schema: dict[str, Any]) -> None:
    wanted = {str(node["$ref"]).removeprefix("#/$defs/") for node in _nodes(schema) if isinstance(node.get("$ref"), str)}
    missing = sorted(wanted - set(schema.get("$defs", {})))
    if missing:
        raise TaskError(
            f"Task {task_name!r}: the output schema refers to '#/$defs/{missing[0]}', which is not there. Nothing was sent. Define it in $defs."
        )


def _refuse_recursion(task_name: str, schema: dict[str, Any]) -> None:
    uses = {
        name: {str(node["$ref"]).rpartition("/")[2] for node in _nodes(part) if "$ref" in node}
        for name, part in schema.get("$defs", {}).items()
    }
    for start in uses:
        reached, frontier = set[str](), set(uses[start])
        while frontier:
            reached |= frontier
            frontier = {name for found in frontier for name in uses.get(found, set())} - reached
        if start in reached:
            raise TaskError(
                f"Task {task_name!r}: the output schema is recursive ({start} contains itself), which structured outputs do not take. Nothing was sent. Unfold it to a fixed depth."
            )


def _object_fields(schema: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[Field, ...]:
    required = set(schema.get("required", ()))
    return tuple(_field(name, node, root, required=name in required) for name, node in schema["properties"].items())


def _field(name: str, node: Mapping[str, Any], root: Mapping[str, Any], *, required: bool) -> Field:
    description = node.get("description")
    node, nullable = _without_null(node, root)
    description = description or node.get("description")
    kind = node.get("type")
    values = node.get("enum", [node["const"]] if "const" in node else [])
    if kind is None and values and all(isinstance(value, str) for value in values):
        kind = "string"
    plain = {"string": FieldType.STRING, "integer": FieldType.INTEGER, "number": FieldType.NUMBER, "boolean": FieldType.BOOLEAN}
    required = required and not nullable
    if isinstance(kind, str) and kind in plain:
        allowed = tuple(value for value in values if value is not None)
        return Field(name=name, type=plain[kind], description=description, required=required, values=allowed)
    if kind == "array" and isinstance(node.get("items"), Mapping):
        return Field(
            name=name,
            type=FieldType.LIST,
            description=description,
            item=_field("item", node["items"], root, required=True),
            required=required,
        )
    if kind == "object" and node.get("properties"):
        return Field(name=name, type=FieldType.STRUCT, description=description, children=_object_fields(node, root), required=required)
    return Field(name=name, type=FieldType.JSON, description=description, required=required)


def _without_null(node: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Follow references, and take `null` out of a union of one other type with it."""
    nullable = False
    while True:
        if "$ref" in node:
            node = root.get("$defs", {})[node["$ref"].rpartition("/")[2]]
        elif len(node.get("allOf", ())) == 1:
            node = node["allOf"][0]
        elif isinstance(node.get("type"), list):
            others = [kind for kind in node["type"] if kind != "null"]
            nullable = nullable or len(others) < len(node["type"])
            node = {**node, "type": others[0] if len(others) == 1 else "mixed"}
            return node, nullable
        elif branches := node.get("anyOf", node.get("oneOf")):
            others = [branch for branch in branches if branch.get("type") != "null"]
            nullable = nullable or len(others) < len(branches)
            if len(others) != 1:
                return {}, nullable
            node = others[0]
        else:
            return node, nullable
