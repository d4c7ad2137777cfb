import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from claude_batch_dagster.simulator.question import Question, Refusal, read_question

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
TOOL = {"name": "t", "input_schema": SCHEMA}
TURN = {"role": "user", "content": "Hello."}


def read(params, *, version="2026-10-21", betas=(), batch=True):
    full = {"model": "claude-haiku-5-5", "max_tokens": 100, "messages": [TURN], **params}
    return read_question(
        json.dumps({name: value for name, value in full.items() if value is not ...}).encode(), version, frozenset(betas), batch=batch
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": ...}, "model: Field required"),
        ({"max_tokens": ...}, "max_tokens: Field required"),
        ({"messages": ...}, "messages: Field required"),
        ({"model": "claude-nope"}, "model: claude-nope"),
        ({"model": 5}, "model: Input should be a valid string"),
        ({"model": "claude-opus-4-20250514"}, "model: claude-opus-4-20250514 was retired"),
        ({"max_tokens": 128_001}, "max_tokens: 128001 > 128000, which is the maximum allowed number of output tokens for claude-haiku-5-5"),
        ({"max_tokens": 0}, "max_tokens: must be greater than or equal to 1"),
        ({"max_tokens": "9"}, "max_tokens: Input should be a valid integer"),
        ({"temperature": 1}, "temperature: sampling parameters"),
        ({"top_p": 0.9}, "top_p: sampling parameters"),
        ({"top_k": 5}, "top_k: sampling parameters"),
        ({"stream": True}, "stream:"),
        ({"speed": "fast"}, "speed:"),
        ({"store": True}, "store:"),
        ({"cache_hint": {}}, "cache_hint:"),
        ({"research_preview_2026_02": "active"}, "research_preview_2026_02:"),
        ({"prompt": "x"}, "prompt: Extra inputs are not permitted"),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tool_choice: thinking may not be enabled"),
        ({"model": "claude-sonnet-5-5", "tools": [TOOL], "tool_choice": {"type": "tool", "name": "t"}}, "tool_choice: forcing tool use"),
        ({"model": "claude-opus-5-5", "thinking": {"type": "disabled"}}, "thinking.type: 'disabled' is not supported"),
        ({"model": "claude-sonnet-5-5", "thinking": {"type": "disabled"}}, "thinking.type: 'disabled' is not supported"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "thinking.type: 'disabled' is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.type: 'enabled' is not supported"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort:"),
        ({"model": "claude-haiku-4-5", "output_config": {"effort": "low"}}, "output_config.effort: 'low' is not supported"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.schema: output_config.format.type"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "output_config.format.schema: For 'object' type",
        ),
        ({"system": ""}, None),
        ({"system": [{"type": "text", "text": ""}]}, "system: text content blocks must be non-empty"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": "Hello"}, "messages: Input should be a valid list"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: user messages must have non-empty content"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages: text content blocks must contain non-whitespace text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "messages: text content blocks must be non-empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role:"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: first message must use"),
        ({"messages": [{"role": "user", "content": "x" * 4_100_000}]}, "prompt is too long: 10"),
        (
            {
                "messages": [TURN, {"role": "assistant", "content": "{"}],
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            },
            "messages: prefilling assistant messages",
        ),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, None),
        ({"thinking": {"type": "disabled"}, "tools": [TOOL], "tool_choice": {"type": "any"}}, None),
        ({"model": "claude-sonnet-5-5", "thinking": {"type": "between_tools"}}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}]}, None),
    ],
)
def test_params_are_refused_or_taken(params, message):
    question = read(params)
    if message is None:
        assert isinstance(question, Question)
    else:
        assert isinstance(question, Refusal)
        assert question.message.startswith(message)


def test_old_version_still_takes_sampling_parameters():
    assert isinstance(read({"temperature": 0.5}, version="2023-06-01"), Question)


def test_long_output_beta_raises_max_tokens_in_batches_only():
    assert isinstance(read({"max_tokens": 300_000}, betas=["output-300k-2026-03-24"]), Question)
    assert isinstance(read({"max_tokens": 300_000}, betas=["output-300k-2026-03-24"], batch=False), Refusal)
    assert isinstance(read({"max_tokens": 300_001}, betas=["output-300k-2026-03-24"]), Refusal)


def test_alias_is_answered_by_its_snapshot():
    question = read({"model": "claude-haiku-4-5"})
    assert isinstance(question, Question)
    assert question.shape.model.id == "claude-haiku-4-5-20251001"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 0},
        {"type": "number", "multipleOf": 2},
        {"type": "string", "maxLength": 5},
        {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        {"type": "array", "items": {"type": "string"}, "minItems": 2},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        {"type": "object", "properties": {}},
        {"type": "object", "additionalProperties": True},
        {"type": "string", "format": "regex"},
        {"type": "string", "pattern": r"(a)\1"},
        {"type": "string", "enum": []},
        {"enum": [{"a": 1}]},
        {"type": "text"},
        {"oneOf": [{"type": "string"}]},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "string"}}},
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(25)}, "additionalProperties": False},
        {
            "type": "object",
            "properties": {f"p{number}": {"type": ["string", "null"]} for number in range(17)},
            "required": [f"p{number}" for number in range(17)],
            "additionalProperties": False,
        },
    ],
)
def test_schema_beyond_structured_outputs_is_refused(schema):
    question = read({"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    assert isinstance(question, Refusal)
    assert question.error_type == "invalid_request_error"
    assert question.message.startswith("output_config.format.schema: ")


def test_schema_that_nothing_obeys_is_refused_rather_than_broken():
    schema = {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a", "b"], "additionalProperties": False}
    assert isinstance(read({"output_config": {"format": {"type": "json_schema", "schema": schema}}}), Refusal)


ANY_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["", "text", "user", "auto", "object"]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "text", "role", "content", "name", "format", "schema", "effort", "enum", "items", "properties", "required"]
            ),
            children,
            max_size=4,
        ),
    ),
    max_leaves=12,
)
FIELDS = [
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "stop_sequences",
    "stream",
    "metadata",
]


@settings(max_examples=300, deadline=None)
@given(params=st.dictionaries(st.sampled_from(FIELDS), ANY_JSON, min_size=1, max_size=3))
def test_any_params_are_read_or_refused_and_never_break_the_simulator(params):
    assert isinstance(read(params), Question | Refusal)


@settings(max_examples=300, deadline=None)
@given(schema=ANY_JSON)
@example(schema={"enum": []})
def test_any_schema_is_read_or_refused_and_never_breaks_the_simulator(schema):
    tool = {"name": "t", "input_schema": schema}
    forced = {"model": "claude-sonnet-5", "tools": [tool], "tool_choice": {"type": "any"}}
    assert isinstance(read(forced), Question | Refusal)
    assert isinstance(read({"output_config": {"format": {"type": "json_schema", "schema": schema}}}), Question | Refusal)


def test_external_reference_of_a_tool_is_refused_without_a_network_call():
    tool = {"name": "t", "input_schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    question = read({"model": "claude-sonnet-5", "tools": [tool], "tool_choice": {"type": "any"}})
    assert isinstance(question, Refusal)


def test_integers_of_any_size_are_answered():
    from claude_batch_dagster.simulator.answers import answer_message

    schema = {"type": "integer", "enum": [2**70]}
    question = read({"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    assert not isinstance(question, Question) or str(2**70) in str(answer_message(question, "msg_01x"))
