"""What `plan` shows."""

import doctest
import json
from types import SimpleNamespace

from claude_batch_dagster.cli import preview, request_view
from claude_batch_dagster.cli.report import Known

PARAMS = {
    "model": "claude-haiku-5-5",
    "max_tokens": 300,
    "system": "s" * 700,
    "thinking": {"type": "disabled"},
    "metadata": {"user_id": "u"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "messages": [{"role": "user", "content": "line one\n\nline two"}],
}


def plan(**more):
    fixed = {
        "total": SimpleNamespace(rows=9, skipped=1, too_large=0, asked=8, already_answered=0, in_flight=0),
        "batches": 1,
        "reasons": {"new": 5, "failed_before": 3},
        "changed_parts": {},
        "limit": None,
        "estimates": {},
        "expected_nano_usd": 1,
        "worst_nano_usd": None,
        "example": json.dumps(PARAMS),
    }
    return SimpleNamespace(**fixed | more)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(request_view).failed == 0


def test_request_is_readable_and_long_parts_are_cut_with_a_note():
    lines = request_view.request_lines(PARAMS)
    names = [line.split()[0] for line in lines if line and line[0] != " "]
    assert names == ["model", "max_tokens", "effort", "thinking", "metadata", "system", "user", "schema"]
    text = "\n".join(lines)
    assert "(100 more of 700 characters)" in text
    assert "user        line one\n\n            line two" in text
    assert '\\"' not in text


def test_reasons_are_always_all_there_for_programs():
    found = preview.preview_object(Known(), plan(changed_parts={"summaries": ("prompt",)}))
    assert found["reasons"] == {"new": 5, "changed": 0, "task_changed": 0, "failed_before": 3, "asked_again": 0}
    assert found["changed_parts"] == {"summaries": ["prompt"]}
    assert found["example"] == PARAMS


def test_reasons_and_changed_parts_are_told_in_words():
    assert preview.why_lines(plan(reasons={"task_changed": 2, "asked_again": 1}, changed_parts={"s": ("model: a -> b", "prompt")})) == [
        "2 because the task changed, 1 asked again on purpose",
        "what changed in s: model: a -> b, prompt",
    ]
    assert preview.why_lines(plan(reasons={})) == []
