"""From the JSON texts of structured answers to the columns of a task's fields.

An answer is decoded into a Struct that is made for the task: no dict, no look at each value. What the Struct refuses (3.0 for an integer, a
number too large) goes the slow way, value by value, to the same result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from claude_batch_dagster.core.schema import Field, FieldType
from claude_batch_dagster.storage.arrays import to_arrow, truths_to_arrow, values_to_arrow

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_ARROW = {
    FieldType.STRING: pa.string(),
    FieldType.INTEGER: pa.int64(),
    FieldType.NUMBER: pa.float64(),
    FieldType.BOOLEAN: pa.bool_(),
    FieldType.JSON: pa.string(),
}
_PYTHON: dict[FieldType, Any] = {
    FieldType.STRING: str | None,
    FieldType.INTEGER: Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)] | None,
    FieldType.NUMBER: float | None,
    FieldType.BOOLEAN: bool | None,
    FieldType.JSON: Any,
}


def arrow_field(field: Field) -> pa.Field:
    """Return a task's field as a column; every column is nullable, since a row may have no answer."""
    match field.type:
        case FieldType.LIST:
            kind: pa.DataType = pa.list_(arrow_field(_item(field)))
        case FieldType.STRUCT:
            kind = pa.struct([arrow_field(child) for child in field.children])
        case _:
            kind = _ARROW[field.type]
    metadata = {"description": field.description} if field.description else None
    return pa.field(field.name, kind, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswers:
    """Some answers as columns.

    Attributes:
        columns: One a field.
        out_of_range: Rows whose answer holds a number that its column has no room for: null in all columns.
    """

    columns: list[pa.Array]
    out_of_range: list[int]


class AnswerColumns:
    """Turns answers into columns. Build it once a task.

    Args:
        fields: The task's.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._shape = _Shape(fields)
        self._none = self._shape.make({})
        self._decode = self._shape.decoder()
        self._decode_lines = self._shape.lines_decoder()

    def read(self, answers: Sequence[bytes | None]) -> ReadAnswers:
        """Turn some answers into columns."""
        rows = self._read_lines(answers)
        out_of_range: list[int] = []
        if rows is None:
            rows, out_of_range = self._read_each(answers)
        return ReadAnswers(columns=self._shape.columns(rows), out_of_range=out_of_range)

    def _read_lines(self, answers: Sequence[bytes | None]) -> list[Any] | None:
        """Decode them at once: an answer is compact JSON, which has no line break. None where the Struct refuses one."""
        try:
            rows = self._decode_lines(b"\n".join([b"null" if answer is None else answer for answer in answers]))
        except msgspec.DecodeError:
            return None
        none = self._none
        return [none if row is None else row for row in rows] if len(rows) == len(answers) else None

    def _read_each(self, answers: Sequence[bytes | None]) -> tuple[list[Any], list[int]]:
        rows: list[Any] = []
        out_of_range: list[int] = []
        decode, none = self._decode, self._none
        for answer in answers:
            if answer is None:
                rows.append(none)
                continue
            try:
                rows.append(decode(answer))
            except (msgspec.ValidationError, OverflowError):
                try:
                    rows.append(self._shape.make(msgspec.json.decode(answer)))
                except OverflowError:
                    out_of_range.append(len(rows))
                    rows.append(none)
        return rows, out_of_range


class _Shape:
    """The Struct that stands for an object, its attributes named by their place: a property may have any name."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = tuple(fields)
        self._names = [f"f{at}" for at in range(len(self._fields))]
        self._inner = [_inner_shape(field) for field in self._fields]
        defined = [
            (name, _python_type(field, inner), None) for name, field, inner in zip(self._names, self._fields, self._inner, strict=True)
        ]
        renamed = {name: field.name for name, field in zip(self._names, self._fields, strict=True)}
        self._decodes: bool = all(inner is None or inner._decodes for inner in self._inner)
        try:
            self.kind = msgspec.defstruct("Answer", defined, rename=renamed, gc=False)
        except ValueError:
            # msgspec cannot look for names with quotes or control characters.
            self.kind = msgspec.defstruct("Answer", defined, gc=False)
            self._decodes = False

    def decoder(self) -> Any:
        """Return what decodes an object, and raises a ValidationError where the slow way is to be gone."""
        if self._decodes:
            return msgspec.json.Decoder(self.kind).decode
        return lambda answer: self.make(msgspec.json.decode(answer))

    def lines_decoder(self) -> Any:
        """Return what decodes objects and nulls, a line each, and raises a DecodeError where the slow way is to be gone."""
        if self._decodes:
            return msgspec.json.Decoder(self.kind | None).decode_lines
        return lambda answers: []

    def make(self, value: dict[str, object]) -> Any:
        """Return the Struct of an object that was decoded as a dict; raise OverflowError where a column has no room for a number."""
        return self.kind(*(_fit(value.get(field.name), field, inner) for field, inner in zip(self._fields, self._inner, strict=True)))

    def columns(self, rows: Sequence[Any]) -> list[pa.Array]:
        return [
            _to_arrow(list(map(attrgetter(name), rows)), field, inner)
            for name, field, inner in zip(self._names, self._fields, self._inner, strict=True)
        ]


def _inner_shape(field: Field) -> _Shape | None:
    """Return the Struct that stands in a field, at whatever depth of lists."""
    while field.type is FieldType.LIST:
        field = _item(field)
    return _Shape(field.children) if field.type is FieldType.STRUCT else None


def _python_type(field: Field, inner: _Shape | None) -> Any:
    match field.type:
        case FieldType.LIST:
            item: Any = _python_type(_item(field), inner)
            return list[item] | None
        case FieldType.STRUCT:
            assert inner is not None, "a struct has a shape"
            return inner.kind | None
        case _:
            return _PYTHON[field.type]


def _fit(value: Any, field: Field, inner: _Shape | None) -> Any:
    """Give a validated JSON value the type of its column; raise OverflowError where it has no room there."""
    if value is None:
        return None
    match field.type:
        case FieldType.INTEGER:
            number = int(value) if isinstance(value, (int, float)) else None
            if number is not None and not INT64_MIN <= number <= INT64_MAX:
                raise OverflowError
            return number
        case FieldType.NUMBER:
            return float(value) if isinstance(value, (int, float)) else None
        case FieldType.LIST if isinstance(value, list):
            return [_fit(item, _item(field), inner) for item in value]
        case FieldType.STRUCT if isinstance(value, dict) and inner is not None:
            return inner.make(value)
        case _:
            return value


def _to_arrow(values: list[Any], field: Field, inner: _Shape | None) -> pa.Array:
    kind = arrow_field(field).type
    match field.type:
        case FieldType.JSON:
            texts = [None if value is None else msgspec.json.encode(value, order="sorted").decode() for value in values]
            return values_to_arrow(texts, kind)
        case FieldType.STRUCT:
            assert inner is not None, "a struct has a shape"
            none = inner.make({})
            children = inner.columns([none if value is None else value for value in values])
            return pa.StructArray.from_arrays(children, fields=list(kind), mask=_are_absent(values))
        case FieldType.LIST:
            starts, items = [0], list[Any]()
            for value in values:
                items += value or ()
                starts.append(len(items))
            return pa.ListArray.from_arrays(
                to_arrow(np.array(starts, np.int32), pa.int32()), _to_arrow(items, _item(field), inner), type=kind, mask=_are_absent(values)
            )
        case _:
            return values_to_arrow(values, kind)


def _are_absent(values: Sequence[object]) -> pa.Array:
    return truths_to_arrow(np.array([value is None for value in values], np.bool_))


def _item(field: Field) -> Field:
    assert field.item is not None, "a list has an item"
    return field.item
