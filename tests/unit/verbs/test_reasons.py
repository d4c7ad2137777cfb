"""verbs/reasons.py: what changed in a task, in its person's words."""

from typing import Any

import pytest

from claude_batch_dagster.core.presets import Moderate, Summarize, preset_arguments
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.verbs.reasons import describe_task_changes, explain_reasons

HAIKU = "claude-haiku-5-5"


def summarize(**changes: Any) -> ClaudeTask:
    return Summarize(**{"name": "s", "column": "text", "model": HAIKU, **changes})


def moderate(*labels: str) -> ClaudeTask:
    return Moderate(name="m", column="text", model=HAIKU, labels=labels)


def own(**changes: Any) -> ClaudeTask:
    schema = {"type": "object", "properties": {"t": {"type": "string"}}, "required": ["t"], "additionalProperties": False}
    return ClaudeTask(**{"name": "t", "model": HAIKU, "prompt": "Which? {text}", "max_tokens": 100, "output": schema, **changes})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (summarize(max_words=40), summarize(max_words=15), ["max_words: 40 -> 15"]),
        (
            summarize(),
            summarize(column="title", model="claude-sonnet-5-5"),
            ["column: text -> title", f"model: {HAIKU} -> claude-sonnet-5-5"],
        ),
        (moderate("ok", "spam"), moderate("ok", "spam", "hate"), ["labels: ok, spam -> ok, spam, hate"]),
        (moderate("ok", "spam"), moderate("ok", *(f"label {number}" for number in range(9))), ["labels"]),
        (own(), own(prompt="What is it about? {text}"), ["prompt: Which? {text} -> What is it about? {text}"]),
        (own(), own(system="Be brief.", output=None), ["output", "system: none -> Be brief."]),
        (own(), own(prompt="Which?\n{text}"), ["prompt"]),
    ],
)
def test_the_argument_that_changed_is_named(before: ClaudeTask, now: ClaudeTask, said: list[str]) -> None:
    assert describe_task_changes(before.document(), now) == said


def test_another_version_of_a_preset_is_named_by_its_parts() -> None:
    former = {**summarize().document(), "version": 2, "system": "A later text."}
    assert describe_task_changes(former, summarize()) == ["system", "version: 2 -> 1"]


def test_a_preset_is_read_back_from_its_document() -> None:
    assert preset_arguments(summarize(max_words=7).document()) == {"model": HAIKU, "column": "text", "max_words": 7}
    assert preset_arguments(moderate("ok", "spam").document()) == {"model": HAIKU, "column": "text", "labels": ["ok", "spam"]}
    assert preset_arguments(own().document()) == {}


def test_reasons_are_counted_in_a_fixed_order() -> None:
    reasons = {"asked_again": 1, "new": 1_200, "failed_before": 2}
    assert explain_reasons(reasons, {}) == ["1,200 new, 2 failed before, 1 asked again on purpose"]
    assert explain_reasons({}, {}) == []
