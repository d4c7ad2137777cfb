"""Answers become the same columns whichever way they are decoded."""

import json
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from claude_batch_dagster.core.presets import Moderate
from claude_batch_dagster.core.schema import Field, FieldType
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answer_columns import AnswerColumns, arrow_field

HAIKU = "claude-haiku-5-5"


class Part(BaseModel):
    word: str
    weight: float


class Everything(BaseModel):
    text: str
    count: int
    score: float
    good: bool
    nothing: str | None
    words: list[str]
    parts: list[Part]
    part: Part | None
    either: int | str


EVERYTHING = ClaudeTask(name="everything", model=HAIKU, prompt="{text}", max_tokens=5, output=Everything)


def test_fields_of_a_task_become_columns_of_their_types() -> None:
    types = {field.name: str(arrow_field(field).type) for field in EVERYTHING.fields}
    part = "struct<word: string, weight: double>"
    assert types == {
        "text": "string",
        "count": "int64",
        "score": "double",
        "good": "bool",
        "nothing": "string",
        "words": "list<item: string>",
        "parts": f"list<item: {part}>",
        "part": part,
        "either": "string",
    }
    labels = Moderate(name="m", column="text", model=HAIKU, labels=("a", "b"))
    assert [(f.name, str(arrow_field(f).type)) for f in labels.fields] == [
        ("label", "string"),
        ("categories", "list<item: string>"),
        ("severity", "int64"),
        ("reason", "string"),
    ]


def read_by_hand(answer: dict[str, Any] | None, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return what stands in an answer's columns; raise OverflowError where a number has no room."""
    return {field.name: fit(None if answer is None else answer.get(field.name), field) for field in fields}


def fit(value: Any, field: Field) -> Any:
    if value is None:
        return None
    match field.type:
        case FieldType.JSON:
            return msgspec.json.encode(value, order="sorted").decode()
        case FieldType.INTEGER:
            if not -(2**63) <= int(value) < 2**63:
                raise OverflowError
            return int(value)
        case FieldType.NUMBER:
            return float(value)
        case FieldType.LIST:
            assert field.item is not None
            return [fit(item, field.item) for item in value]
        case FieldType.STRUCT:
            return read_by_hand(value, field.children)
        case _:
            return value


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([10**400, 2**63, -(2**63), 3.0])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2)
)
PROPERTIES = {
    'name with " quotes': ({"type": "string"}, TEXT),
    "name é ": ({"type": "string"}, TEXT),
    "count": ({"type": "integer"}, NUMBERS),
    "score": ({"type": "number"}, NUMBERS),
    "good": ({"type": "boolean"}, st.booleans()),
    "counts": ({"type": "array", "items": {"type": ["integer", "null"]}}, st.lists(st.none() | NUMBERS, max_size=3)),
    "lists": (
        {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        st.lists(st.none() | st.lists(st.none() | TEXT, max_size=2), max_size=2),
    ),
    "either": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, JSON),
    "eithers": ({"type": "array", "items": {}}, st.lists(JSON, max_size=3)),
}
PART = {
    "type": "object",
    "properties": {"count": PROPERTIES["count"][0], "either": PROPERTIES["either"][0], "list": PROPERTIES["counts"][0]},
}
PARTS = st.fixed_dictionaries({}, optional={"count": st.none() | NUMBERS, "either": JSON, "list": st.none() | PROPERTIES["counts"][1]})
PROPERTIES |= {"part": (PART, PARTS), "parts": ({"type": "array", "items": PART}, st.lists(st.none() | PARTS, max_size=3))}


@given(data=st.data(), names=st.sets(st.sampled_from(sorted(PROPERTIES)), min_size=1))
def test_columns_hold_what_a_plain_reading_of_the_answers_finds(data: st.DataObject, names: set[str]) -> None:
    task = ClaudeTask(
        name="t",
        model=HAIKU,
        prompt="{text}",
        max_tokens=5,
        output={"type": "object", "properties": {name: PROPERTIES[name][0] for name in sorted(names)}},
    )
    one = st.fixed_dictionaries({}, optional={name: st.none() | PROPERTIES[name][1] for name in names} | {"another": JSON})
    answers = data.draw(st.lists(st.none() | one, max_size=6))
    expected, out_of_range = [], []
    for at, answer in enumerate(answers):
        try:
            expected.append(read_by_hand(answer, task.fields))
        except OverflowError:
            expected.append(read_by_hand(None, task.fields))
            out_of_range.append(at)

    found = AnswerColumns(task.fields).read([None if one is None else to_bytes(one) for one in answers])

    assert found.out_of_range == out_of_range
    for field, column in zip(task.fields, found.columns, strict=True):
        assert column.type == arrow_field(field).type
        column.validate(full=True)
        assert repr(column.to_pylist()) == repr([row[field.name] for row in expected])


def to_bytes(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode()


def test_answers_fill_columns_of_every_type() -> None:
    value = {
        "text": "é\x00\u2028🎉שלום\n",
        "count": 2**62,
        "score": 3,
        "good": False,
        "nothing": None,
        "words": [],
        "parts": [{"word": "a", "weight": 1}, {"word": "b", "weight": 0.5}],
        "part": None,
        "either": {"b": 1, "a": [None]},
    }
    answers = [value, {**value, "count": 3.0, "nothing": "x", "either": "y"}]
    found = AnswerColumns(EVERYTHING.fields).read([to_bytes(one) for one in answers])
    first, second = pa.table(found.columns, [field.name for field in EVERYTHING.fields]).to_pylist()
    assert first == {**value, "either": '{"a":[null],"b":1}'}
    assert (second["count"], second["nothing"], second["either"]) == (3, "x", '"y"')


COUNT = (Field(name="count", type=FieldType.INTEGER), Field(name="score", type=FieldType.NUMBER))


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('{"count":1e3,"score":-0}', {"count": 1000, "score": 0.0}),
        ('{"count":-0.0,"score":-0.0}', {"count": 0, "score": -0.0}),
        ('{"count":true,"score":false}', {"count": 1, "score": 0.0}),
        ('{"count":"7","score":"x"}', {"count": None, "score": None}),
        ('{"count":1,"count":2,"sc\\u006fre":3}', {"count": 2, "score": 3.0}),
    ],
)
def test_what_a_typed_reading_refuses_is_read_as_before(text: str, row: dict[str, Any]) -> None:
    found = AnswerColumns(COUNT).read([text.encode()])
    assert repr({"count": found.columns[0][0].as_py(), "score": found.columns[1][0].as_py()}) == repr(row)
    assert found.out_of_range == []


@pytest.mark.parametrize("name", ["plain", 'with "quotes"', "with\nbreak", "back\\slash"])
def test_a_field_of_any_name_is_found_and_refuses_what_it_has_no_room_for(name: str) -> None:
    fields = (Field(name=name, type=FieldType.INTEGER),)
    found = AnswerColumns(fields).read([to_bytes({name: value}) for value in (1, 2**63, None, -3)])
    assert found.columns[0].to_pylist() == [1, None, None, -3]
    assert found.out_of_range == [1]


@pytest.mark.parametrize("text", ["", "{", "nothing"])
def test_a_stored_answer_that_is_no_json_is_no_empty_row(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        AnswerColumns(COUNT).read([text.encode()])


def test_no_answers_are_columns_of_their_types() -> None:
    columns = AnswerColumns(EVERYTHING.fields).read([]).columns
    assert pa.schema([arrow_field(field) for field in EVERYTHING.fields]).types == [column.type for column in columns]
