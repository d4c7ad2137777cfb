import json

import pytest

from claude_batch_dagster.simulator.answers import Spoiling, answer_message
from claude_batch_dagster.simulator.question import Question, read_question
from claude_batch_dagster.simulator.reading import find_document, word_limit

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["ok", "spam"]}, "summary": {"type": "string"}},
    "required": ["label", "summary"],
    "additionalProperties": False,
}


def answer(text, *, spoiling=None, **params):
    full = {"model": "claude-haiku-5-5", "max_tokens": 300, "messages": [{"role": "user", "content": text}], **params}
    question = read_question(json.dumps(full).encode(), "2026-10-21", frozenset(), batch=True)
    assert isinstance(question, Question), question
    return answer_message(question, "msg_01x", spoiling=spoiling or Spoiling())


def text_of(message):
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def test_summary_is_extractive_marked_and_the_same_for_the_same_text():
    message = answer("Summarize the review in at most 12 words.\n\nThe picture is great. But the remote died after one week of use.")
    assert text_of(message) == "[simulated] The picture is great."
    assert message == answer(
        "Summarize the review in at most 12 words.\n\nThe picture is great. But the remote died after one week of use."
    )
    assert text_of(answer("Summarize the review.\n\nA lamp.")) != text_of(message)


@pytest.mark.parametrize("system", ["Summarize in at most 5 words.", [{"type": "text", "text": "No more than 5 words, please."}]])
def test_word_limit_counts_the_mark(system):
    assert len(text_of(answer("one two three four five six seven eight nine ten", system=system)).split()) == 5


def test_thinking_comes_first_unless_disabled():
    assert [block["type"] for block in answer("Hi.")["content"]] == ["thinking", "text"]
    quiet = answer("Hi.", thinking={"type": "disabled"})
    assert [block["type"] for block in quiet["content"]] == ["text"]
    assert quiet["usage"]["output_tokens_details"]["thinking_tokens"] == 0
    assert answer("Hi.", thinking={"type": "adaptive", "display": "omitted"})["content"][0]["thinking"] == ""
    assert [block["type"] for block in answer("Hi.", model="claude-opus-5")["content"]] == ["text"]


def test_answer_longer_than_max_tokens_is_cut():
    message = answer("word " * 100, max_tokens=10)
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"]["output_tokens"] == 10
    assert 0 < len(text_of(message)) <= 10 * 3.5
    assert answer("word " * 100, max_tokens=200)["stop_reason"] == "end_turn"


def test_usage_has_every_field():
    usage = answer("Hi.")["usage"]
    assert usage.keys() == {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "cache_creation",
        "output_tokens_details",
        "server_tool_use",
        "service_tier",
        "inference_geo",
        "speed",
    }


def test_long_cached_system_is_written_or_read_and_the_total_stays():
    system = [{"type": "text", "text": "Rules. " * 1000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    usages = [answer(f"Hi {number}.", system=system)["usage"] for number in range(60)]
    assert {usage["cache_read_input_tokens"] > 0 for usage in usages} == {True, False}
    for usage in usages:
        assert usage["cache_creation"]["ephemeral_1h_input_tokens"] == usage["cache_creation_input_tokens"]
        assert usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"] > 1000


def test_forced_tool_is_called_with_valid_input():
    tool = {"name": "label_it", "input_schema": SCHEMA}
    message = answer("Good.", model="claude-sonnet-5", tools=[tool], tool_choice={"type": "tool", "name": "label_it"})
    assert message["stop_reason"] == "tool_use"
    assert message["content"][0]["name"] == "label_it"
    assert message["content"][0]["input"]["label"] in ("ok", "spam")


def test_stop_sequence_cuts_the_answer():
    message = answer("One. Two. Three.", stop_sequences=["Two"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "Two")
    assert text_of(message) == "[simulated] One. "


def test_spoilt_answers():
    structured = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    assert json.loads(text_of(answer("Good.", **structured))) == {"label": "ok", "summary": "[simulated] Good."}
    assert json.loads(text_of(answer("Good.", spoiling=Spoiling(enum_case=True), **structured)))["label"] == "OK"
    assert "label" not in json.loads(text_of(answer("Good.", spoiling=Spoiling(invalid=True), **structured)))
    refused = answer("Good.", spoiling=Spoiling(refusal=True), **structured)
    assert (refused["stop_reason"], refused["content"], refused["stop_details"]["type"]) == ("refusal", [], "refusal")
    assert answer("Good.", spoiling=Spoiling(truncated=True), **structured)["stop_reason"] == "max_tokens"
    assert answer("Good.", spoiling=Spoiling(pause=True))["stop_reason"] == "pause_turn"


@pytest.mark.parametrize(
    ("prompt", "document"),
    [
        ("Review of X:\nGood.", "Good."),
        ("Summarize the text below.\n\nFirst.\n\nSecond.", "First.\n\nSecond."),
        ("First part of a story.\n\nSecond part.", "First part of a story.\n\nSecond part."),
        ("Rate <review id='3'>Fine one.</review> now", "Fine one."),
        ("<doc><p>One.</p><p>Two.</p></doc> Summarize.", "<p>One.</p><p>Two.</p>"),
        ("a </b> c", "a </b> c"),
        ('Label this: """Some text""" please', "Some text"),
        ("Read:\n---\nSome text", "Some text"),
        ("Just this.", "Just this."),
        ("Answer this:\n", "Answer this:"),
    ],
)
def test_document_of_a_prompt(prompt, document):
    assert find_document(prompt) == document


@pytest.mark.parametrize(
    ("text", "limit"), [("in at most 25 words", 25), ("no more than 7 words", 7), ("max 9 words", 9), ("many words", 40)]
)
def test_word_limit_of_a_prompt(text, limit):
    assert word_limit(text) == limit


@pytest.mark.parametrize("filler", ["\n", " ", "<b>", "</b>", "<b></b", ":\n ", "```", ": "])
def test_reading_takes_time_in_proportion_to_the_prompt(filler):
    assert find_document("x" + filler * 200_000 + "y") is not None
