"""What the report shows: counts by day and label, as a table and as a chart."""

from collections.abc import Sequence

import pandas as pd

from claude_batch_dagster.reporting.charts import Bar, chart_markdown

TITLE = "Reviews by day and label"
COUNTS = """SELECT day, coalesce(label, status) AS label, count(*) AS reviews, coalesce(sum(cost_usd), 0) AS cost_usd,
    avg(human_sentiment) AS human_sentiment
FROM review_labels GROUP BY ALL ORDER BY day, label"""
"""A row without an answer counts under its status."""
COSTS = "SELECT coalesce(sum(cost_usd), 0) AS cost_usd, coalesce(sum(responses), 0) AS responses FROM cost_by_day"


def report_markdown(counts: pd.DataFrame, order: Sequence[str]) -> str:
    """Return a table of labels by day, with what people felt about the reviews of each label."""
    days = sorted(counts["day"].unique())
    lines = [
        f"| label | {' | '.join(day[5:] for day in days)} | reviews | human sentiment (-4 to 4) | cost |",
        f"| --- | {' | '.join('---:' for _ in days)} | ---: | ---: | ---: |",
    ]
    for label in _ordered(counts["label"], order):
        rows = counts[counts["label"] == label]
        reviews = int(rows["reviews"].sum())
        felt = float((rows["human_sentiment"] * rows["reviews"]).sum()) / reviews
        by_day = " | ".join(str(int(rows.loc[rows["day"] == day, "reviews"].sum())) for day in days)
        lines.append(f"| {label} | {by_day} | {reviews} | {felt:+.2f} | ${rows['cost_usd'].sum():.4f} |")
    return "\n".join(lines)


def chart_of(counts: pd.DataFrame, order: Sequence[str]) -> str:
    """Return the chart that assets have as well: shares of the labels by day, and what the days cost."""
    labels = dict.fromkeys((*order, *_ordered(counts["label"], order)))
    bars = []
    for day, rows in counts.groupby("day", sort=True):
        reviews = rows.groupby("label")["reviews"].sum()
        cost_usd = float(rows["cost_usd"].sum())
        bars.append(Bar(name=str(day), rows={label: int(reviews.get(label, 0)) for label in labels}, cost_usd=cost_usd))
    return chart_markdown(bars, title=TITLE)


def _ordered(found: "pd.Series[str]", order: Sequence[str]) -> list[str]:
    """Return the labels that occur: those of the task first, in its order."""
    there = set(found.unique())
    return [label for label in order if label in there] + sorted(there - set(order))
