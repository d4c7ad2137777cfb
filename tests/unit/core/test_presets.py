"""The golden part of this file freezes identity: what it pins is never edited. A better text is a new version beside the old one."""

import hashlib

import pytest

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.models import THINKING_FLOOR_TOKENS
from claude_batch_dagster.core.presets import DOCUMENT_PROMPT, MODERATE_V1, SUMMARIZE_V1, Moderate, Summarize
from claude_batch_dagster.core.schema import FieldType

HAIKU = "claude-haiku-5-5"
LABELS = ("ok", "spam", "hate")


# Frozen for ever: an edited text asks, and pays, everything again.
@pytest.mark.parametrize(
    ("text", "sha256"),
    [
        (DOCUMENT_PROMPT, "7e0e623fc1e4803b0aa008c0aff859d270b45b7c95dd6cf1c484a9275fbff3d8"),
        (SUMMARIZE_V1, "c4a0b94759805d063932bd9d7aab2199056239d907b533f98fb6695ed92561d3"),
        (MODERATE_V1, "0fc51b11f1b342fe6f1f3aae83a90263a55d5d5869d103fb80a2a64f10e59dd6"),
    ],
)
def test_a_released_text_never_changes(text: str, sha256: str) -> None:
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


def test_summaries_are_one_text_column() -> None:
    task = Summarize(name="summaries", column="text", model=HAIKU)
    assert [(field.name, field.type, field.required) for field in task.fields] == [("summary", FieldType.STRING, True)]
    assert "at most 40 words" in (task.system or "")


def test_labels_are_four_columns_whose_severity_is_an_enum() -> None:
    task = Moderate(name="labels", column="text", model=HAIKU, labels=LABELS)
    assert [(field.name, field.type) for field in task.fields] == [
        ("label", FieldType.STRING),
        ("categories", FieldType.LIST),
        ("severity", FieldType.INTEGER),
        ("reason", FieldType.STRING),
    ]
    assert task.fields[1].item is not None
    assert task.fields[1].item.type == FieldType.STRING
    properties = task.static_params()["output_config"]["format"]["schema"]["properties"]  # type: ignore[index]
    assert properties["label"]["enum"] == properties["categories"]["items"]["enum"] == list(LABELS)
    assert properties["severity"]["enum"] == [0, 1, 2, 3]
    assert "Allowed labels: ok, spam, hate." in (task.system or "")


@pytest.mark.parametrize(
    ("model", "floor_tokens", "effort", "thinking"),
    [
        (HAIKU, 0, None, {"type": "disabled"}),
        ("claude-sonnet-5-5", THINKING_FLOOR_TOKENS, "low", None),
        ("claude-haiku-4-5", 0, None, None),
    ],
)
def test_presets_think_as_little_as_the_model_can_and_leave_room_for_it(
    model: str, floor_tokens: int, effort: str | None, thinking: dict[str, str] | None
) -> None:
    summarize = Summarize(name="s", column="text", model=model, max_words=40)
    moderate = Moderate(name="m", column="text", model=model, labels=LABELS)
    assert [(task.effort, task.thinking) for task in (summarize, moderate)] == [(effort, thinking)] * 2
    assert (summarize.max_tokens, moderate.max_tokens) == (128 + 4 * 40 + floor_tokens, 512 + floor_tokens)


def test_labels_with_braces_and_quotes_stay_as_they_are() -> None:
    task = Moderate(name="m", column="text", model=HAIKU, labels=("{ok}", 'so "so"', "ünfein"))
    assert 'Allowed labels: {ok}, so "so", ünfein.' in (task.system or "")


@pytest.mark.parametrize("max_words", [4, 2_001, 0, -1])
def test_a_length_out_of_range_is_refused(max_words: int) -> None:
    with pytest.raises(TaskError, match=rf"'s' has max_words={max_words}; 5 to 2,000 are possible\. Nothing was sent"):
        Summarize(name="s", column="text", model=HAIKU, max_words=max_words)


@pytest.mark.parametrize("labels", [(), ("ok",), ("ok", " "), "ok,spam"])
def test_fewer_than_two_labels_are_refused(labels: tuple[str, ...] | str) -> None:
    with pytest.raises(TaskError, match=r"'m' has the labels .*at least two are needed.*Nothing was sent"):
        Moderate(name="m", column="text", model=HAIKU, labels=labels)


@pytest.mark.parametrize("labels", [("ok", "OK"), ("straße", "STRASSE"), ("ok", " ok", "spam"), ("ok", "ok")])
def test_labels_that_cannot_be_told_apart_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(TaskError, match=r"differ in case only.*Nothing was sent\. Rename one"):
        Moderate(name="m", column="text", model=HAIKU, labels=labels)
