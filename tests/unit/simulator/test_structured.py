import re

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.simulator.patterns import match_pattern
from claude_batch_dagster.simulator.reading import read_prompt
from claude_batch_dagster.simulator.schema_rules import refuse_schema
from claude_batch_dagster.simulator.structured import TooComplexError, compile_schema

FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"]
NAMES = ["summary", "label", "categories", "severity", "reason", "score", "is_spam", "x", "name"]
LABELS = ["ok", "spam", "hate", "positive", "negative", "Neutral", "a", "", "ü"]

scalars = st.one_of(st.sampled_from(LABELS), st.integers(-5, 5), st.booleans(), st.none())
leaves = st.one_of(
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind}),
    st.lists(st.sampled_from(["string", "integer", "null", "boolean"]), min_size=1, max_size=3, unique=True).map(
        lambda kinds: {"type": kinds}
    ),
    st.sampled_from(FORMATS).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from([r"^[A-Z]{2,4}-\d+$", r"^(foo|ba[rz])$", r"\w+@\w+\.com", r"^#[0-9a-f]{6}$"]).map(
        lambda p: {"type": "string", "pattern": p}
    ),
    st.lists(scalars, min_size=1, max_size=5).map(lambda values: {"enum": values}),
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=4, unique=True).map(lambda values: {"type": "string", "enum": values}),
    scalars.map(lambda value: {"const": value}),
    st.sampled_from(["#/$defs/word", "#/$defs/pair"]).map(lambda ref: {"$ref": ref}),
)


def objects(children):
    def build(properties, drawn):
        required = [name for name, wanted in zip(properties, drawn, strict=False) if wanted]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(build, st.dictionaries(st.sampled_from(NAMES), children, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))


def wider(children):
    return st.one_of(
        objects(children),
        st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, children, st.integers(0, 1)),
        st.lists(children, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
        leaves.filter(lambda leaf: "$ref" not in leaf).map(lambda leaf: {"allOf": [leaf, {"description": "one more"}]}),
    )


schemas = st.recursive(leaves, wider, max_leaves=8).map(
    lambda schema: {
        **schema,
        "$defs": {
            "word": {"type": "string"},
            "pair": {"type": "object", "properties": {"a": {"$ref": "#/$defs/word"}}, "required": ["a"], "additionalProperties": False},
        },
    }
)


@settings(max_examples=250, deadline=None)
@given(schema=schemas, text=st.text(min_size=1, max_size=60), seed=st.integers(0, 2**64 - 1))
def test_answer_obeys_any_schema(schema, text, seed):
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    if refuse_schema(schema) is not None:
        return
    assert validator.is_valid(compile_schema(schema).answer(read_prompt("", text, seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 4},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "integer", "multipleOf": 7, "minimum": 1},
        {"type": "string", "minLength": 30, "maxLength": 31},
        {"type": "array", "items": {"type": "string"}, "minItems": 4, "maxItems": 5},
        {"type": "object"},
        {"type": "object", "required": ["a"]},
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        {"properties": {"next": {"$ref": "#"}, "value": {"type": "string"}}, "required": ["value"]},
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "string"}}},
                {"required": ["a", "b"], "properties": {"b": {"const": 3}}},
            ]
        },
        {"type": ["string", "integer"], "anyOf": [{"enum": [3]}, {"type": "boolean"}]},
    ],
)
def test_tool_schemas_beyond_structured_outputs_are_obeyed_too(schema):
    answers = compile_schema(schema)
    validator = jsonschema_rs.Draft202012Validator(schema)
    for seed in range(50):
        assert validator.is_valid(answers.answer(read_prompt("", "Some text. More of it.", seed << 20)))


@pytest.mark.parametrize("schema", [{"type": "string", "enum": [1]}, {"allOf": [{"type": "string"}, {"type": "null"}]}, {"type": 3}])
def test_schema_without_an_answer_is_too_complex(schema):
    with pytest.raises(TooComplexError):
        compile_schema(schema)


MODERATION = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["ok", "spam", "harassment"]},
        "categories": {"type": "array", "items": {"type": "string", "enum": ["ok", "spam", "harassment"]}},
        "severity": {"type": "integer", "enum": [0, 1, 2, 3]},
        "reason": {"type": "string", "description": "At most 10 words."},
    },
    "required": ["label", "categories", "severity", "reason"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "label", "categories"),
    [
        ("The remote broke after a week.", "ok", ["ok"]),
        ("You idiot, shut up.", "harassment", ["harassment"]),
        ("click http://x", "spam", ["spam"]),
    ],
)
@pytest.mark.parametrize("order", [["label", "categories"], ["categories", "label"]])
def test_moderation_is_consistent_with_the_text(text, label, categories, order):
    names = [*order, "severity", "reason"]
    schema = MODERATION | {"properties": {name: MODERATION["properties"][name] for name in names}, "required": sorted(names)}
    answer = compile_schema(schema).answer(read_prompt("", f"Moderate this text:\n{text}", 5))
    assert isinstance(answer, dict)
    assert (answer["label"], answer["categories"]) == (label, categories)
    assert (answer["severity"] == 0) == (label == "ok")
    assert answer["reason"].startswith("[simulated] ")
    assert len(answer["reason"].split()) <= 10
    assert list(answer) == names


@pytest.mark.parametrize("order", [["sentiment", "topics"], ["topics", "sentiment"]])
def test_topics_are_those_that_the_text_names_whatever_the_sentiment(order):
    fields = {
        "topics": {"type": "array", "items": {"type": "string", "enum": ["picture", "sound", "price"]}},
        "sentiment": {"type": "string", "enum": ["positive", "negative"]},
    }
    schema = {"type": "object", "properties": {name: fields[name] for name in order}, "required": order, "additionalProperties": False}
    form = compile_schema(schema)

    assert form.answer(read_prompt("", "I love the picture, and the price.", 5)) == {
        "topics": ["picture", "price"],
        "sentiment": "positive",
    }
    unnamed = form.answer(read_prompt("", "Terrible. It broke.", 5))
    assert isinstance(unnamed, dict)
    assert len(unnamed["topics"]) == 1


@pytest.mark.parametrize(
    ("text", "label"), [("I love it, excellent.", "positive"), ("Terrible. It broke.", "negative"), ("A box.", "neutral")]
)
def test_sentiment_follows_the_words(text, label):
    schema = compile_schema({"type": "string", "enum": ["negative", "neutral", "positive"]})
    assert schema.answer(read_prompt("", text, 3)) == label


@given(seed=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("pattern", [r"^a{2,3}(?:b|c)?$", r"^[^a-c]+$", r"^\d{4}-\d{2}$", r"^.*x$", r"^[\w.-]+/[a-z]*$", r"^(ab)+\.$"])
def test_simple_patterns_are_matched(pattern, seed):
    text = match_pattern(pattern, read_prompt("", "x", seed).roll)
    assert text is not None
    assert re.search(pattern, text)


@pytest.mark.parametrize("pattern", [r"(a)\1", "a{3", "[a", "(a", r"(?=a)b", "*a", r"\bword"])
def test_hard_patterns_are_left_alone(pattern):
    assert match_pattern(pattern, lambda salt, sides: 0) is None
