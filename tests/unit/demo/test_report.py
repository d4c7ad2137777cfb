"""The demo's report."""

import duckdb
import pandas as pd

from claude_batch_dagster.demo.report import COUNTS, chart_of, report_markdown
from claude_batch_dagster.reporting.charts import Bar, chart_markdown

ORDER = ("praise", "complaint")
LABELS = pd.DataFrame(
    {
        "review_id": [1, 2, 3, 4],
        "day": ["2026-11-01", "2026-11-01", "2026-11-02", "2026-11-02"],
        "label": ["praise", "complaint", "praise", None],
        "status": ["succeeded", "succeeded", "succeeded", "refused"],
        "cost_usd": [0.1, 0.2, 0.3, 0.0],
        "human_sentiment": [2.0, -1.0, 1.0, 0.0],
    }
)


def count_reviews(labels: pd.DataFrame) -> pd.DataFrame:
    """What the report asks of the views, of a table in their place."""
    connection = duckdb.connect()
    connection.register("review_labels", labels)
    return connection.execute(COUNTS).df()


def test_reviews_and_cost_are_counted_by_day_and_label():
    counts = count_reviews(LABELS)
    assert counts["reviews"].sum() == 4
    assert counts.loc[(counts["day"] == "2026-11-02") & (counts["label"] == "refused"), "reviews"].item() == 1


def test_the_table_compares_labels_with_what_people_felt():
    lines = report_markdown(count_reviews(LABELS), ORDER).splitlines()
    assert lines[2] == "| praise | 1 | 1 | 2 | +1.50 | $0.4000 |"
    assert [line.split()[1] for line in lines[2:]] == ["praise", "complaint", "refused"]


def test_the_chart_is_the_assets_own_with_every_review_and_no_color_of_its_own():
    markdown = chart_of(count_reviews(LABELS), ORDER)
    days = (("2026-11-01", {"praise": 1, "complaint": 1}, 0.1 + 0.2), ("2026-11-02", {"praise": 1, "complaint": 0, "refused": 1}, 0.3))
    rows = [dict.fromkeys((*ORDER, "refused"), 0) | counted for _, counted, _ in days]
    bars = [Bar(name=day, rows=counted, cost_usd=cost) for (day, _, cost), counted in zip(days, rows, strict=True)]
    assert markdown == chart_markdown(bars, title="Reviews by day and label")
