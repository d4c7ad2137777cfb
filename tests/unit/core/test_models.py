import pytest

from claude_batch_dagster.core.models import THINKING_FLOOR_TOKENS, LeastThinking, is_retired, least_thinking


@pytest.mark.parametrize(
    ("model", "retired"),
    [
        ("claude-2.1", True),
        ("claude-instant-1.2", True),
        ("claude-3-haiku-20240307", True),
        ("claude-3-5-sonnet-20241022", True),
        ("claude-3-7-sonnet-latest", True),
        ("claude-opus-4-0", True),
        ("claude-opus-4-20250514", True),
        ("claude-opus-4-1-20250805", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-haiku-4-5", False),
        ("claude-sonnet-4-5", False),
        ("claude-opus-4-5", False),
        ("claude-opus-4-8", False),
        ("claude-sonnet-4-6", False),
        ("claude-haiku-5-5", False),
        ("claude-fable-5-2", False),
        ("of-tomorrow", False),
    ],
)
def test_only_models_that_are_gone_are_retired(model: str, retired: bool) -> None:
    assert is_retired(model) is retired


# Frozen: a preset's thinking is part of a request's identity. A line here is never edited.
@pytest.mark.parametrize(
    ("model", "least"),
    [
        ("claude-haiku-5-5", LeastThinking(thinking={"type": "disabled"})),
        ("claude-haiku-5-5-20261007", LeastThinking(thinking={"type": "disabled"})),
        ("claude-sonnet-5-5", LeastThinking(effort="low", floor_tokens=4_096)),
        ("claude-opus-5-5", LeastThinking(effort="low", floor_tokens=4_096)),
        ("claude-fable-5-2", LeastThinking(effort="low", floor_tokens=4_096)),
        ("claude-mythos-5", LeastThinking(effort="low", floor_tokens=4_096)),
        ("claude-haiku-4-5", LeastThinking()),
        ("of-tomorrow", LeastThinking()),
    ],
)
def test_a_model_thinks_as_little_as_it_can(model: str, least: LeastThinking) -> None:
    assert least_thinking(model) == least


def test_a_model_that_always_thinks_gets_room_for_it() -> None:
    assert THINKING_FLOOR_TOKENS == 4_096
