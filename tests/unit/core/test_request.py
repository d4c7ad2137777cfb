"""What the golden tests here pin is identity: whoever edits a line of them makes every user pay for every answer again. Never edit."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Literal

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.presets import Moderate, Summarize
from claude_batch_dagster.core.request import (
    LINE_BREAK,
    LineFrame,
    Renderer,
    Request,
    custom_id,
    parse_custom_id,
    short_name,
    submission_tag,
)
from claude_batch_dagster.core.task import ClaudeTask
from tests.lines import encode_line

HAIKU = "claude-haiku-5-5"
TAG = "0123abcd"


class Place(BaseModel):
    city: str
    country: str | None = None


class Topics(BaseModel):
    """What a review speaks of."""

    topics: list[str] = Field(description="Up to five.")
    tone: Literal["good", "bad"]
    stars: int | None
    place: Place | None = None


SCHEMA = {
    "title": "Answer",
    "type": "object",
    "properties": {"score": {"type": "number"}, "grounds": {"type": "array", "items": {"type": "string"}}},
    "required": ["score"],
}
SUMMARIZE = Summarize(name="summaries", column="text", model=HAIKU)
SUMMARIZE_SONNET = Summarize(name="summaries", column="text", model="claude-sonnet-5-5", max_words=120)
MODERATE = Moderate(name="labels", column="text", model=HAIKU, labels=("ok", "spam", "hate"))
MODEL_TASK = ClaudeTask(
    name="topics", model=HAIKU, prompt="Review of {product}:\n{text}", system="Be brief.", output=Topics, max_tokens=300, effort="low"
)
SCHEMA_TASK = ClaudeTask(name="scores", model="claude-sonnet-5-5", prompt="{{score}} {text}", output=SCHEMA, max_tokens=4_000)
TEXT_TASK = ClaudeTask(
    name="answers",
    model=HAIKU,
    prompt='{"text": {text}}',
    max_tokens=50,
    thinking={"type": "disabled"},
    params={"stop_sequences": ["\n\n"], "metadata": {"user_id": "u"}},
)
EVERY_TYPE = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"]
TYPES_TASK = ClaudeTask(name="types", model=HAIKU, prompt="|".join(f"{{{name}}}" for name in EVERY_TYPE), max_tokens=10)
EVERY_VALUE = (
    'é"\\\n\t\r\b\f\x00\x1f\x7f\u2028\u2029\ufeff👩‍🚀שלום',
    None,
    True,
    -3,
    0.1,
    1e22,
    Decimal("1E+3"),
    date(2026, 11, 1),
    time(9, 5),
    datetime(2026, 11, 1, 9, 5, tzinfo=UTC),
    [1, None, "x\u2028"],
    {"b": {"y": 1, "x": 2.5}, "a": "é"},
    2**63,
)


def render(task: ClaudeTask, row: Sequence[object], columns: Sequence[str] = ("text", "product", *EVERY_TYPE)) -> Request:
    [request] = Renderer(task, columns).render([row])
    assert request is not None
    return request


# Never edit a line of this table: see the top of the file.
@pytest.mark.parametrize(
    ("task", "row", "task_key", "request_key"),
    [
        (SUMMARIZE, ("A text",), "10bb8cb30bbf31dc1e5b1a2e81113b63", "58bbe2262c77d20d002a73f92acd1cfe"),
        (SUMMARIZE_SONNET, ("A text",), "22df2330e216c5425e7e529857ead385", "02bc92e3fee0c9c2848e6fe2ae67ade8"),
        (SUMMARIZE, (EVERY_VALUE[0],), "10bb8cb30bbf31dc1e5b1a2e81113b63", "44b628b0de3486d962acf04c89f284ba"),
        (MODERATE, ("A text",), "0d02fb2c99a6e7e9e7c78834bbde1957", "5db3307a13785d44aeb3be7066be44dd"),
        (MODEL_TASK, ("Lamp", "Bright."), "0cf9802e2d10f5ef1c095a0edd1f63f4", "0ec09228aeacb4fd448a7a27dec399a0"),
        (SCHEMA_TASK, ("A text",), "2b1141cb85942ede003ba6a3ac23e165", "3110d15aab53be3a54602e651fbfb868"),
        (TEXT_TASK, ("A text",), "bfaec757cedaabdf480db5bed54337a0", "a9008fae45ed625619d5908789a72c9c"),
        (TYPES_TASK, EVERY_VALUE, "66c2264a795ca1cd8d91dee4d4e4fcf9", "175f4ae841e5c65d0529c7a981244e9f"),
    ],
    ids=["summarize", "summarize_sonnet", "summarize_difficult", "moderate", "model", "schema", "plain_text", "every_type"],
)
def test_identity_never_drifts(task: ClaudeTask, row: tuple[object, ...], task_key: str, request_key: str) -> None:
    assert task.task_key == task_key
    assert render(task, row).key.hex() == request_key


# Never edit these bytes: see the top of the file.
def test_the_bytes_of_params_never_drift() -> None:
    assert (
        render(TEXT_TASK, ['Grüße \u2028 "x" \x00']).params
        == b'{"max_tokens":50,"metadata":{"user_id":"u"},"model":"claude-haiku-5-5","stop_sequences":["\\n\\n"],"thinking":{"type":"disabled"},"messages":[{"content":"{\\"text\\": Gr\xc3\xbc\xc3\x9fe \xe2\x80\xa8 \\"x\\" \\u0000}","role":"user"}]}'
    )
    assert (
        render(TYPES_TASK, EVERY_VALUE).params
        == b'{"max_tokens":10,"model":"claude-haiku-5-5","messages":[{"content":"\xc3\xa9\\"\\\\\\n\\t\\r\\b\\f\\u0000\\u001f\x7f\xe2\x80\xa8\xe2\x80\xa9\xef\xbb\xbf\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x9a\x80\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d||true|-3|0.1|1e+22|1000|2026-11-01|09:05:00|2026-11-01T09:05:00Z|[1,null,\\"x\xe2\x80\xa8\\"]|{\\"a\\":\\"\xc3\xa9\\",\\"b\\":{\\"x\\":2.5,\\"y\\":1}}|9223372036854775808","role":"user"}]}'
    )


# What is frozen above is also what it should be: built a second time, from plain dicts, by the standard library.
@pytest.mark.parametrize("task", [SUMMARIZE, SUMMARIZE_SONNET, MODERATE, MODEL_TASK, SCHEMA_TASK, TEXT_TASK], ids=lambda task: task.name)
def test_a_key_is_the_hash_of_sorted_static_params_with_the_messages_last(task: ClaudeTask) -> None:
    columns = Renderer(task, ["text", "product"]).columns
    request = render(task, [f"<{column}>" for column in columns])
    static = _dumps(task.static_params())
    content = json.loads(request.params)["messages"][0]["content"]
    expected = f'{static[:-1]},"messages":[{{"content":{_dumps(content)},"role":"user"}}]}}'
    assert request.params.decode() == expected
    assert request.key == hashlib.sha256(expected.encode()).digest()[:16]


def test_a_preset_sends_its_document_between_tags() -> None:
    params = json.loads(render(SUMMARIZE, ["A text"]).params)
    assert params["messages"] == [{"role": "user", "content": "<document>\nA text\n</document>"}]
    assert params.keys() == {"model", "max_tokens", "system", "thinking", "output_config", "messages"}


TEXTS = st.text(max_size=40) | st.text('"\\/{}\n\x00\x1f\x7f\u2028\ud7ff\ufffe🎉ש', max_size=20)


@given(text=TEXTS, product=TEXTS)
@example(text="\x00", product="")
@example(text="{product}", product="{text}")
@example(text='"}]}]}', product='\\u0000\\"')
def test_rendered_params_are_json_of_exactly_what_was_meant(text: str, product: str) -> None:
    [request] = Renderer(MODEL_TASK, ["text", "product"]).render([(product, text)])
    if not text.strip() and not product.strip():
        assert request is None
        return
    assert request is not None
    assert json.loads(request.params) == {
        "model": HAIKU,
        "max_tokens": 300,
        "system": "Be brief.",
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": MODEL_TASK.schema}},
        "messages": [{"role": "user", "content": f"Review of {product}:\n{text}"}],
    }
    line = encode_line("topics", request, TAG)
    assert b"\n" not in line
    assert json.loads(line) == {"custom_id": custom_id("topics", request.key.hex(), TAG), "params": json.loads(request.params)}


@given(literal=st.text(max_size=20), system=st.text(max_size=20), text=st.text(min_size=1, max_size=20).filter(str.strip))
def test_prompts_and_systems_of_any_text_are_sent_as_they_are(literal: str, system: str, text: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    task = ClaudeTask(name="t", model=HAIKU, prompt=f"{escaped}{{text}}{escaped}", system=system, max_tokens=1)
    params = json.loads(render(task, [text], ["text"]).params)
    assert (params["messages"][0]["content"], params["system"]) == (f"{literal}{text}{literal}", system)


def test_the_same_value_in_another_row_is_the_same_request_and_another_value_is_another() -> None:
    first, second, third = Renderer(SUMMARIZE, ["text"]).render([("a",), ("a",), ("b",)])
    assert first == second
    assert first is not None
    assert third is not None
    assert first.key != third.key


def test_equal_params_are_told_apart_where_slots_meet() -> None:
    task = ClaudeTask(name="t", model=HAIKU, prompt="{text}{product}", max_tokens=1)
    assert render(task, ["ab", "c"]) == render(task, ["a", "bc"])
    apart = ClaudeTask(name="t", model=HAIKU, prompt="{text}|{product}", max_tokens=1)
    assert render(apart, ["ab", "c"]) != render(apart, ["a", "bc"])


def test_renaming_a_task_asks_nothing_again() -> None:
    renamed = Summarize(name="something_else", column="text", model=HAIKU)
    assert (renamed.task_key, render(renamed, ["a"])) == (SUMMARIZE.task_key, render(SUMMARIZE, ["a"]))


def test_a_column_may_stand_in_several_slots() -> None:
    task = ClaudeTask(name="t", model=HAIKU, prompt="{text} and {product} and {text}", max_tokens=1)
    renderer = Renderer(task, ["text", "product"])
    assert renderer.columns == ("text", "product", "text")
    assert json.loads(render(task, ["a", "b", "a"]).params)["messages"][0]["content"] == "a and b and a"


@pytest.mark.parametrize("name", ["review text", "a{b}c", "{x", "naïve.col", "document"])
def test_a_preset_reads_a_column_of_any_name(name: str) -> None:
    task = Summarize(name="s", column=name, model=HAIKU)
    assert Renderer(task, [name, "id"]).columns == (name,)
    assert render(task, ["a"], [name]) == render(SUMMARIZE, ["a"])


@pytest.mark.parametrize("value", [None, "", " \n\t", "\u00a0\u2003"])
def test_a_row_without_a_text_asks_nothing(value: str | None) -> None:
    nothing, something = Renderer(SUMMARIZE, ["text"]).render([(value,), ("a",)])
    assert nothing is None
    assert something is not None


@pytest.mark.parametrize(
    ("row", "asks"),
    [((None, None), False), (("", " "), False), (("x", None), True), ((None, "x"), True), ((0, None), True), (([], None), True)],
)
def test_a_task_skips_a_row_whose_slots_are_all_null_or_blank(row: tuple[object, object], asks: bool) -> None:
    [request] = Renderer(MODEL_TASK, ["text", "product"]).render([row])
    assert (request is not None) is asks


def test_a_text_of_five_megabytes_is_rendered_whole() -> None:
    text = 'é"\n\x00' * 1_000_000
    request = render(SUMMARIZE, [text])
    assert json.loads(request.params)["messages"][0]["content"] == f"<document>\n{text}\n</document>"
    assert len(encode_line("summaries", request, TAG)) > 5_000_000


def test_a_column_that_the_source_has_not_is_refused() -> None:
    with pytest.raises(
        TaskError, match=r"'summaries' reads the column 'text', which the source does not have; it has body, id\. Nothing was sent"
    ):
        Renderer(SUMMARIZE, ["id", "body"])
    with pytest.raises(TaskError, match=r"slot \{product\} is no column"):
        Renderer(MODEL_TASK, ["text"])


def test_binary_in_a_slot_is_refused() -> None:
    with pytest.raises(TaskError, match="cannot show a value of type bytes"):
        list(Renderer(SUMMARIZE, ["text"]).render([(b"\xff",)]))


@given(
    name=st.text(min_size=1, max_size=60).filter(str.strip),
    key=st.binary(min_size=16, max_size=16),
    number=st.integers(1, 99),
    shard=st.integers(0, 9_999),
)
def test_a_custom_id_obeys_the_vendor_and_comes_apart_again(name: str, key: bytes, number: int, shard: int) -> None:
    tag = submission_tag("0199", number, shard)
    text = custom_id(name, key.hex(), tag)
    assert 1 <= len(text) <= 64
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    found = parse_custom_id(text)
    assert (found.name, found.request_key, found.tag) == (short_name(name), key.hex(), tag)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "summaries",
        f"summaries-{'0' * 31}-{TAG}",
        f"summaries-{'0' * 32}-{TAG}0",
        f"-{'0' * 32}-{TAG}",
        f"{'n' * 23}-{'0' * 32}-{TAG}",
        f"a-{'G' * 32}-{TAG}",
        f"a-{'0' * 32}-{TAG}\n",
        f"a b-{'0' * 32}-{TAG}",
    ],
)
def test_a_foreign_custom_id_is_none_of_ours(text: str) -> None:
    with pytest.raises(ValueError, match="not a custom_id"):
        parse_custom_id(text)


# Never edit: batches at the vendor are proved ours by these.
@pytest.mark.parametrize(
    ("run_id", "number", "shard", "tag"),
    [
        ("0199d3a0-0000-7000-8000-000000000000", 1, 0, "00f13bc0"),
        ("0199d3a0-0000-7000-8000-000000000000", 2, 17, "964dcea2"),
    ],
)
def test_a_tag_never_drifts(run_id: str, number: int, shard: int, tag: str) -> None:
    assert submission_tag(run_id, number, shard) == tag


def test_tags_tell_runs_rounds_and_shards_apart() -> None:
    tags = {submission_tag(run, number, shard) for run in ("a", "b") for number in (1, 2, 11) for shard in (0, 1, 10, 110)}
    assert len(tags) == 24


@given(
    name=st.text(min_size=1, max_size=40),
    texts=st.lists(st.text(max_size=30), max_size=4),
    tag=st.text("0123456789abcdef", min_size=8, max_size=8),
)
def test_requests_of_a_task_stand_in_a_body_as_each_is_encoded_alone(name: str, texts: list[str], tag: str) -> None:
    requests = [request for request in Renderer(SUMMARIZE, ["text"]).render((text,) for text in texts) if request is not None]
    rendered = Renderer(SUMMARIZE, ["text"]).render_columns([texts])
    frame = LineFrame(name, rendered.head)
    rests = [rest for rest in rendered.rests if rest]
    lines = [encode_line(name, request, tag) for request in requests]
    assert [frame.fixed_bytes + len(rest) for rest in rests] == [len(line) for line in lines]
    for request, rest, line in zip(requests, rests, lines, strict=True):
        begin, end = frame.prefix[: frame.id_at], frame.prefix[frame.id_at + frame.ID_BYTES :]
        assert line + b",\n" == begin + f"{request.key.hex()}-{tag}".encode() + end + rest + LINE_BREAK
    assert rendered.keys == b"".join(
        request.key if request else bytes(16) for request in Renderer(SUMMARIZE, ["text"]).render((text,) for text in texts)
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def test_values_are_escaped_as_the_rest_of_a_request_is() -> None:
    """Two libraries write a request's texts: they agree on every character that there is."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert [character for character in characters if orjson.dumps(character) != msgspec.json.encode(character)] == []
