"""What is known of Claude models where no vendor can be asked: which are gone, and how little the others can think.

The presets' thinking is part of a request's identity, so a row here never changes once it is released; the vendor is asked for the
rest (`GET /v1/models`) before a run sends anything.
Source: platform.claude.com model pages and the `anthropic` 2.12.0 model literals (checked 2026-11-22).
"""

from dataclasses import dataclass

RETIRED_PREFIXES = (
    "claude-1",
    "claude-2",
    "claude-instant",
    "claude-3",
    "claude-opus-4-0",
    "claude-opus-4-1",
    "claude-opus-4-2",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2",
)
THINKING_OFF_MODELS = ("claude-haiku-5-5",)
ALWAYS_THINKING_MODELS = ("claude-sonnet-5-5", "claude-opus-5-5", "claude-fable-5", "claude-mythos-5")
THINKING_FLOOR_TOKENS = 4_096
FULL_PRICE = 2
"""The Messages API costs twice the batch price, caches included. Source: platform.claude.com pricing (checked 2026-11-22)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastThinking:
    """The settings with which a model thinks least.

    Attributes:
        thinking: Value of the Messages parameter, None to leave it out.
        effort: Value of `output_config.effort`, None to leave it out.
        floor_tokens: What `max_tokens` must leave for thinking.
    """

    thinking: dict[str, object] | None = None
    effort: str | None = None
    floor_tokens: int = 0


def is_retired(model: str) -> bool:
    """Tell whether a model is known to be gone."""
    return model.startswith(RETIRED_PREFIXES)


def least_thinking(model: str) -> LeastThinking:
    """Return the settings with which this model thinks least; none for models that do not think unless asked."""
    if model.startswith(THINKING_OFF_MODELS):
        return LeastThinking(thinking={"type": "disabled"})
    if model.startswith(ALWAYS_THINKING_MODELS):
        return LeastThinking(effort="low", floor_tokens=THINKING_FLOOR_TOKENS)
    return LeastThinking()
