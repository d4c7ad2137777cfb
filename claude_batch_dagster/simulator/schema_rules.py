"""Which JSON schemas structured outputs refuse. Pure.

Source: facts/anthropic-batches.md, section 4 (structured outputs).
"""

import re
from collections.abc import Iterator, Mapping

MAX_OPTIONAL_PARAMS = 24
MAX_UNION_PARAMS = 16
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})
TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
# What `minimum` and the like would ask of a grammar is not supported; annotations are.
_UNSUPPORTED = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "contentEncoding", "contentMediaType"),
    "array": ("maxItems", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems", "unevaluatedItems", "additionalItems"),
    "object": (
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
    ),
    "any": ("oneOf", "not", "if", "then", "else", "$dynamicRef", "$recursiveRef"),
}
_HARD_PATTERN = re.compile(r"\\[1-9bB]|\(\?[=!<]|\\[pP]\{")

Schema = Mapping[str, object]


def refuse_schema(schema: object) -> str | None:
    """Why the API does not accept this output schema, None when it does."""
    if not isinstance(schema, dict):
        return "output_config.format.schema: Input should be a valid dictionary"
    try:
        parts = list(_walk(schema, schema, ()))
    except _RefusedError as refusal:
        return f"output_config.format.schema: {refusal}"
    optional = sum(len(properties) - len(required) for part in parts for properties, required in [_properties(part)])
    if optional > MAX_OPTIONAL_PARAMS:
        return f"output_config.format.schema: Too many optional parameters ({optional}), the limit is {MAX_OPTIONAL_PARAMS}"
    unions = sum("anyOf" in part or isinstance(part.get("type"), list) for part in parts)
    if unions > MAX_UNION_PARAMS:
        return f"output_config.format.schema: Too many parameters with union types ({unions}), the limit is {MAX_UNION_PARAMS}"
    return None


class _RefusedError(Exception):
    pass


def _properties(part: Schema) -> tuple[dict[str, object], set[str]]:
    properties = part.get("properties")
    required = part.get("required")
    names = dict(properties) if isinstance(properties, dict) else {}
    return names, {name for name in required if isinstance(name, str) and name in names} if isinstance(required, list) else set()


def _walk(part: object, root: Schema, refs: tuple[str, ...], *, in_all_of: bool = False) -> Iterator[Schema]:
    if isinstance(part, bool):
        raise _RefusedError("Boolean schemas are not supported")
    if not isinstance(part, dict):
        raise _RefusedError("A schema should be an object")
    for kind, keywords in _UNSUPPORTED.items():
        for keyword in keywords:
            if keyword in part:
                raise _RefusedError(f"For '{kind}' type, property '{keyword}' is not supported")
    yield part
    _check_values(part)
    if "$ref" in part:
        if in_all_of:
            raise _RefusedError("'$ref' within 'allOf' is not supported")
        yield from _walk_ref(part["$ref"], root, refs)
    for keyword in ("anyOf", "allOf"):
        branches = part.get(keyword, [])
        if not isinstance(branches, list) or (keyword in part and not branches):
            raise _RefusedError(f"'{keyword}' should be a non-empty array")
        for branch in branches:
            yield from _walk(branch, root, refs, in_all_of=in_all_of or keyword == "allOf")
    properties = part.get("properties", {})
    if not isinstance(properties, dict):
        raise _RefusedError("'properties' should be an object")
    for child in properties.values():
        yield from _walk(child, root, refs)
    if "items" in part:
        yield from _walk(part["items"], root, refs)


def _walk_ref(ref: object, root: Schema, refs: tuple[str, ...]) -> Iterator[Schema]:
    if not isinstance(ref, str) or not ref.startswith("#"):
        raise _RefusedError(f"External $ref '{ref}' is not supported")
    if ref in refs or ref == "#":
        raise _RefusedError(f"Recursive schemas are not supported ('{ref}')")
    target = resolve_ref(ref, root)
    if target is None:
        raise _RefusedError(f"$ref '{ref}' cannot be resolved")
    yield from _walk(target, root, (*refs, ref))


def resolve_ref(ref: str, root: Schema) -> object:
    """What a local JSON pointer names, None when there is nothing."""
    here: object = root
    for step in ref.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(here, dict) or key not in here:
            return None
        here = here[key]
    return here


def _check_values(part: Schema) -> None:
    declared = part.get("type")
    types = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(isinstance(name, str) and name in TYPES for name in types) or declared == []:
        raise _RefusedError(f"'type' should be one of {', '.join(sorted(TYPES))}, not {declared!r}")
    if ("object" in types or "properties" in part) and part.get("additionalProperties") is not False:
        raise _RefusedError("For 'object' type, 'additionalProperties' must be explicitly set to false")
    if "enum" in part:
        values = part["enum"]
        if not isinstance(values, list) or not values or any(isinstance(value, dict | list) for value in values):
            raise _RefusedError("'enum' should be a non-empty array of scalars")
    least = part.get("minItems", 0)
    if least not in (0, 1) or isinstance(least, bool):
        raise _RefusedError(f"For 'array' type, 'minItems' values other than 0 or 1 are not supported, not {least!r}")
    text_format = part.get("format")
    if "string" in types and text_format is not None and text_format not in tuple(FORMATS):
        raise _RefusedError(f"For 'string' type, format '{text_format}' is not supported")
    pattern = part.get("pattern")
    if pattern is not None and (not isinstance(pattern, str) or _HARD_PATTERN.search(pattern)):
        raise _RefusedError(f"For 'string' type, pattern {pattern!r} is not supported")
