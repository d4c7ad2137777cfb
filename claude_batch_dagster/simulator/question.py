"""One request, read: what it asks, or why the API refuses it. Pure.

The params without `messages` are the same in most requests of a batch, so they are read once per distinct bytes.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from claude_batch_dagster.simulator.models import Model, find_model
from claude_batch_dagster.simulator.rules import refuse_fields, refuse_for_model, refuse_length, refuse_messages, thinks
from claude_batch_dagster.simulator.schema_rules import refuse_schema
from claude_batch_dagster.simulator.structured import AnswerSchema, TooComplexError, compile_schema

BYTES_A_TOKEN = 3.5
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not answered."""

    error_type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All of a request but its messages."""

    model: Model
    max_tokens: int
    system: str
    schema: AnswerSchema | None
    tool: str | None
    """The tool that is forced; its input obeys `schema`."""
    thinks: bool
    thinking_hidden: bool
    effort: str
    stop_sequences: tuple[str, ...]
    input_tokens: int
    cached_tokens: int
    """How many of `input_tokens` stand before a cache breakpoint."""
    cache_ttl: str
    structured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that the API accepts."""

    shape: Shape
    prompt: str
    """The text of the last user turn."""
    input_tokens: int
    seed: int


def read_question(params: bytes | memoryview, version: str, betas: frozenset[str], *, batch: bool) -> Question | Refusal:
    """Read and judge one request's params."""
    fields = _FIELDS.decode(params)
    raw_messages = fields.pop("messages", None)
    static = msgspec.json.encode(fields)
    shape = read_shape(static, version, betas, batch)
    if isinstance(shape, Refusal):
        return shape
    if raw_messages is None:
        return Refusal(error_type="invalid_request_error", message="messages: Field required")
    messages = msgspec.json.decode(raw_messages)
    message = refuse_messages(messages, version, structured=shape.structured)
    if message is None:
        message = refuse_length(len(raw_messages) + len(static), shape.model)
    if message is not None:
        return Refusal(error_type="invalid_request_error", message=message)
    content = memoryview(raw_messages)
    return Question(
        shape=shape,
        prompt=_last_user_text(messages),
        input_tokens=shape.input_tokens + math.ceil(len(raw_messages) / BYTES_A_TOKEN),
        seed=zlib.crc32(content, zlib.crc32(static)) | zlib.adler32(content) << 32,
    )


@lru_cache(maxsize=64)
def read_shape(static: bytes, version: str, betas: frozenset[str], batch: bool) -> Shape | Refusal:
    """Read and judge the params without messages."""
    fields: dict[str, Any] = msgspec.json.decode(static)
    if message := refuse_fields(fields, version, batch=batch):
        return Refusal(error_type="invalid_request_error", message=message)
    model = find_model(fields["model"])
    if model is None:
        return Refusal(error_type="not_found_error", message=f"model: {fields['model']}")
    if message := refuse_for_model(fields, model, betas, batch=batch):
        return Refusal(error_type="not_found_error" if model.lifecycle == "retired" else "invalid_request_error", message=message)
    output = fields.get("output_config") or {}
    tool = _forced_tool(fields)
    try:
        schema = _output_schema(output) if tool is None else compile_schema(tool.get("input_schema") or {"type": "object"})
    except TooComplexError as error:
        return Refusal(error_type="invalid_request_error", message=f"output_config.format.schema: {error}")
    system, cached = fields.get("system"), 0
    if b'"cache_control"' in static and isinstance(system, list):
        cached = math.ceil(len(msgspec.json.encode(system)) / BYTES_A_TOKEN)
        cached = cached if cached >= model.min_cache_tokens else 0
    thinking = fields.get("thinking")
    return Shape(
        model=model,
        max_tokens=fields["max_tokens"],
        system=system if isinstance(system, str) else "\n".join(block["text"] for block in system or ()),
        schema=schema,
        tool=None if tool is None else str(tool.get("name")),
        thinks=thinks(fields, model),
        thinking_hidden=isinstance(thinking, dict) and thinking.get("display") == "omitted",
        effort=output.get("effort") or "medium",
        stop_sequences=tuple(fields.get("stop_sequences") or ()),
        input_tokens=math.ceil(len(static) / BYTES_A_TOKEN),
        cached_tokens=cached,
        cache_ttl="1h" if b'"1h"' in static else "5m",
        structured=output.get("format") is not None,
    )


def _output_schema(output: dict[str, Any]) -> AnswerSchema | None:
    wanted = output.get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        raise TooComplexError("output_config.format.type should be 'json_schema'")
    if message := refuse_schema(wanted.get("schema")):
        raise TooComplexError(message.removeprefix("output_config.format.schema: "))
    return compile_schema(wanted["schema"])


def _forced_tool(fields: dict[str, Any]) -> dict[str, Any] | None:
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict) or choice["type"] not in ("any", "tool"):
        return None
    tools: list[dict[str, Any]] = fields["tools"]
    return next((tool for tool in tools if tool.get("name") == choice.get("name")), tools[0])


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    for turn in reversed(messages):
        if turn["role"] == "user":
            content = turn["content"]
            return content if isinstance(content, str) else "\n\n".join(block["text"] for block in content if block["type"] == "text")
    return ""
