"""A JSON schema made simple to walk: references inlined, allOf merged, const as enum. Pure, best effort: a validator has the last word."""

from collections.abc import Mapping

from claude_batch_dagster.simulator.schema_rules import resolve_ref

Form = dict[str, object]
_MAX_DEPTH = 40
_MAX_BRANCHES = 64
_MAX_FORMS = 5000


class UnsatisfiableError(Exception):
    """No value can obey this schema, as far as can be seen."""


def prepare(schema: Mapping[str, object]) -> Form:
    """The whole schema in normal form, its properties and items too; optional parts that nothing obeys are left out.

    Raises:
        UnsatisfiableError: nothing obeys it, or it is too large or nested too deeply.
    """
    return _deepen(normalize(schema, schema), schema, [_MAX_FORMS], 0)


def normalize(schema: object, root: Mapping[str, object], depth: int = 0) -> Form:
    """The schema without $ref, allOf, const and oneOf; `anyOf` holds whole alternatives.

    Raises:
        UnsatisfiableError: nothing obeys it, or it is nested too deeply.
    """
    if schema is False or depth > _MAX_DEPTH:
        raise UnsatisfiableError
    if not isinstance(schema, dict):
        return {}
    form: Form = {key: value for key, value in schema.items() if key not in ("$ref", "allOf", "anyOf", "oneOf", "const")}
    if "const" in schema:
        form = merge(form, {"enum": [schema["const"]]})
    if isinstance(schema.get("$ref"), str):
        form = merge(form, normalize(resolve_ref(schema["$ref"], root), root, depth + 1))
    for branch in schema.get("allOf", ()):
        form = merge(form, normalize(branch, root, depth + 1))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            form = merge(form, {"anyOf": _alternatives(schema[keyword], root, depth)})
    if "anyOf" in form:
        return _spread(form)
    return _narrow(form)


def merge(one: Form, two: Form) -> Form:
    """What obeys both."""
    if not one or not two:
        return one or two
    out: Form = {**one, **two}
    if "anyOf" in one and "anyOf" in two:
        pairs = []
        for left in _forms(one["anyOf"]):
            for right in _forms(two["anyOf"]):
                try:
                    pairs.append(merge(left, right))
                except UnsatisfiableError:
                    continue
        if not pairs:
            raise UnsatisfiableError
        out["anyOf"] = pairs[:_MAX_BRANCHES]
    if "type" in one and "type" in two:
        out["type"] = _common_types(_names(one["type"]), _names(two["type"]))
    if "enum" in one and "enum" in two:
        out["enum"] = [value for value in _list(one["enum"]) if any(_same(value, other) for other in _list(two["enum"]))]
        if not out["enum"]:
            raise UnsatisfiableError
    if "properties" in one or "properties" in two:
        out["properties"] = _both_properties(one, two)
    if "required" in one and "required" in two:
        out["required"] = [*_list(one["required"]), *(name for name in _list(two["required"]) if name not in _list(one["required"]))]
    if "items" in one and "items" in two:
        out["items"] = {"allOf": [one["items"], two["items"]]}
    if one.get("additionalProperties") is False or two.get("additionalProperties") is False:
        out["additionalProperties"] = False
    for keyword, choose in (
        ("minItems", max),
        ("minLength", max),
        ("minimum", max),
        ("maxItems", min),
        ("maxLength", min),
        ("maximum", min),
    ):
        bounds = [bound for bound in (one.get(keyword), two.get(keyword)) if isinstance(bound, int | float)]
        if bounds:
            out[keyword] = choose(bounds)
    return out


def _deepen(form: Form, root: Mapping[str, object], budget: list[int], depth: int) -> Form:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH:
        raise UnsatisfiableError

    def deeper(schema: object) -> Form | None:
        try:
            return _deepen(normalize(schema, root), root, budget, depth + 1)
        except UnsatisfiableError:
            return None

    if "anyOf" in form:
        branches = [deep for branch in _forms(form["anyOf"]) if (deep := deeper(branch)) is not None]
        if not branches:
            raise UnsatisfiableError
        return {"anyOf": branches}
    out = dict(form)
    if "enum" in form:
        values = _list(form["enum"])
        if all(isinstance(value, str) for value in values):
            out["labels"] = tuple(values)
        elif len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            out["numbers"] = sorted(value for value in values if isinstance(value, int | float))
        return out
    if "properties" in form:
        deep_properties = {name: deeper(child) for name, child in _mapping(form["properties"]).items()}
        out["properties"] = {name: child for name, child in deep_properties.items() if child is not None}
        out["forbidden"] = [name for name, child in deep_properties.items() if child is None]
    properties, required = _mapping(out.get("properties")), _list(out.get("required"))
    # The API answers the required keys first, each group in the schema's order.
    out["first"] = [name for name in properties if name in required] + [name for name in required if name not in properties]
    out["then"] = [name for name in properties if name not in required]
    if "items" in form:
        out["items"] = deeper(form["items"])
    return out


def _spread(form: Form) -> Form:
    shared = {key: value for key, value in form.items() if key != "anyOf"}
    branches = []
    for branch in _forms(form["anyOf"]):
        try:
            branches.append(_narrow(merge(shared, branch)))
        except UnsatisfiableError:
            continue
    if not branches:
        raise UnsatisfiableError
    return {"anyOf": branches}


def _alternatives(branches: object, root: Mapping[str, object], depth: int) -> list[Form]:
    forms: list[Form] = []
    for branch in _list(branches):
        try:
            form = normalize(branch, root, depth + 1)
        except UnsatisfiableError:
            continue
        forms += _forms(form["anyOf"]) if "anyOf" in form else [form]
    if not forms:
        raise UnsatisfiableError
    return forms[:_MAX_BRANCHES]


def _narrow(form: Form) -> Form:
    if "anyOf" in form:
        return _spread(form)
    if "enum" in form and "type" in form:
        types = _names(form["type"])
        values = [value for value in _list(form["enum"]) if any(_is_type(value, name) for name in types)]
        if not values:
            raise UnsatisfiableError
        return {**form, "enum": values}
    return form


def _both_properties(one: Form, two: Form) -> Form:
    left, right = _mapping(one.get("properties")), _mapping(two.get("properties"))
    both: Form = {}
    for name in [*left, *(name for name in right if name not in left)]:
        if name in left and name in right:
            both[name] = {"allOf": [left[name], right[name]]}
        elif (name in left or one.get("additionalProperties") is not False) and (
            name in right or two.get("additionalProperties") is not False
        ):
            both[name] = left.get(name, right.get(name))
        else:
            both[name] = False
    return both


def _common_types(one: list[str], two: list[str]) -> list[str]:
    common = [name for name in one if name in two or (name == "integer" and "number" in two)]
    common += ["integer"] if "number" in one and "integer" in two and "integer" not in common else []
    if not common:
        raise UnsatisfiableError
    return common


def _is_type(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "number": (int, float),
        "null": (type(None),),
        "array": (list,),
        "object": (dict,),
    }
    return isinstance(value, kinds.get(name, ()))


def _same(one: object, two: object) -> bool:
    return one == two and isinstance(one, bool) == isinstance(two, bool)


def _names(types: object) -> list[str]:
    return [str(name) for name in types] if isinstance(types, list) else [str(types)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _forms(value: object) -> list[Form]:
    return [form for form in _list(value) if isinstance(form, dict)]


def _mapping(value: object) -> Form:
    return value if isinstance(value, dict) else {}
