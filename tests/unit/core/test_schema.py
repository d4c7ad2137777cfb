import re
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from functools import partial
from ipaddress import IPv4Address
from pathlib import PurePath
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from annotated_types import Predicate
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WrapValidator,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.schema import Field as Column
from claude_batch_dagster.core.schema import FieldType, canonical_schema, schema_fields


class Tone(Enum):
    GOOD = "good"
    BAD = "bad"


class Place(BaseModel):
    city: str
    floor: int = 0


class Everything(BaseModel):
    """All that a column can be."""

    title: str = Field(title="A title", description="Its headline.")
    stars: int
    weight: float
    spam: bool
    tone: Tone
    kind: Literal["a", "b"]
    nothing: str | None
    words: list[str]
    rooms: list[Place]
    place: Place
    elsewhere: Place | None = None
    on: date
    either: int | str
    default: str = "x"


def wrap(node: object, **more: object) -> dict[str, object]:
    return {"type": "object", "properties": {"field": node}, "required": ["field"], **more}


def test_a_model_becomes_a_canonical_schema() -> None:
    place = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "floor": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert canonical_schema("t", Everything) == {
        "$defs": {"Place": place, "Tone": {"enum": ["good", "bad"], "type": "string"}},
        "additionalProperties": False,
        "description": "All that a column can be.",
        "properties": {
            "default": {"type": "string"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "elsewhere": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
            "kind": {"enum": ["a", "b"], "type": "string"},
            "nothing": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "on": {"format": "date", "type": "string"},
            "place": {"$ref": "#/$defs/Place"},
            "rooms": {"items": {"$ref": "#/$defs/Place"}, "type": "array"},
            "spam": {"type": "boolean"},
            "stars": {"type": "integer"},
            "title": {"description": "Its headline.", "type": "string"},
            "tone": {"$ref": "#/$defs/Tone"},
            "weight": {"type": "number"},
            "words": {"items": {"type": "string"}, "type": "array"},
        },
        "required": sorted(set(Everything.model_fields) - {"elsewhere", "default"}),
        "type": "object",
    }


def test_a_model_becomes_columns_in_the_order_of_its_fields() -> None:
    place = (Column(name="city", type=FieldType.STRING), Column(name="floor", type=FieldType.INTEGER, required=False))
    assert schema_fields("t", Everything) == (
        Column(name="title", type=FieldType.STRING, description="Its headline."),
        Column(name="stars", type=FieldType.INTEGER),
        Column(name="weight", type=FieldType.NUMBER),
        Column(name="spam", type=FieldType.BOOLEAN),
        Column(name="tone", type=FieldType.STRING, values=("good", "bad")),
        Column(name="kind", type=FieldType.STRING, values=("a", "b")),
        Column(name="nothing", type=FieldType.STRING, required=False),
        Column(name="words", type=FieldType.LIST, item=Column(name="item", type=FieldType.STRING)),
        Column(name="rooms", type=FieldType.LIST, item=Column(name="item", type=FieldType.STRUCT, children=place)),
        Column(name="place", type=FieldType.STRUCT, children=place),
        Column(name="elsewhere", type=FieldType.STRUCT, children=place, required=False),
        Column(name="on", type=FieldType.STRING),
        Column(name="either", type=FieldType.JSON),
        Column(name="default", type=FieldType.STRING, required=False),
    )


@pytest.mark.parametrize(
    ("node", "type_", "required"),
    [
        ({"type": "string", "enum": ["a"]}, FieldType.STRING, True),
        ({"enum": ["a", "b"]}, FieldType.STRING, True),
        ({"const": "a"}, FieldType.STRING, True),
        ({"type": "integer", "enum": [0, 1]}, FieldType.INTEGER, True),
        ({"enum": [0, 1]}, FieldType.JSON, True),
        ({"type": ["integer", "null"]}, FieldType.INTEGER, False),
        ({"type": ["null", "array"], "items": {"type": "number"}}, FieldType.LIST, False),
        ({"type": ["integer", "string"]}, FieldType.JSON, True),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, FieldType.BOOLEAN, False),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}, {"type": "string"}]}, FieldType.JSON, False),
        ({"allOf": [{"type": "number"}]}, FieldType.NUMBER, True),
        ({"type": "array", "items": {"type": ["string", "null"]}}, FieldType.LIST, True),
        ({"type": "array"}, FieldType.JSON, True),
        ({}, FieldType.JSON, True),
    ],
)
def test_a_property_becomes_the_column_that_holds_all_its_values(node: dict[str, object], type_: FieldType, required: bool) -> None:
    [column] = schema_fields("t", wrap(node))
    assert (column.type, column.required) == (type_, required)
    canonical_schema("t", wrap(node))


def test_a_property_that_is_not_required_may_be_missing() -> None:
    assert [column.required for column in schema_fields("t", wrap({"type": "string"}, required=[]))] == [False]


@pytest.mark.parametrize("name", ["title", "default", "not", "minimum", "$ref", "type", "required", "properties", "enum", "anyOf", "items"])
def test_a_property_may_be_named_like_a_keyword(name: str) -> None:
    schema = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    canonical = canonical_schema("t", schema)
    assert canonical["properties"] == {name: {"type": "string"}}
    assert canonical["required"] == [name]
    assert [column.name for column in schema_fields("t", schema)] == [name]


def test_titles_defaults_and_order_are_no_part_of_a_schema() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
    dressed = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "required": ["b", "a"],
        "title": "Answer",
        "properties": {"b": {"title": "B", "default": 1, "type": "integer", "examples": [1]}, "a": {"type": "string", "deprecated": True}},
        "type": "object",
        "additionalProperties": False,
    }
    assert canonical_schema("t", plain) == canonical_schema("t", dressed)
    assert list(canonical_schema("t", dressed)) == sorted(canonical_schema("t", dressed))


def test_one_of_is_said_as_any_of() -> None:
    found = canonical_schema("t", wrap({"oneOf": [{"type": "string"}, {"type": "null"}]}))
    assert found["properties"] == {"field": {"anyOf": [{"type": "string"}, {"type": "null"}]}}


def test_canonical_schemas_stay_as_they_are() -> None:
    once = canonical_schema("t", Everything)
    assert canonical_schema("t", once) == once


def test_the_schema_that_was_given_is_not_touched() -> None:
    given: dict[str, Any] = wrap({"title": "F", "type": "object", "properties": {"x": {"type": "string", "default": "d"}}})
    before = repr(given)
    canonical_schema("t", given)
    assert repr(given) == before


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"type": "integer", "minimum": 0}, "'minimum' at $.properties.field"),
        ({"type": "string", "maxLength": 5}, "'maxLength'"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "'minItems'"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 2}, "'maxItems'"),
        ({"not": {"type": "string"}}, "'not'"),
        ({"anyOf": [{"type": "number", "multipleOf": 2}]}, "'multipleOf' at $.properties.field.anyOf[0]"),
        ({"$ref": "https://example.com/s.json"}, "only '#/$defs/...' works"),
        ({"$ref": "#"}, "only '#/$defs/...' works"),
        ({"$ref": "#/$defs/Missing"}, "'#/$defs/Missing', which is not there"),
        ({"allOf": [{"$ref": "#/$defs/Thing"}]}, "$ref inside allOf"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "free keys at $.properties.field"),
        ({"type": "object", "additionalProperties": True}, "free keys at $.properties.field"),
    ],
)
def test_what_structured_outputs_do_not_take_is_refused_with_its_place(node: dict[str, object], said: str) -> None:
    with pytest.raises(TaskError) as refused:
        canonical_schema("t", wrap(node, **{"$defs": {"Thing": {"type": "string"}}}))
    assert said in str(refused.value)
    assert "Task 't'" in str(refused.value)
    assert "Nothing was sent" in str(refused.value)


@pytest.mark.parametrize("items", [0, 1])
def test_at_least_one_item_may_be_wanted(items: int) -> None:
    canonical_schema("t", wrap({"type": "array", "items": {"type": "string"}, "minItems": items}))


@pytest.mark.parametrize(
    "schema", [{}, {"type": "array", "items": {"type": "string"}}, {"type": "string"}, {"type": "object", "properties": {}}]
)
def test_a_schema_without_properties_has_no_columns_and_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(TaskError, match=r"'t': the output schema is not an object with properties\. Nothing was sent"):
        canonical_schema("t", schema)


class Bounded(BaseModel):
    stars: int = Field(ge=1)


class Free(BaseModel):
    words: dict[str, Any]


class Counted(BaseModel):
    words: dict[str, int]


class Tree(BaseModel):
    name: str
    children: "list[Tree]"


class Forest(BaseModel):
    first: Tree


class Checked(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def is_even(cls, value: int) -> int:
        return value


class Related(BaseModel):
    a: int

    @model_validator(mode="after")
    def is_consistent(self) -> "Related":
        return self


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Bounded, "'minimum'"),
        (Free, "free keys"),
        (Counted, "free keys"),
        (Tree, "not an object"),
        (Forest, "recursive (Tree contains itself)"),
        (Checked, "validators of its own (Checked.is_even)"),
        (Related, "validators of its own (Related.is_consistent)"),
    ],
)
def test_a_model_that_says_more_than_a_schema_can_is_refused(model: type[BaseModel], said: str) -> None:
    with pytest.raises(TaskError) as refused:
        canonical_schema("t", model)
    assert said in str(refused.value)
    assert "Nothing was sent" in str(refused.value)


def check(value: Any) -> Any:
    return value


def wrap_check(value: Any, handler: Any) -> Any:
    return handler(value)


def outer(annotation: Any) -> type[BaseModel]:
    return create_model("Outer", plain=(str, ...), field=(annotation, ...))


class Exact(int):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(check, core_schema.int_schema())


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (Checked, "Checked.is_even"),
        (list[Checked], "Checked.is_even"),
        (Checked | None, "Checked.is_even"),
        (dict[str, list[Related]], "Related.is_consistent"),
        (tuple[Checked, ...], "Checked.is_even"),
        (outer(outer(Related)), "Related.is_consistent"),
        (Annotated[int, AfterValidator(check)], "check"),
        (Annotated[int, BeforeValidator(check)], "check"),
        (Annotated[int, WrapValidator(wrap_check)], "wrap_check"),
        (Annotated[int, PlainValidator(check, json_schema_input_type=int)], "check"),
        (list[Annotated[int, AfterValidator(check)]], "check"),
        (Annotated[int, AfterValidator(check)] | None, "check"),
        (Annotated[str, BeforeValidator(lambda value: value)], "<lambda>"),
        (Annotated[str, BeforeValidator(str)], "str"),
        (Annotated[int, AfterValidator(partial(check))], "check"),
        (Annotated[int, Predicate(check)], "Predicate"),
        (Exact, "check"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_validator_is_found_wherever_it_stands(annotation: Any, name: str) -> None:
    """In a nested model, in a list, an optional or a dict's values, in Annotated: it would not run, so it is refused by name."""
    with pytest.raises(
        TaskError, match=rf"'t': Outer has validators of its own \({re.escape(name)}\)\. They would not run: .* Nothing was sent\."
    ):
        canonical_schema("t", outer(annotation))


def test_what_pydantic_checks_by_itself_is_no_validator_of_ones_own() -> None:
    class Kind(StrEnum):
        A = "a"

    class Plain(BaseModel):
        price: Decimal
        when: datetime
        who: UUID
        where: IPv4Address
        path: PurePath
        kind: Kind = Kind.A
        shown: Annotated[str, PlainSerializer(check), Field(default="function-after")]

    assert canonical_schema("t", Plain)["properties"]


def test_mutual_recursion_is_refused() -> None:
    ref = {"A": {"type": "object", "properties": {"b": {"$ref": "#/$defs/B"}}}, "B": {"type": "array", "items": {"$ref": "#/$defs/A"}}}
    with pytest.raises(TaskError, match="recursive"):
        canonical_schema("t", wrap({"$ref": "#/$defs/A"}, **{"$defs": ref}))


@pytest.mark.parametrize(("properties", "taken"), [(24, True), (25, False)])
def test_optional_properties_are_counted_before_they_are_sent(properties: int, taken: bool) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(properties)}}
    if taken:
        canonical_schema("t", schema)
    else:
        with pytest.raises(TaskError, match="25 optional properties; the API takes 24"):
            canonical_schema("t", schema)


@pytest.mark.parametrize(("unions", "taken"), [(16, True), (17, False)])
def test_unions_are_counted_before_they_are_sent(unions: int, taken: bool) -> None:
    names = [f"p{i}" for i in range(unions)]
    schema = {"type": "object", "properties": {name: {"type": ["string", "null"]} for name in names}, "required": names}
    if taken:
        canonical_schema("t", schema)
    else:
        with pytest.raises(TaskError, match="17 unions; the API takes 16"):
            canonical_schema("t", schema)


def test_a_decimal_field_keeps_every_digit_as_text() -> None:
    class Price(BaseModel):
        price: Decimal | int

    [column] = schema_fields("t", Price)
    assert column.type == FieldType.JSON
