"""core/response.py: result lines as the vendor writes them, and as it might."""

import json
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.response import Decoder, Response, ResultLine, read_result_line, read_result_lines
from claude_batch_dagster.core.result import ReadLine, Result, Succeeded

KEY = bytes(range(16))
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["ok", "Spam"]},
        "categories": {"type": "array", "items": {"$ref": "#/$defs/category"}},
        "severity": {"type": "integer", "enum": [0, 1, 2, 3]},
        "note": {"anyOf": [{"type": "string", "enum": ["LOUD"]}, {"type": "null"}]},
    },
    "required": ["label"],
    "additionalProperties": False,
    "$defs": {"category": {"type": "string", "enum": ["spam", "hate"]}},
}
PRICED: list[dict[str, int]] = []


def price(model: str, **tokens: int) -> int | None:
    PRICED.append(tokens)
    return None if model == "unpriced" else sum(tokens.values())


PLAIN = Decoder({"schema": None, "max_tokens": 300}, price)
STRUCTURED = Decoder({"schema": SCHEMA, "max_tokens": 300}, price)


def message(text: str | list[dict[str, Any]], stop_reason: str | None = "end_turn", **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": text}] if isinstance(text, str) else text
    usage = {"input_tokens": 10, "output_tokens": 5}
    return {"type": "message", "model": "claude-haiku-5-5", "content": content, "stop_reason": stop_reason, "usage": usage, **fields}


def decode(decoder: Decoder, result: object) -> Response:
    return decoder.decode_result(KEY, json.dumps(result).encode())


def succeeded(text: str | list[dict[str, Any]], stop_reason: str | None = "end_turn", **fields: Any) -> dict[str, Any]:
    return {"type": "succeeded", "message": message(text, stop_reason, **fields)}


ENDS = [
    (succeeded("a summary"), Outcome.SUCCEEDED, None),
    (succeeded("half", "max_tokens"), Outcome.TRUNCATED, "max_tokens"),
    (succeeded("half", "model_context_window_exceeded"), Outcome.TRUNCATED, "model_context_window_exceeded"),
    (succeeded("", "refusal", stop_details={"type": "refusal", "category": "cyber", "explanation": "x"}), Outcome.REFUSED, "refusal"),
    (succeeded("x", "refusal", stop_details=None), Outcome.REFUSED, "refusal"),
    (succeeded("x", "tool_use"), Outcome.INVALID, "stop_reason"),
    (succeeded("x", "pause_turn"), Outcome.INVALID, "stop_reason"),
    (succeeded("x", None), Outcome.INVALID, "stop_reason"),
    (succeeded("x", "invented_tomorrow"), Outcome.INVALID, "stop_reason"),
    (succeeded("x", "stop_sequence"), Outcome.SUCCEEDED, None),
    (succeeded("  \n"), Outcome.INVALID, "empty_answer"),
    (succeeded([]), Outcome.INVALID, "empty_answer"),
    ({"type": "expired"}, Outcome.EXPIRED, "expired"),
    ({"type": "canceled"}, Outcome.CANCELED, "canceled"),
    ({"type": "errored", "error": {"type": "error", "error": {"type": "api_error", "message": "x"}}}, Outcome.ERRORED, "api_error"),
    ({"type": "errored", "error": {"type": "overloaded_error", "message": "x"}}, Outcome.ERRORED, "overloaded_error"),
    ({"type": "teleported", "message": message("x")}, Outcome.ERRORED, "unknown_result_type"),
    ({"type": "succeeded"}, Outcome.ERRORED, "unreadable_result"),
    ({"type": "succeeded", "message": {"model": "m"}}, Outcome.ERRORED, "unreadable_result"),
    (
        {"type": "succeeded", "message": message("x") | {"usage": {"input_tokens": 10**30, "output_tokens": 1}}},
        Outcome.ERRORED,
        "unreadable_result",
    ),
    (
        {"type": "succeeded", "message": message("x") | {"usage": {"input_tokens": 1, "output_tokens": -1}}},
        Outcome.ERRORED,
        "unreadable_result",
    ),
    ({}, Outcome.ERRORED, "unreadable_result"),
    ([], Outcome.ERRORED, "unreadable_result"),
]


@pytest.mark.parametrize(("result", "outcome", "error"), ENDS, ids=lambda value: None if isinstance(value, dict | list) else str(value))
def test_each_end_of_a_request(result: object, outcome: Outcome, error: str | None) -> None:
    """The outcome, and the error's type."""
    response = decode(PLAIN, result)
    assert response.outcome == outcome
    assert (None if response.error is None else response.error.partition(":")[0]) == error
    assert (response.answer is None) == (outcome != Outcome.SUCCEEDED)
    assert response.max_tokens == 300


def test_text_blocks_are_joined_and_thinking_is_left_out() -> None:
    """Blocks are read by their type, not by their place."""
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "one "},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "two"},
    ]
    assert decode(PLAIN, succeeded(blocks)).answer == "one two"


STRUCTURED_ANSWERS = [
    ('{"label":"ok"}', Outcome.SUCCEEDED, '{"label":"ok"}', None),
    (' {"label" : "ok"}\n', Outcome.SUCCEEDED, '{"label":"ok"}', None),
    ('{"label":"OK"}', Outcome.SUCCEEDED, '{"label":"ok"}', None),
    ('{"label":"spam"}', Outcome.SUCCEEDED, '{"label":"Spam"}', None),
    ('{"label":"ok","categories":["SPAM","Hate"]}', Outcome.SUCCEEDED, '{"label":"ok","categories":["spam","hate"]}', None),
    ('{"label":"ok","note":"loud"}', Outcome.SUCCEEDED, '{"label":"ok","note":"LOUD"}', None),
    ('{"label":"ok","note":null}', Outcome.SUCCEEDED, '{"label":"ok","note":null}', None),
    ('{"label":"secret"}', Outcome.INVALID, None, "schema_violation: /label breaks the rule /properties/label/enum"),
    ('{"label":"ok","severity":7}', Outcome.INVALID, None, "schema_violation: /severity breaks the rule /properties/severity/enum"),
    ('{"label":"ok","secret":1}', Outcome.INVALID, None, "schema_violation: / breaks the rule /additionalProperties"),
    ("{}", Outcome.INVALID, None, "schema_violation: / breaks the rule /required"),
    ("secret words", Outcome.INVALID, None, "not_json: 12 characters that are no JSON document"),
    ("", Outcome.INVALID, None, "not_json: 0 characters that are no JSON document"),
    ('{"label":"ok"', Outcome.INVALID, None, "not_json: 13 characters that are no JSON document"),
    ("NaN", Outcome.INVALID, None, "not_json: 3 characters that are no JSON document"),
    ("[" * 100_000, Outcome.INVALID, None, "not_json: 100,000 characters that are no JSON document"),
]


@pytest.mark.parametrize(("text", "outcome", "answer", "error"), STRUCTURED_ANSWERS, ids=lambda value: str(value)[:40])
def test_structured_answers_are_spelled_as_the_schema_does_and_validated(
    text: str, outcome: Outcome, answer: str | None, error: str | None
) -> None:
    """What breaks the schema is named by path and rule, never by its value."""
    response = decode(STRUCTURED, succeeded(text))
    assert (response.outcome, response.answer, response.error) == (outcome, answer, error)
    assert "secret" not in (response.error or "")


def test_a_lone_surrogate_costs_one_character() -> None:
    """Strict decoders refuse the line; here it becomes U+FFFD, in plain text and inside structured text."""
    line = b'{"custom_id":"a","result":{"type":"succeeded","message":{"model":"m","content":[{"type":"text","text":"half \\ud83d"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}}}'
    response = PLAIN.decode_result(KEY, read_result_line(line).result)
    assert (response.outcome, response.answer) == (Outcome.SUCCEEDED, "half \ufffd")

    inner = Decoder({"schema": {"type": "object"}, "max_tokens": 1}, price)
    assert decode(inner, succeeded('{"a":"\\ud83d"}')).answer == '{"a":"\ufffd"}'


def test_usage_is_taken_apart_and_priced() -> None:
    """Cache writes of both lifetimes, and no price where there is none."""
    usage = {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    }
    response = decode(PLAIN, succeeded("x", usage=usage))
    assert (response.cache_write_5m_tokens, response.cache_write_1h_tokens, response.cache_write_tokens) == (60, 40, 100)
    assert response.cost_nano_usd == 1_103
    assert not response.over_100k
    assert PRICED[-1]["cache_write_1h_tokens"] == 40
    nulls = {"input_tokens": 100_001, "output_tokens": 2, "cache_creation_input_tokens": None, "cache_read_input_tokens": None}
    response = decode(PLAIN, succeeded("x", usage=nulls, model="unpriced"))
    assert response.cost_nano_usd is None
    assert response.over_100k


def test_requests_that_no_model_answered_cost_nothing() -> None:
    """Errored, expired and canceled are not billed."""
    for result in ({"type": "expired"}, {"type": "canceled"}, {"type": "teleported"}):
        assert decode(PLAIN, result).cost_nano_usd == 0


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]", b"{}", b'{"custom_id":1,"result":{}}', b'{"custom_id":"a"}', b"\xff\xfe", b"null"]
)
def test_a_line_of_nobody_is_refused(line: bytes) -> None:
    """It belongs to no request, so it cannot become a response."""
    with pytest.raises(ValueError, match="without custom_id"):
        read_result_line(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=5
    )
)
def test_no_result_raises(value: object) -> None:
    """Whatever a result is, it becomes an outcome."""
    for decoder in (PLAIN, STRUCTURED):
        for result in (value, {"type": value}, {"type": "succeeded", "message": value}, succeeded(json.dumps(value))):
            assert decode(decoder, result).outcome in set(Outcome)


@given(st.binary(max_size=200))
def test_no_bytes_raise(content: bytes) -> None:
    """Nor do bytes that are no JSON at all."""
    assert PLAIN.decode_result(KEY, content).outcome == Outcome.ERRORED


TEXTS = st.text() | st.sampled_from(
    ['{"label":"ok"}', ' {"label":"OK"}', '{"label":"no"}', '{"a":"\\ud83d"}', "[]", "1e400", '{"label":"ok","severity":3.0}', "NaN"]
)
TOKENS = st.integers(0, 10**9)
ODD_TOKENS = TOKENS | st.none() | st.sampled_from(["7", 1.5, -1])
USAGES = st.fixed_dictionaries(
    {"input_tokens": TOKENS, "output_tokens": ODD_TOKENS},
    optional={
        "cache_read_input_tokens": ODD_TOKENS,
        "cache_creation_input_tokens": ODD_TOKENS,
        "cache_creation": st.none() | st.fixed_dictionaries({}, optional={"ephemeral_1h_input_tokens": ODD_TOKENS}),
        "service_tier": st.just("batch"),
    },
)
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "thinking", "tool_use"])}, optional={"text": TEXTS | st.none(), "citations": st.none()}
)
MESSAGES = st.fixed_dictionaries(
    {"model": st.sampled_from(["claude-haiku-5-5", "unpriced"]), "content": st.lists(BLOCKS, max_size=3), "usage": USAGES},
    optional={
        "stop_reason": st.sampled_from(["end_turn", "stop_sequence", "max_tokens", "refusal", "tool_use", None]),
        "stop_details": st.none() | st.just({"type": "refusal", "category": "cyber"}),
        "id": st.just("msg_1"),
    },
)
ERRORS = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(["error", "api_error"])}, optional={"message": st.text()}),
    lambda inner: st.fixed_dictionaries({"type": st.just("error"), "error": inner}),
    max_leaves=2,
)
RESULTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["succeeded", "succeeded", "errored", "expired", "canceled", "teleported", 1])},
    optional={"message": MESSAGES, "error": ERRORS},
)
WHOLE_LINES = st.fixed_dictionaries(
    {"custom_id": st.text(), "result": RESULTS | st.none()}, optional={"extra": st.none() | st.lists(st.integers())}
)
BROKEN = [
    b"",
    b" ",
    b"{",
    b'{"custom_id":"a"}',
    b"\xff",
    b"[1]",
    b'{"custom_id":"a","result":{"type":"succeeded","message":{"model":"\\ud83d"}}}',
]


def read_answers(decoder: Decoder, results: "list[Result | msgspec.Raw]") -> list[bytes | None]:
    """Return each result's answer, None where the fast path has none."""
    answers = decoder.read_answers(results)
    found: list[bytes | None] = [None] * len(results)
    sizes = answers.sizes or [len(text) for text in answers.content.split(b"\n")[:-1]]
    start = 0
    for row, message, size in zip(answers.rows, answers.messages, sizes, strict=True):
        assert cast(Succeeded, results[row]).message is message
        found[row] = answers.content[start : start + size]
        assert answers.content[start + size : start + size + 1] == b"\n"
        start += size + 1
    assert start == len(answers.content)
    return found


def decode_whole(decoder: Decoder, lines: list[ReadLine | ResultLine | None]) -> list[Response | None]:
    """Decode lines as a collector does, but for the columns."""
    found: list[Response | None] = []
    for line in lines:
        if line is None:
            found.append(None)
            continue
        (answer,) = read_answers(decoder, [line.result])
        response = decoder.decode_result(KEY, line.result)
        assert answer is None or (response.outcome, response.answer) == (Outcome.SUCCEEDED, answer.decode())
        found.append(response)
    return found


def decode_alone(decoder: Decoder, line: bytes) -> Response | None:
    try:
        return decoder.decode_result(KEY, read_result_line(line).result)
    except ValueError:
        return None


@given(st.lists(WHOLE_LINES.map(lambda line: json.dumps(line).encode()) | st.sampled_from(BROKEN), max_size=6), st.booleans())
def test_many_lines_are_decoded_as_each_alone(lines: list[bytes], ends_with_break: bool) -> None:
    """Whatever stands beside a line, and whichever path reads it."""
    piece = b"\n".join(lines) + b"\n" * ends_with_break
    for decoder in (PLAIN, STRUCTURED):
        read = read_result_lines(piece)
        assert decode_whole(decoder, read) == [decode_alone(decoder, line) for line in lines if line.strip()]


@pytest.mark.parametrize("result", [end[0] for end in ENDS] + [succeeded(answer[0]) for answer in STRUCTURED_ANSWERS], ids=lambda _: "")
def test_the_fast_path_answers_as_the_slow_one_does(result: object) -> None:
    """Or leaves it to it, which it does not where an answer is plain."""
    piece = json.dumps({"custom_id": "a", "result": result}).encode()
    for decoder in (PLAIN, STRUCTURED):
        assert decode_whole(decoder, read_result_lines(piece)) == [decode_alone(decoder, piece)]


def test_an_unusual_line_costs_no_other_its_fast_path() -> None:
    """It alone comes undecoded; a line of nobody comes as nothing."""
    good = json.dumps({"custom_id": "a", "result": succeeded("x")}).encode()
    odd = json.dumps({"custom_id": "b", "result": {"type": "teleported"}}).encode()
    kinds = [type(line) for line in read_result_lines(b"\n".join([good, odd, b"{", b"", good]))]
    assert kinds == [ReadLine, ResultLine, type(None), ReadLine]


def test_only_answers_without_more_ado_take_the_fast_path() -> None:
    """What is not as the schema has it, or cut, is judged as before; thinking blocks are left out."""
    results = [succeeded('{"label":"ok"}'), succeeded('{"label":"OK"}'), succeeded("x", "max_tokens"), {"type": "expired"}]
    results.append(succeeded([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": ' {"label": "Spam"}'}]))
    lines = read_result_lines(b"\n".join(json.dumps({"custom_id": "a", "result": result}).encode() for result in results))
    assert read_answers(STRUCTURED, [line.result for line in lines if line]) == [b'{"label":"ok"}', None, None, None, b'{"label":"Spam"}']


ANYTHING = Decoder({"schema": {"title": "Anything"}, "max_tokens": 100}, price)
PARTS = [
    "",
    " ",
    "\n",
    "1",
    "1 2",
    "1,2",
    "[",
    "]",
    "[]",
    "1] [2",
    "1]\n[2",
    '{"a":',
    "{",
    "}",
    "1}",
    '"',
    '"]\n["',
    '{"label":"ok"}',
    '{"label": "no"}',
]


def make_lines(texts: list[str]) -> bytes:
    return b"\n".join(json.dumps({"custom_id": "a", "result": succeeded(text)}).encode() for text in texts)


@given(st.lists(st.sampled_from(PARTS) | st.lists(st.sampled_from(PARTS)).map("".join) | TEXTS, max_size=8))
def test_many_answers_are_read_as_each_alone(texts: list[str]) -> None:
    """No answer reaches into its neighbour's, though they are parsed together."""
    lines = read_result_lines(make_lines(texts))
    results = [line.result for line in lines if line is not None]
    assert len(results) == len(texts)
    for decoder in (ANYTHING, STRUCTURED, PLAIN):
        alone = [read_answers(decoder, [result])[0] for result in results]
        assert read_answers(decoder, results) == alone
        for result, answer in zip(results, alone, strict=True):
            assert answer is None or decoder.decode_result(KEY, result).answer == answer.decode()


def test_answers_that_stand_for_each_others_line_are_not_taken_together() -> None:
    """As many documents as answers, but two of them within one and one of them across two."""
    for texts in (["1 2", '{"a":', "1}"], ["1] [2", "[", ""], ["1,2", "[1", "2]"]):
        assert read_answers(ANYTHING, [line.result for line in read_result_lines(make_lines(texts)) if line]) == [None] * 3
