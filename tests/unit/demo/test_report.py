"""The demo's report."""

import base64
import xml.etree.ElementTree as ET

import duckdb
import pandas as pd

from claude_batch_dagster.demo.report import COUNTS, chart_markdown, draw_chart, report_markdown

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


def test_the_chart_is_an_image_inside_the_markdown_with_a_bar_for_each_count():
    markdown = chart_markdown(count_reviews(LABELS), ORDER)
    encoded = markdown.partition("base64,")[2].removesuffix(")")
    drawn = base64.b64decode(encoded).decode()
    assert drawn == draw_chart(count_reviews(LABELS), ORDER)
    root = ET.fromstring(drawn)
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "2026-11-01: 1 praise" in titles
