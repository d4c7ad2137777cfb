"""Which columns are labels, and how often each label stands there."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.schema import schema_fields
from claude_batch_dagster.storage.label_counts import NO_LABEL, count_labels, label_fields
from claude_batch_dagster.storage.store import Store

FIELDS = schema_fields(
    "t",
    {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "severity": {"type": "integer", "enum": [0, 1]},
            "urgent": {"type": "boolean"},
            "label": {"anyOf": [{"type": "string", "enum": ["praise", "spam", "mixed"]}, {"type": "null"}]},
            "stars": {"type": "integer"},
        },
    },
)


def count(tmp_path: Path, **columns: list[object]) -> dict[str, dict[str, int]]:
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    return count_labels(Store(str(tmp_path)), "part-0.parquet", FIELDS)


def test_enums_and_booleans_are_labels_and_texts_come_first():
    assert [field.name for field in label_fields(FIELDS)] == ["label", "severity", "urgent"]


def test_only_answered_rows_count_and_every_label_of_the_definition_is_named(tmp_path: Path):
    counted = count(
        tmp_path,
        status=["succeeded", "succeeded", "errored", "succeeded"],
        label=["spam", None, None, "spam"],
        severity=[1, 1, None, 0],
        urgent=[True, False, None, True],
    )
    assert counted == {
        "label": {"praise": 0, "spam": 2, "mixed": 0, NO_LABEL: 1},
        "severity": {"0": 1, "1": 2},
        "urgent": {"true": 2, "false": 1},
    }
    assert list(counted["label"])[:3] == ["praise", "spam", "mixed"]


def test_a_text_counts_as_a_label_where_it_has_few_short_values_and_no_other(tmp_path: Path):
    few = ["price", "quality"] * 8
    assert count(tmp_path, status=["succeeded"] * 16, reason=few) == {"reason": {"price": 8, "quality": 8}}
    assert count(tmp_path, status=["succeeded"] * 16, reason=[f"text {row}" for row in range(16)]) == {}
    assert count(tmp_path, status=["succeeded"] * 16, reason=["x" * 41] * 16) == {}
    assert count(tmp_path, status=["errored"] * 16, reason=few) == {}


def test_a_text_with_few_values_in_the_first_rows_only_is_none(tmp_path: Path):
    rows = 2_048
    assert count(tmp_path, status=["succeeded"] * 2 * rows, reason=["a"] * rows + [f"text {row}" for row in range(rows)]) == {}
