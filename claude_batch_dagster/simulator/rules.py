"""What the API refuses in one request's params, at the end of its batch. Pure; the envelope's rules are in `envelope.py`.

Each check returns the message of the first offence, None when there is none. `fields` are the params without `messages`.
Source: facts/anthropic-batches.md, sections 0, 1, 2.8 and 4.
"""

from collections.abc import Mapping

from claude_batch_dagster.simulator.models import EFFORTS, LONG_OUTPUT_TOKENS, THINKING_TYPES, Model

NEW_VERSION = "2026-10-21"
LONG_OUTPUT_BETA = "output-300k-2026-03-24"
CHARS_A_TOKEN = 4

_NOT_IN_BATCHES = ("speed", "store", "previous_thread_event_id", "cache_hint", "context_hint")
_SAMPLING = ("temperature", "top_p", "top_k")
_STRINGS = ("model", "inference_geo", "service_tier")
_STRUCTURED = ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "output_format", "stop_sequences", "metadata")
_BETA = ("context_management", "mcp_servers", "fallbacks", "compaction", "thread", "billing_policy", "fallback_credit_token")
_OTHER = ("max_tokens", "cache_control", "container", "diagnostics", "stream", "research_preview_2026_02")
_KNOWN = frozenset({*_NOT_IN_BATCHES, *_SAMPLING, *_STRINGS, *_STRUCTURED, *_BETA, *_OTHER})

Fields = Mapping[str, object]


def refuse_fields(fields: Fields, version: str, *, batch: bool) -> str | None:
    """What is wrong whatever the model is."""
    for name in ("model", "max_tokens"):
        if name not in fields:
            return f"{name}: Field required"
    for name in fields:
        if name not in _KNOWN:
            return f"{name}: Extra inputs are not permitted"
    for name in _STRINGS:
        if not isinstance(fields.get(name, ""), str | None):
            return f"{name}: Input should be a valid string"
    if version == NEW_VERSION:
        for name in _SAMPLING:
            if name in fields:
                return f"{name}: sampling parameters are not supported in API version {NEW_VERSION}"
    for name in _SAMPLING:
        if not isinstance(fields.get(name, 0), int | float):
            return f"{name}: Input should be a valid number"
    if batch:
        if fields.get("stream"):
            return "stream: streaming is not supported in the Message Batches API"
        for name in _NOT_IN_BATCHES:
            if name in fields:
                return f"{name}: not supported in the Message Batches API"
        if fields.get("research_preview_2026_02") == "active":
            return "research_preview_2026_02: not supported in the Message Batches API"
    stops = fields.get("stop_sequences") or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop.strip() for stop in stops):
        return "stop_sequences: each stop sequence must contain non-whitespace"
    return _refuse_system(fields.get("system")) or _refuse_tools(fields)


def refuse_for_model(fields: Fields, model: Model, betas: frozenset[str], *, batch: bool) -> str | None:
    """What this model does not do."""
    if model.lifecycle == "retired":
        return f"model: {model.id} was retired on {model.retires} and is no longer available"
    return _refuse_max_tokens(fields, model, betas, batch=batch) or _refuse_thinking(fields, model) or _refuse_forced_tool(fields, model)


def thinks(fields: Fields, model: Model) -> bool:
    """Whether a message of this accepted request starts with a thinking block."""
    thinking = fields.get("thinking")
    if isinstance(thinking, dict):
        return thinking.get("type") in ("adaptive", "enabled")
    return model.thinks_by_default


def refuse_messages(messages: object, version: str, *, structured: bool = False) -> str | None:
    """What is wrong with the turns."""
    if not isinstance(messages, list):
        return "messages: Input should be a valid list"
    if not messages:
        return "messages: at least one message is required"
    for position, turn in enumerate(messages):
        if not isinstance(turn, dict):
            return f"messages.{position}: Input should be a valid dictionary"
        role = turn.get("role")
        if role not in ("user", "assistant"):
            return f"messages.{position}.role: Input should be 'user' or 'assistant'"
        if "content" not in turn:
            return f"messages.{position}.content: Field required"
        content = turn["content"]
        last = position == len(messages) - 1
        if isinstance(content, str):
            if not content and not (role == "assistant" and last):
                return f"messages.{position}: {role} messages must have non-empty content"
            if content and not content.strip():
                return "messages: text content blocks must contain non-whitespace text"
        elif message := _refuse_blocks(content, f"messages.{position}.content", role, version):
            return message
        if structured and last and role == "assistant":
            return "messages: prefilling assistant messages is not supported with output_config.format"
    if messages[0]["role"] != "user":
        return 'messages: first message must use the "user" role'
    return None


def refuse_length(chars: int, model: Model) -> str | None:
    """Whether a prompt of so many characters is over the context window."""
    tokens = chars // CHARS_A_TOKEN
    if tokens > model.context_tokens:
        return f"prompt is too long: {tokens} tokens > {model.context_tokens} maximum"
    return None


def _refuse_blocks(content: object, path: str, role: str, version: str) -> str | None:
    if not isinstance(content, list):
        return f"{path}: Input should be a valid string or list"
    if not content:
        return f"{path}: {role} messages must have non-empty content"
    for position, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            return f"{path}.{position}.type: Field required"
        if block["type"] == "text":
            text = block.get("text")
            if not isinstance(text, str):
                return f"{path}.{position}.text: Field required"
            if not text:
                return "messages: text content blocks must be non-empty"
            if not text.strip():
                return "messages: text content blocks must contain non-whitespace text"
            if version == NEW_VERSION and role == "user" and block.get("citations"):
                return f"{path}.{position}.citations: not supported on user text in API version {NEW_VERSION}"
        if version == NEW_VERSION and role == "assistant" and block["type"] == "document":
            return f"{path}.{position}: document blocks are not supported in assistant messages"
    return None


def _refuse_system(system: object) -> str | None:
    if system is None or isinstance(system, str):
        return None
    if not isinstance(system, list):
        return "system: Input should be a valid string or list"
    for position, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            return f"system.{position}: Input should be a text block"
        if not block["text"]:
            return "system: text content blocks must be non-empty"
    return None


def _refuse_tools(fields: Fields) -> str | None:
    tools = fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return "tools: Input should be a valid list"
    for position, tool in enumerate(tools):
        if not isinstance(tool.get("input_schema", {}), dict):
            return f"tools.{position}.input_schema: Input should be a valid dictionary"
    choice = fields.get("tool_choice")
    if choice is None:
        return None
    if not isinstance(choice, dict) or choice.get("type") not in ("auto", "any", "tool", "none"):
        return "tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'"
    if choice["type"] == "tool" and choice.get("name") not in [tool.get("name") for tool in tools]:
        return f"tool_choice.name: Tool '{choice.get('name')}' not found in provided tools"
    if choice["type"] == "any" and not tools:
        return "tool_choice: tools are required"
    return None


def _refuse_max_tokens(fields: Fields, model: Model, betas: frozenset[str], *, batch: bool) -> str | None:
    value = fields["max_tokens"]
    if not isinstance(value, int) or isinstance(value, bool):
        return "max_tokens: Input should be a valid integer"
    if value < 1:
        return "max_tokens: must be greater than or equal to 1"
    limit = LONG_OUTPUT_TOKENS if batch and model.long_output and LONG_OUTPUT_BETA in betas else model.max_output_tokens
    if value > limit:
        return f"max_tokens: {value} > {limit}, which is the maximum allowed number of output tokens for {model.id}"
    return None


def _refuse_thinking(fields: Fields, model: Model) -> str | None:
    output = fields.get("output_config") or {}
    if not isinstance(output, dict):
        return "output_config: Input should be a valid dictionary"
    for name in output:
        if name not in ("effort", "format"):
            return f"output_config.{name}: Extra inputs are not permitted"
    effort = output.get("effort")
    if effort is not None and effort not in EFFORTS:
        return f"output_config.effort: Input should be one of {', '.join(EFFORTS)}"
    if effort is not None and effort not in model.efforts:
        return f"output_config.effort: '{effort}' is not supported by {model.id}"
    thinking = fields.get("thinking")
    if thinking is None:
        return None
    if not isinstance(thinking, dict) or thinking.get("type") not in THINKING_TYPES:
        return f"thinking.type: Input should be one of {', '.join(THINKING_TYPES)}"
    kind = thinking["type"]
    if kind not in model.thinking:
        return f"thinking.type: '{kind}' is not supported by {model.id}"
    if kind == "disabled" and effort is not None and EFFORTS.index(effort) > EFFORTS.index(model.thinking_off_up_to):
        return f"thinking.type: 'disabled' is not supported by {model.id} at effort '{effort}'"
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if not isinstance(budget, int) or budget < 1024:
            return "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
        max_tokens = fields["max_tokens"]
        if isinstance(max_tokens, int) and budget >= max_tokens:
            return "max_tokens: must be greater than thinking.budget_tokens"
    return None


def _refuse_forced_tool(fields: Fields, model: Model) -> str | None:
    choice = fields.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") not in ("any", "tool"):
        return None
    if not model.forced_tools:
        return f"tool_choice: forcing tool use is not supported by {model.id}"
    if thinks(fields, model):
        return "tool_choice: thinking may not be enabled when tool_choice forces tool use"
    return None
