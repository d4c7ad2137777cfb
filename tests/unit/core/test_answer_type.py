"""core/answer_type.py: types that take what their schemas take, against the validator."""

import json
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.answer_type import answer_type
from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.response import Decoder, read_result_lines

HAIKU = "claude-haiku-5-5"
NAMES = ("a", "b", "a b", "class", "é")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, 1.0, -0.0, 0.5, 1e22, 2.0**53])
    | st.sampled_from(["", "a", "b", "A", "\n", '"]\n["', "é\U0001f600"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))


def make_object(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(required & properties.keys()), "additionalProperties": False}


LEAVES = st.sampled_from(
    [
        *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null")),
        {"type": ["string", "null"]},
        {"type": ["integer", "number"], "description": "either"},
        {"type": "string", "enum": ["a", "b"]},
        {"enum": [0, 1]},
        {"const": "a"},
        {"$ref": "#/$defs/word"},
        {"$ref": "#/$defs/pair", "description": "two"},
    ]
)
NODES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(make_object, st.dictionaries(st.sampled_from(NAMES), inner, max_size=4), st.sets(st.sampled_from(NAMES)))
        | st.builds(lambda node: {"anyOf": [node, {"type": "null"}]}, inner)
        | st.builds(lambda *nodes: {"anyOf": list(nodes)}, inner, inner)
    ),
    max_leaves=6,
)
DEFINITIONS = {"word": {"type": "string", "enum": ["a", "é\U0001f600"]}, "pair": make_object({"a": {"type": "integer"}, "b": {}}, {"a"})}
DEFINITIONS["pair"]["properties"]["b"] = {"$ref": "#/$defs/word"}
SCHEMAS = st.builds(
    lambda properties, required: make_object(properties, required) | {"$defs": DEFINITIONS},
    st.dictionaries(st.sampled_from(NAMES), NODES, min_size=1, max_size=4),
    st.sets(st.sampled_from(NAMES)),
)


def answers_of(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values near those that a schema takes: most are, some break one rule somewhere."""
    match node:
        case {"$ref": reference}:
            near = answers_of(DEFINITIONS[reference.rpartition("/")[2]])
        case {"anyOf": options}:
            near = st.one_of([answers_of(option) for option in options])
        case {"enum": words}:
            near = st.sampled_from(words)
        case {"const": word}:
            near = st.just(word)
        case {"items": items}:
            near = st.lists(answers_of(items), max_size=3)
        case {"properties": properties, "required": required}:
            wanted = {name: answers_of(inner) for name, inner in properties.items()}
            near = st.fixed_dictionaries(
                {name: wanted[name] for name in required}, optional={name: wanted[name] for name in wanted.keys() - set(required)}
            )
        case _:
            near = SCALARS
    return st.integers(0, 19).flatmap(lambda chance: VALUES if chance == 0 else near)


@given(st.data(), SCHEMAS)
def test_what_a_type_takes_its_schema_takes_and_nothing_of_it_is_lost(data: st.DataObject, schema: dict[str, Any]) -> None:
    kind = answer_type(schema)
    if kind is None:
        return
    value = data.draw(answers_of(schema) | VALUES)
    try:
        taken = msgspec.json.decode(json.dumps(value), type=kind)
    except msgspec.ValidationError:
        return
    assert jsonschema_rs.validator_for(schema).is_valid(value)
    # As JSON, in which 1 is not 1.0: its own order of names is all that an answer loses.
    assert json.dumps(json.loads(msgspec.json.encode(taken)), sort_keys=True) == json.dumps(value, sort_keys=True)


@given(st.data(), SCHEMAS)
def test_an_answer_is_the_same_whichever_way_it_is_read(data: st.DataObject, schema: dict[str, Any]) -> None:
    """The one by one way is asked what the many at once say; what is valid is an answer, what is not is none."""
    decoder, validator = Decoder({"schema": schema, "max_tokens": 10}, lambda model, **tokens: 1), jsonschema_rs.validator_for(schema)
    values = data.draw(st.lists(answers_of(schema), max_size=4))
    texts = [json.dumps(value) for value in values]
    lines = [
        {
            "custom_id": "x",
            "result": {
                "type": "succeeded",
                "message": {
                    "model": HAIKU,
                    "content": [{"type": "text", "text": text}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 1, "output_tokens": 1},
                },
            },
        }
        for text in texts
    ]
    results = [line.result for line in read_result_lines(b"\n".join(json.dumps(line).encode() for line in lines)) if line is not None]
    assert len(results) == len(texts)
    read = decoder.read_answers(results)
    together = dict(zip(read.rows, read.content.split(b"\n"), strict=False))
    for row, (value, result) in enumerate(zip(values, results, strict=True)):
        alone = decoder.decode_result(bytes(16), result).answer
        if validator.is_valid(value):
            assert alone is not None
            assert json.loads(alone) == value
        if row in together:
            assert together[row].decode() == alone


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1), st.text())
def test_plain_answers_need_no_validator(number: int, weight: float, text: str) -> None:
    properties = {
        "number": {"type": "integer"},
        "weight": {"type": "number"},
        "rest": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
    kind = answer_type(make_object(properties | {"text": {"type": "string"}}, {"number", "weight", "text"}))
    value = {"number": number, "text": text, "weight": weight}
    content = msgspec.json.encode(value)
    assert json.loads(msgspec.json.encode(msgspec.json.decode(content, type=kind))) == json.loads(content)


def test_the_presets_have_types() -> None:
    tasks = (
        Summarize(name="summaries", column="text", model=HAIKU),
        Moderate(name="labels", column="text", model=HAIKU, labels=("ok", "spam")),
    )
    for task in tasks:
        assert task.schema is not None
        assert answer_type(task.schema) is not None


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "string", "pattern": "^a"},
        {"type": "string", "format": "date"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array"},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"type": "object", "properties": {"a": True}, "additionalProperties": False},
        make_object({"a": {"type": "string"}}, set()) | {"required": ["b"]},
        make_object({'a"b': {"type": "string"}}, set()),
        {"anyOf": [make_object({"a": {"type": "string"}}, set()), make_object({"b": {"type": "string"}}, set())]},
        {"allOf": [{"type": "string"}]},
        {"enum": [True, 1]},
        {"enum": ["a", None]},
        {"enum": [2**70]},
        {"enum": []},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#/$defs/endless"},
        {},
    ],
    ids=str,
)
def test_what_no_type_can_say_is_left_to_the_validator(rule: dict[str, Any]) -> None:
    endless = {"endless": {"type": "array", "items": {"$ref": "#/$defs/endless"}}}
    assert answer_type(make_object({"a": rule}, {"a"}) | {"$defs": endless}) is None
