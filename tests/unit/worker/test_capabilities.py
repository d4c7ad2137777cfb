"""temporal_worker/capabilities.py: what a task asks against what its model can."""

from typing import Any

import pytest

from claude_batch_dagster.core.records import TaskRef
from temporal_worker.capabilities import find_mismatch
from temporal_worker.vendor import Model

YES, NO = {"supported": True}, {"supported": False}
CAPABILITIES: dict[str, object] = {
    "batch": YES,
    "structured_outputs": YES,
    "effort": {"supported": True, "low": YES, "high": YES, "max": NO},
    "thinking": {"supported": True, "types": {"adaptive": YES, "disabled": NO, "enabled": NO}},
}
DOCUMENT: dict[str, object] = {"model": "m", "max_tokens": 300, "schema": None, "effort": None, "thinking": None}


def model(**changes: Any) -> Model:
    fields: dict[str, Any] = {"lifecycle": "active", "max_tokens": 1_000, "max_input_tokens": 10_000, "capabilities": CAPABILITIES}
    return Model(id="m", **{**fields, **changes})


def mismatch(found: Model | None, largest_params_bytes: int = 0, **document: object) -> str | None:
    task = TaskRef(name="labels", task_key="0" * 32, largest_params_bytes=largest_params_bytes)
    return find_mismatch(task, {**DOCUMENT, **document}, {"m": found}.get)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"max_tokens": 1_000, "schema": {"type": "object"}, "effort": "high", "thinking": {"type": "adaptive"}},
        {"effort": "of-tomorrow"},
        {"thinking": {"type": "of-tomorrow"}},
    ],
)
def test_what_the_model_can_passes(document: dict[str, object]) -> None:
    """At the limit, and what the vendor does not speak of."""
    assert mismatch(model(), 35_000, **document) is None


@pytest.mark.parametrize(
    ("found", "document", "words"),
    [
        (None, {}, ["m, which the API does not know", "Correct the model's id"]),
        (model(lifecycle="retired"), {}, ["m, which is retired", "Name a current model"]),
        (model(capabilities={"batch": NO}), {}, ["Message Batches API does not take m", "Name another model"]),
        (model(), {"max_tokens": 1_001}, ["max_tokens is 1,001", "1,000 tokens", "Lower max_tokens"]),
        (model(capabilities={"structured_outputs": NO}), {"schema": {}}, ["structured outputs", "plain text"]),
        (model(capabilities={"effort": NO}), {"effort": "low"}, ["effort is 'low'", "takes no effort", "Leave effort out"]),
        (model(), {"effort": "max"}, ["effort is 'max'", "takes low, high.", "Use one of these"]),
        (model(), {"thinking": {"type": "disabled"}}, ["thinking is 'disabled'", "takes adaptive.", "leave thinking out"]),
    ],
)
def test_a_mismatch_is_named(found: Model | None, document: dict[str, object], words: list[str]) -> None:
    """The task, observed against limit, that nothing was sent, and what to do."""
    text = mismatch(found, **document) or ""
    for word in ["Task 'labels'", "Nothing was sent.", *words]:
        assert word in text


def test_the_largest_request_must_fit_the_window() -> None:
    """By estimate, at 3.5 bytes a token."""
    text = mismatch(model(), 35_004) or ""
    assert "35,004 bytes, about 10,002 tokens" in text
    assert "10,000 tokens" in text


@pytest.mark.parametrize("capabilities", [{}, {"effort": None, "thinking": {"types": []}, "batch": {}}])
def test_a_server_that_tells_nothing_stops_nothing(capabilities: dict[str, object]) -> None:
    """Older servers know no capabilities and no limits."""
    silent = model(capabilities=capabilities, max_tokens=None, max_input_tokens=None)
    asked = {"max_tokens": 10**9, "schema": {}, "effort": "max", "thinking": {"type": "disabled"}}
    assert mismatch(silent, 10**12, **asked) is None
