from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.template import is_blank, parse_template, render_value


@pytest.mark.parametrize(
    ("prompt", "columns", "literals", "slots"),
    [
        ("{text}", ["text"], ("", ""), ("text",)),
        ("Review of {product}:\n{text}", ["product", "text"], ("Review of ", ":\n", ""), ("product", "text")),
        ("{a}{b}{a}", ["a", "b"], ("", "", "", ""), ("a", "b", "a")),
        ("{{text}} is {text}", ["text"], ("{text} is ", ""), ("text",)),
        ("{{{text}}}", ["text"], ("{", "}"), ("text",)),
        ("{text}}", ["text"], ("", "}"), ("text",)),
        ("}{text}{", ["text"], ("}", "{"), ("text",)),
        ('{"text": {text}}', ["text"], ('{"text": ', "}"), ("text",)),
        ('{"a": [1, 2], "b": {} } {text}', ["text"], ('{"a": [1, 2], "b": {} } ', ""), ("text",)),
        ('{"a": {"b": 1}} {text}', ["text"], ('{"a": {"b": 1} ', ""), ("text",)),
        ("if (x) { return; } {text}", ["text"], ("if (x) { return; } ", ""), ("text",)),
        ("{1} {0,3} {text}", ["text"], ("{1} {0,3} ", ""), ("text",)),
        ("{review text}", ["review text"], ("", ""), ("review text",)),
        ("{a.b} {ürün} {a-b}", ["a.b", "ürün", "a-b"], ("", " ", " ", ""), ("a.b", "ürün", "a-b")),
        ("{a}b}", ["a}b"], ("", ""), ("a}b",)),
        ("{a}b}", ["a", "a}b"], ("", ""), ("a}b",)),
        ("{a{b}", ["a{b"], ("", ""), ("a{b",)),
        ("{sum({x})}", ["sum({x})", "x"], ("", ""), ("sum({x})",)),
        ("{text}", {"text": 1, "other": 2}, ("", ""), ("text",)),
    ],
)
def test_a_prompt_is_cut_at_its_slots(prompt: str, columns: list[str], literals: tuple[str, ...], slots: tuple[str, ...]) -> None:
    template = parse_template(prompt, columns)
    assert (template.literals, template.columns) == (literals, slots)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("About {txet}", ["{txet}", "is no column", "product, text", "Nothing was sent", "Did you mean {text}?"]),
        ("About {headline}", ["{headline}", "is no column", "literal braces"]),
        ("About { text }", ["{ text }", "Did you mean {text}?"]),
        ("About {text.0}", ["{text.0}", "is no column"]),
    ],
)
def test_a_slot_that_names_no_column_is_refused_with_the_columns_and_a_hint(prompt: str, said: list[str]) -> None:
    with pytest.raises(TaskError) as refused:
        parse_template(prompt, ["text", "product"])
    assert [words for words in said if words not in str(refused.value)] == []


@pytest.mark.parametrize("prompt", ["", "Summarize this.", "{{text}}", "{}"])
def test_a_prompt_without_a_slot_is_refused(prompt: str) -> None:
    with pytest.raises(TaskError, match=r"no slot.*Nothing was sent.*\{text\}"):
        parse_template(prompt, ["text"])


NAMES = st.lists(
    st.text("ab {}.é", min_size=1, max_size=5).filter(lambda name: not name.startswith("{")), min_size=1, max_size=4, unique=True
)


@given(
    columns=NAMES,
    parts=st.lists(st.tuples(st.text('ab1"{} \n', max_size=6), st.integers(0, 3)), min_size=1, max_size=5),
    end=st.text(max_size=6),
)
def test_escaped_literals_and_any_column_names_come_back_as_they_were(columns: list[str], parts: list[tuple[str, int]], end: str) -> None:
    chosen = [columns[at % len(columns)] for _, at in parts]
    prompt = "".join(f"{_escape(literal)}{{{name}}}" for (literal, _), name in zip(parts, chosen, strict=True)) + _escape(end)
    template = parse_template(prompt, columns)
    # A name that holds a brace may fit a longer stretch than was meant: the longest name wins, and nothing of the prompt is lost.
    shown = "".join(
        _escape(literal) + f"{{{name}}}"
        for literal, name in zip(template.literals, [*template.columns, None], strict=True)
        if name is not None
    ) + _escape(template.literals[-1])
    assert parse_template(shown, columns) == template
    if not any(brace in name for name in columns for brace in "{}"):
        assert template.columns == tuple(chosen)
        assert template.literals == (*(literal for literal, _ in parts), end)


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(prompt=st.text(), head=st.text('{}ab "', max_size=6))
def test_any_prompt_has_slots_or_is_refused_with_the_reason(prompt: str, head: str) -> None:
    found = None
    with suppress(TaskError):
        found = parse_template(f"{head}{prompt}", ["a", "b"])
    assert found is None or (len(found.literals) == len(found.columns) + 1 and set(found.columns) <= {"a", "b"})


# Frozen: these texts are part of every request's identity. A line here is never edited.
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n\t\x00 \u2028", "as it is\n\t\x00 \u2028"),
        ("", ""),
        (None, ""),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**64 - 1, "18446744073709551615"),
        (0.1, "0.1"),
        (1.0, "1.0"),
        (1e16, "1e+16"),
        (1.5e-7, "1.5e-07"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (Decimal("12.340"), "12.340"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-9"), "0.000000001"),
        (date(2026, 11, 1), "2026-11-01"),
        (time(9, 5, 1, 250), "09:05:01.000250"),
        (datetime(2026, 11, 1, 9, 5, tzinfo=UTC).replace(tzinfo=None), "2026-11-01T09:05:00"),
        (datetime(2026, 11, 1, 9, 5, 1, 5, tzinfo=UTC), "2026-11-01T09:05:01.000005Z"),
        (datetime(2026, 11, 1, 9, 5, tzinfo=timezone(timedelta(hours=5, minutes=30))), "2026-11-01T09:05:00+05:30"),
        ([], "[]"),
        ([1, "a", None, True, 0.5], '[1,"a",null,true,0.5]'),
        ({"b": 1, "a": {"d": [], "c": "é\u2028\n"}}, '{"a":{"c":"é\u2028\\n","d":[]},"b":1}'),
        ([("k", 1), ("l", 2)], '[["k",1],["l",2]]'),
        (
            {"d": Decimal("1.50"), "t": datetime(2026, 1, 2, tzinfo=UTC), "n": float("nan")},
            '{"d":"1.50","n":"nan","t":"2026-01-02T00:00:00Z"}',
        ),
        ([1e22, 1e-7, 100.0], "[1e22,1e-7,100.0]"),
        ([2**64 - 1, -(2**63)], "[18446744073709551615,-9223372036854775808]"),
    ],
)
def test_a_value_has_one_text_for_ever(value: object, text: str) -> None:
    assert render_value(value) == text


@pytest.mark.parametrize("value", [b"\x00", memoryview(b"a"), UUID(int=1), timedelta(1), {1}, object(), [b"\x00"], {"a": {"b": b""}}])
def test_a_value_without_a_text_of_its_own_is_refused(value: object) -> None:
    with pytest.raises(TaskError, match=r"cannot show a value of type \w+\. Nothing was sent\. Use text"):
        render_value(value)


@pytest.mark.parametrize(
    ("texts", "blank"),
    [
        ([""], True),
        ([" \t\r\n\u00a0\u3000\u2028"], True),
        (["", " "], True),
        (["", "a"], False),
        (["0"], False),
        (["\x00"], False),
        (["\u200f"], False),
    ],
)
def test_blank_is_white_space_in_every_slot(texts: list[str], blank: bool) -> None:
    assert is_blank(texts) is blank


def test_what_looks_like_a_slot_and_is_none_is_named() -> None:
    with pytest.raises(TaskError, match=r"no slot \(\{text:>10\} is no column\), so .*for instance \{text\}"):
        parse_template("Summarize: {text:>10}", ["text"])
