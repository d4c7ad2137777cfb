"""What the report shows: counts by day and label, as a table and as a chart that needs no library."""

import base64
from collections.abc import Sequence
from html import escape

import pandas as pd

COLORS = ("#2e9e6b", "#e0a526", "#d1553c", "#7b4fb5", "#7a8490", "#2f7fc1", "#b86b9e")
CHART_WIDTH, CHART_HEIGHT = 640, 280
LEFT, TOP, BOTTOM, RIGHT = 34, 14, 28, 130


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


def chart_markdown(counts: pd.DataFrame, order: Sequence[str]) -> str:
    """Return the chart as an image that stands in the Markdown itself."""
    encoded = base64.b64encode(draw_chart(counts, order).encode()).decode()
    return f"![Reviews by day and label](data:image/svg+xml;base64,{encoded})"


def draw_chart(counts: pd.DataFrame, order: Sequence[str]) -> str:
    """Return stacked bars of reviews by day, one colour a label, as SVG."""
    labels = _ordered(counts["label"], order)
    days = sorted(counts["day"].unique())
    highest = max(int(counts.groupby("day")["reviews"].sum().max()), 1)
    highest += highest % 2
    plot_width, plot_height = CHART_WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM
    step = plot_width / len(days)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" width="{CHART_WIDTH}" height="{CHART_HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#555">',
        f'<rect width="{CHART_WIDTH}" height="{CHART_HEIGHT}" fill="#fff"/>',
    ]
    for share in (0, 0.5, 1):
        y = TOP + plot_height * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + plot_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{round(highest * share)}</text>')
    for column, day in enumerate(days):
        x, y = LEFT + step * (column + 0.15), float(TOP + plot_height)
        for color, label in zip(_colors(labels), labels, strict=True):
            count = int(counts.loc[(counts["day"] == day) & (counts["label"] == label), "reviews"].sum())
            height = plot_height * count / highest
            y -= height
            title = f"<title>{escape(f'{day}: {count} {label}')}</title>"
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.7:.1f}" height="{height:.1f}" fill="{color}">{title}</rect>')
        parts.append(f'<text x="{x + step * 0.35:.1f}" y="{CHART_HEIGHT - 10}" text-anchor="middle">{escape(day[5:])}</text>')
    for row, (color, label) in enumerate(zip(_colors(labels), labels, strict=True)):
        x, y = CHART_WIDTH - RIGHT + 14, TOP + 6 + row * 20
        parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" fill="{color}"/><text x="{x + 17}" y="{y + 10}">{escape(label)}</text>')
    return "".join([*parts, "</svg>"])


def _ordered(found: "pd.Series[str]", order: Sequence[str]) -> list[str]:
    """Return the labels that occur: those of the task first, in its order."""
    there = set(found.unique())
    return [label for label in order if label in there] + sorted(there - set(order))


def _colors(labels: Sequence[str]) -> list[str]:
    return [COLORS[position % len(COLORS)] for position in range(len(labels))]
