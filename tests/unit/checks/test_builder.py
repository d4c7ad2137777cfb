"""What `build_claude_batch_checks` takes, and what it refuses."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from claude_batch_dagster import ClaudeTask, build_claude_batch_checks
from claude_batch_dagster.core.errors import UsageError
from tests.dagster_house import LABELS, MODERATION, PLAIN, TOPICS, define


def test_each_limit_is_a_check_that_says_its_number(tmp_path: Path) -> None:
    checks = build_claude_batch_checks(define(tmp_path, MODERATION, TOPICS), min_coverage=1, max_refusal_rate=0.05, blocking=["coverage"])
    specs = [spec for one in checks for spec in one.check_specs]
    assert [(spec.asset_key.to_user_string(), spec.name, spec.blocking) for spec in specs] == [
        ("labels", "coverage", True),
        ("labels", "refusal_rate", False),
        ("topics", "coverage", True),
        ("topics", "refusal_rate", False),
    ]
    assert specs[1].description == "At most 0.05 of the rows that were asked about were refused."


def test_one_list_of_labels_is_refused_where_there_are_two_label_columns(tmp_path: Path) -> None:
    output = {
        "type": "object",
        "properties": {name: {"type": "string", "enum": ["a", "b"]} for name in ("one", "two")},
        "required": ["one", "two"],
    }
    task = make_task(output)
    with pytest.raises(UsageError, match="2 label columns"):
        build_claude_batch_checks(define(tmp_path, task), allowed_labels=["a"])
    assert build_claude_batch_checks(define(tmp_path, task), allowed_labels={"two": ["a"]})


def make_task(output: dict[str, Any]) -> ClaudeTask:
    return ClaudeTask(name="both", model=PLAIN.model, prompt="{text}", output=output, max_tokens=100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "has no limit"),
        ({"min_coverage": 95}, "min_coverage=95; it is a share, 0 to 1"),
        ({"max_label_drift": {"label": 7}}, "max_label_drift of 'label'=7"),
        ({"max_cost_usd": -1}, "max_cost_usd=-1"),
        ({"max_failure_rate": 0.1, "severity": {"failures": "WARN"}}, "severity names the check 'failures'"),
        ({"max_failure_rate": 0.1, "blocking": ["failures"]}, "blocking names the check 'failures'"),
        ({"allowed_labels": {"colour": ["red"]}}, "the column 'colour'"),
        ({"min_coverage": 95}, "For 95 % write min_coverage=0.95"),
        ({"max_failure_rate": 0.1, "blocking": ["cost"]}, "blocking names the check 'cost', and no limit .* there are failure_rate"),
        ({"allowed_labels": LABELS, "severity": {"label_drift": "WARN"}}, "severity names the check 'label_drift', and no limit"),
        ({"max_failure_rate": 0.1, "severity": "warning"}, "the severity 'warning'. Write 'WARN' or 'ERROR'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_claude_batch_checks(define(tmp_path, MODERATION), **arguments)


def test_labels_need_a_label_column_and_assets_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an enum of texts"):
        build_claude_batch_checks(define(tmp_path, PLAIN), max_label_drift=0.1)

    @dg.asset
    def other() -> None: ...

    for stranger in (other, dg.AssetKey("labels"), [dg.AssetKey("labels")]):
        with pytest.raises(UsageError, match="no asset of @claude_batch_assets"):
            build_claude_batch_checks(stranger, min_coverage=1)  # type: ignore[arg-type]
    # An asset without labels has no check of them; the one beside it has.
    checks = build_claude_batch_checks(define(tmp_path, PLAIN, MODERATION), max_label_drift=0.1)
    assert [[key.asset_key.to_user_string() for key in one.check_keys] for one in checks] == [["labels"]]
