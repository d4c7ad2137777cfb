import json

import anthropic
import pytest


def test_message_is_what_a_batch_answers(simulator, ask):
    request = ask("a", "Summarize:\nA fine lamp. It works.")
    message = simulator.client().messages.create(**request["params"])
    batched = simulator.ended([request])["a"]["message"]
    assert message.content[1].text == batched["content"][1]["text"] == "[simulated] A fine lamp. It works."
    assert message.usage.input_tokens == batched["usage"]["input_tokens"]
    assert message.usage.service_tier == "standard"


def test_tokens_are_counted_without_max_tokens(simulator):
    counted = simulator.client().messages.count_tokens(model="claude-haiku-5-5", messages=[{"role": "user", "content": "x" * 350}])
    assert 100 <= counted.input_tokens <= 140


def test_unknown_model_is_404_and_bad_params_400(simulator, ask):
    client = simulator.client()
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**ask("a", model="claude-nope")["params"])
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**ask("a", thinking={"type": "enabled", "budget_tokens": 2000})["params"])
    assert simulator.call("POST", "/v1/messages", b"{").status == 400
    assert simulator.call("POST", "/v1/messages", b"").status == 400
    assert simulator.call("POST", "/v1/messages", b'{"stream":true}').status == 400


def test_catalogue_tells_limits_capabilities_and_retirement(simulator):
    client = simulator.client()
    models = {model.id: model for model in client.models.list(limit=5)}
    assert {"claude-haiku-5-5", "claude-fable-5-2", "claude-opus-4-8", "claude-sonnet-4-20250514"} <= models.keys()
    haiku = client.models.retrieve("claude-haiku-5-5")
    assert (haiku.max_input_tokens, haiku.max_tokens, haiku.lifecycle) == (1_000_000, 128_000, "active")
    assert haiku.capabilities.batch.supported
    assert haiku.capabilities.structured_outputs.supported
    assert haiku.capabilities.thinking.types.disabled.supported
    assert not client.models.retrieve("claude-sonnet-5-5").capabilities.thinking.types.disabled.supported
    assert client.models.retrieve("claude-haiku-4-5").id == "claude-haiku-4-5-20251001"
    assert models["claude-sonnet-4-20250514"].lifecycle == "retired"
    assert models["claude-opus-4-5-20251101"].retires_at is not None
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-nope")


def test_answers_are_spoilt_where_the_switch_names_messages(start, ask):
    simulator = start("invalid@message=2", "truncated@message")
    first, second, third = (simulator.client().messages.create(**ask("a")["params"]) for _ in range(3))
    assert (first.stop_reason, second.stop_reason, third.stop_reason) == ("max_tokens", "end_turn", "end_turn")
    assert simulator.call("GET", "/simulator/faults").json["active"] == {}


def test_a_switch_for_messages_spoils_no_batch(start, ask):
    simulator = start("refusal@message=all")
    assert simulator.ended([ask("a")])["a"]["message"]["stop_reason"] == "end_turn"
    assert simulator.client().messages.create(**ask("a")["params"]).stop_reason == "refusal"


def test_what_was_asked_is_kept(simulator, ask):
    simulator.client().messages.create(**ask("a", "A lamp.")["params"])
    (line,) = simulator.call("GET", "/simulator/messages").body.splitlines()
    assert json.loads(line)["messages"] == ask("a", "A lamp.")["params"]["messages"]
