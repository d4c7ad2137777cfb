"""The model catalogue: limits and capabilities as of November 2026, and a few retired models.

Source: facts/anthropic-batches.md, section 4 (checked 2026-11-22). Release dates that it does not give are the first of a month.
"""

from dataclasses import dataclass

EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING_TYPES = ("adaptive", "between_tools", "disabled", "enabled")
LONG_OUTPUT_TOKENS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model. Limits are in tokens, dates are ISO days."""

    id: str
    name: str
    created: str
    context_tokens: int = 1_000_000
    max_output_tokens: int = 128_000
    thinking: frozenset[str] = frozenset({"adaptive", "disabled"})
    thinks_by_default: bool = False
    thinking_off_up_to: str = "max"
    """The highest effort at which `disabled` is accepted."""
    forced_tools: bool = True
    efforts: tuple[str, ...] = EFFORTS
    long_output: bool = False
    """Whether the beta `output-300k-2026-03-24` raises `max_tokens`."""
    min_cache_tokens: int = 1024
    lifecycle: str = "active"
    deprecated: str | None = None
    retires: str | None = None


def _always_thinking(model_id: str, name: str, created: str) -> Model:
    return Model(
        id=model_id,
        name=name,
        created=created,
        thinking=frozenset({"adaptive"}),
        thinks_by_default=True,
        forced_tools=False,
        min_cache_tokens=512,
    )


def _retired(model_id: str, name: str, created: str, retired: str) -> Model:
    return Model(
        id=model_id,
        name=name,
        created=created,
        context_tokens=200_000,
        max_output_tokens=32_000,
        thinking=frozenset({"enabled", "disabled"}),
        efforts=(),
        lifecycle="retired",
        deprecated=created,
        retires=retired,
    )


_OLD_THINKING = frozenset({"enabled", "disabled"})
_BOTH_THINKING = frozenset({"adaptive", "enabled", "disabled"})

CATALOGUE: tuple[Model, ...] = (
    _always_thinking("claude-fable-5-2", "Claude Fable 5.2", "2026-11-01"),
    _always_thinking("claude-mythos-5-2", "Claude Mythos 5.2", "2026-11-01"),
    Model(
        id="claude-haiku-5-5",
        name="Claude Haiku 5.5",
        created="2026-10-07",
        thinks_by_default=True,
        thinking_off_up_to="high",
        long_output=True,
        min_cache_tokens=512,
    ),
    Model(
        id="claude-sonnet-5-5",
        name="Claude Sonnet 5.5",
        created="2026-09-28",
        thinking=frozenset({"adaptive", "between_tools"}),
        thinks_by_default=True,
        forced_tools=False,
        long_output=True,
        min_cache_tokens=512,
    ),
    _always_thinking("claude-fable-5-1", "Claude Fable 5.1", "2026-09-01"),
    _always_thinking("claude-opus-5-5", "Claude Opus 5.5", "2026-09-01"),
    _always_thinking("claude-mythos-5-1", "Claude Mythos 5.1", "2026-09-01"),
    Model(id="claude-sonnet-5", name="Claude Sonnet 5", created="2026-07-01", long_output=True),
    Model(id="claude-fable-5", name="Claude Fable 5", created="2026-07-01", thinks_by_default=True, thinking=frozenset({"adaptive"})),
    Model(id="claude-mythos-5", name="Claude Mythos 5", created="2026-07-01", thinks_by_default=True, thinking=frozenset({"adaptive"})),
    Model(id="claude-opus-5", name="Claude Opus 5", created="2026-07-01", long_output=True),
    Model(id="claude-opus-4-8", name="Claude Opus 4.8", created="2026-05-01", long_output=True),
    Model(id="claude-opus-4-7", name="Claude Opus 4.7", created="2026-04-01", long_output=True),
    Model(id="claude-opus-4-6", name="Claude Opus 4.6", created="2026-02-01", thinking=_BOTH_THINKING, long_output=True),
    Model(
        id="claude-sonnet-4-6",
        name="Claude Sonnet 4.6",
        created="2026-02-01",
        max_output_tokens=64_000,
        thinking=_BOTH_THINKING,
        long_output=True,
    ),
    Model(
        id="claude-haiku-4-5-20251001",
        name="Claude Haiku 4.5",
        created="2025-10-01",
        context_tokens=200_000,
        max_output_tokens=64_000,
        thinking=_OLD_THINKING,
        efforts=(),
        min_cache_tokens=4096,
    ),
    Model(
        id="claude-opus-4-5-20251101",
        name="Claude Opus 4.5",
        created="2025-11-01",
        context_tokens=200_000,
        max_output_tokens=64_000,
        thinking=_OLD_THINKING,
        efforts=("low", "medium", "high"),
        lifecycle="deprecated",
        deprecated="2026-09-01",
        retires="2026-11-24",
    ),
    Model(
        id="claude-sonnet-4-5-20250929",
        name="Claude Sonnet 4.5",
        created="2025-09-29",
        context_tokens=200_000,
        max_output_tokens=64_000,
        thinking=_OLD_THINKING,
        efforts=(),
        lifecycle="deprecated",
        deprecated="2026-09-01",
    ),
    _retired("claude-opus-4-1-20250805", "Claude Opus 4.1", "2025-08-05", "2026-08-05"),
    _retired("claude-opus-4-20250514", "Claude Opus 4", "2025-05-14", "2026-05-14"),
    _retired("claude-sonnet-4-20250514", "Claude Sonnet 4", "2025-05-14", "2026-05-14"),
    _retired("claude-3-5-haiku-20241022", "Claude Haiku 3.5", "2024-10-22", "2026-02-19"),
)

ALIASES = {
    "claude-haiku-4-5": "claude-haiku-4-5-20251001",
    "claude-opus-4-5": "claude-opus-4-5-20251101",
    "claude-sonnet-4-5": "claude-sonnet-4-5-20250929",
    "claude-opus-4-1": "claude-opus-4-1-20250805",
}

_BY_ID = {model.id: model for model in CATALOGUE}


def find_model(name: str) -> Model | None:
    """The model of this id or alias, retired ones included; None when there is none."""
    return _BY_ID.get(ALIASES.get(name, name))


def describe_model(model: Model) -> dict[str, object]:
    """The object that `GET /v1/models/{id}` answers."""
    effort: dict[str, object] = {name: {"supported": name in model.efforts} for name in EFFORTS}
    thinking = {name: {"supported": name in model.thinking} for name in THINKING_TYPES}
    yes = {"supported": model.lifecycle != "retired"}
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.name,
        "created_at": f"{model.created}T00:00:00Z",
        "lifecycle": model.lifecycle,
        "deprecated_at": model.deprecated and f"{model.deprecated}T00:00:00Z",
        "retires_at": model.retires and f"{model.retires}T00:00:00Z",
        "line": model.name.split()[1].lower(),
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.max_output_tokens,
        "capabilities": {
            "batch": yes,
            "citations": yes,
            "code_execution": yes,
            "context_management": {
                "supported": False,
                "clear_thinking_20251015": {"supported": False},
                "clear_tool_uses_20250919": {"supported": False},
                "compact_20260112": {"supported": False},
            },
            "effort": {"supported": bool(model.efforts), **effort},
            "image_input": yes,
            "pdf_input": yes,
            "server_tools": {"supported": True, "web_search": yes, "code_execution": yes},
            "structured_outputs": {"supported": model.lifecycle != "retired"},
            "thinking": {"supported": model.thinking != {"disabled"}, "types": thinking},
        },
    }
