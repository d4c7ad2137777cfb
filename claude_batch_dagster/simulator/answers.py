"""The answer to a request: deterministic by its content, extractive, marked `[simulated]`. Pure."""

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields

import msgspec

from claude_batch_dagster.simulator.question import BYTES_A_TOKEN, Question
from claude_batch_dagster.simulator.reading import read_prompt

# A marker that no answer holds by itself; `results.py` writes the escape of a lone surrogate in its place.
SURROGATE_MARK = "\ufdd0surrogate\ufdd0"
_THINKING_TOKENS = {"low": 12, "medium": 24, "high": 48, "xhigh": 72, "max": 96}
_THOUGHT = "[simulated] I read the text and pick out what the instructions ask for, staying close to its own words. "


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiling:
    """How faults change one answer."""

    truncated: bool = False
    refusal: bool = False
    pause: bool = False
    invalid: bool = False
    enum_case: bool = False
    surrogate: bool = False


UNSPOILT = Spoiling()


def spoil(faults: AbstractSet[str]) -> Spoiling:
    """What these faults do to an answer."""
    return Spoiling(**{field.name: field.name.replace("_", "-") in faults for field in fields(Spoiling)})


def answer_message(question: Question, message_id: str, *, spoiling: Spoiling = UNSPOILT, service_tier: str = "batch") -> dict[str, object]:
    """The Message object."""
    shape = question.shape
    if spoiling.refusal:
        return _message(question, message_id, [], "refusal", output_tokens=1, thinking_tokens=0, service_tier=service_tier)
    reading = read_prompt(shape.system, question.prompt, question.seed, feel=shape.schema is not None)
    value = reading.extract(reading.max_words) if shape.schema is None else shape.schema.answer(reading)
    if shape.schema is not None and spoiling.enum_case:
        value = _swap_enum_case(value)
    if spoiling.invalid:
        value = _break(value)
    if spoiling.surrogate:
        value = _add_surrogate(value)
    text = value if isinstance(value, str) and shape.schema is None else msgspec.json.encode(value).decode()

    thinking_tokens = min(_THINKING_TOKENS[shape.effort], shape.max_tokens // 2) if shape.thinks else 0
    room_bytes = int((shape.max_tokens - thinking_tokens) * BYTES_A_TOKEN)
    encoded = text.encode()
    stop_reason = "pause_turn" if spoiling.pause else "end_turn"
    stop_sequence = None
    if spoiling.truncated:
        room_bytes = min(room_bytes, len(encoded) // 2)
    if len(encoded) > room_bytes:
        text, stop_reason = encoded[:room_bytes].decode(errors="ignore"), "max_tokens"
    for sequence in shape.stop_sequences:
        if sequence in text:
            text, stop_reason, stop_sequence = text[: text.index(sequence)], "stop_sequence", sequence

    content: list[dict[str, object]] = []
    if shape.thinks:
        thought = "" if shape.thinking_hidden else _THOUGHT[: int(thinking_tokens * BYTES_A_TOKEN)]
        content.append({"type": "thinking", "thinking": thought, "signature": f"c2ltdWxhdGVk{question.seed:016x}"})
    if shape.tool is not None and stop_reason == "end_turn":
        content.append({"type": "tool_use", "id": f"toolu_{message_id[4:]}", "name": shape.tool, "input": value})
        stop_reason = "tool_use"
    elif text:
        content.append({"type": "text", "text": text})
    written = math.ceil(len(text.encode()) / BYTES_A_TOKEN)
    output_tokens = shape.max_tokens if stop_reason == "max_tokens" else max(1, min(shape.max_tokens, thinking_tokens + written))
    message = _message(
        question, message_id, content, stop_reason, output_tokens=output_tokens, thinking_tokens=thinking_tokens, service_tier=service_tier
    )
    message["stop_sequence"] = stop_sequence
    return message


def _message(
    question: Question,
    message_id: str,
    content: list[dict[str, object]],
    stop_reason: str,
    *,
    output_tokens: int,
    thinking_tokens: int,
    service_tier: str,
) -> dict[str, object]:
    shape = question.shape
    cached = shape.cached_tokens
    # One request in ten pays for the cache, the others read it: a hit rate within what the documentation calls typical.
    written = cached if question.seed % 10 == 0 else 0
    refusal = {"type": "refusal", "category": "general_harms", "explanation": "[simulated] This request was refused by a fault switch."}
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": shape.model.id,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "stop_details": refusal if stop_reason == "refusal" else None,
        "container": None,
        "diagnostics": None,
        "usage": {
            "input_tokens": question.input_tokens - cached,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached - written,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written if shape.cache_ttl == "5m" else 0,
                "ephemeral_1h_input_tokens": written if shape.cache_ttl == "1h" else 0,
            },
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": thinking_tokens},
            "server_tool_use": None,
            "service_tier": service_tier,
            "inference_geo": "not_available",
            "speed": "standard",
        },
    }


def _swap_enum_case(value: object) -> object:
    # Free text starts with the prefix, so what does not is a word of the schema.
    match value:
        case str() if not value.startswith("[simulated]"):
            return value.upper() if value != value.upper() else value.lower()
        case list():
            return [_swap_enum_case(item) for item in value]
        case dict():
            return {key: _swap_enum_case(item) for key, item in value.items()}
        case _:
            return value


def _break(value: object) -> object:
    match value:
        case dict() if value:
            return {**dict(list(value.items())[1:]), "not_in_the_schema": "[simulated] a fault"}
        case str():
            return value
        case _:
            return {"not_in_the_schema": "[simulated] a fault"}


def _add_surrogate(value: object) -> object:
    match value:
        case str():
            return value + SURROGATE_MARK
        case dict():
            for key, item in value.items():
                if isinstance(item, str) and item.startswith("[simulated]"):
                    return {**value, key: item + SURROGATE_MARK}
            return value
        case _:
            return value
