"""A picture of an asset's labels and cost over its partitions, as SVG in Markdown. No library: none makes it smaller than 70 kB.

Colours mean the same in every chart. They and the words are about as far from white as from the dark theme's background, and there is no
background of the picture's own, so that both themes can be read.
"""

import base64
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from claude_batch_dagster.core.money import usd

STATUS_COLORS: Mapping[str, str] = {
    "succeeded": "#2b9a5b",
    "refused": "#9b4f86",
    "truncated": "#bd8612",
    "invalid": "#d9772b",
    "errored": "#d6493f",
    "expired": "#b0563a",
    "canceled": "#8b6f5c",
    "pending": "#6f86a6",
    "skipped": "#9aa1ab",
}
"""Green is answered, warm is a failure, cold is not over yet."""
LABEL_COLORS = ("#3f7fd0", "#b98a1d", "#1f9494", "#c9619f", "#8a66cf", "#808a2e", "#3a9bc9", "#a5713f", "#5f6bd8", "#b5495b")
"""None of them is a status' own: a label that is drawn in red would read as a failure."""
SALT = "68"
"""With it none of the usual sets of labels (praise, mixed, complaint; positive, neutral, negative; ok, spam, hate; ...) wants a colour twice."""
MAX_LABELS = 7
OTHERS, OTHERS_COLOR = "(others)", "#8f98a3"
TEXT_COLOR, COST_COLOR, LINE = "#757a82", "#858c96", 'stroke="#858c96" stroke-opacity=".35"'
MAX_BARS = 30
MAX_CHART_BYTES = 15_000
WIDTH, LEFT, RIGHT, TOP = 680, 56, 150, 22
LABELS_HEIGHT, COST_HEIGHT, GAP = 150, 60, 34
MAX_NAME_CHARS = 20
MAX_TICKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One partition, or one materialization of an asset without partitions.

    Attributes:
        name: Below the bar.
        rows: By label; the first bar's order is the order from below.
        cost_usd: None where it is not known.
    """

    name: str
    rows: Mapping[str, int]
    cost_usd: float | None


def chart_markdown(bars: Sequence[Bar], *, title: str) -> str:
    """Return the chart as an image that stands in the Markdown itself: at most MAX_CHART_BYTES, of the last bars.

    Args:
        bars: In their order.
        title: What is counted, for the picture and for who cannot see it.
    """
    encoded = base64.b64encode(draw_chart(bars[-MAX_BARS:], title=title).encode()).decode()
    return f"![{title}](data:image/svg+xml;base64,{encoded})"


def draw_chart(bars: Sequence[Bar], *, title: str) -> str:
    """Return stacked bars of the labels' shares over bars of the cost, as SVG."""
    labels = _shown_labels(bars)
    colors = choose_colors([label for bar in bars for label in bar.rows])
    height = TOP + LABELS_HEIGHT + GAP + COST_HEIGHT + GAP
    plot_width = WIDTH - LEFT - RIGHT
    step = plot_width / max(len(bars), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{TEXT_COLOR}">',
        f'<text x="{LEFT}" y="14" font-weight="bold">{escape(title)}</text>',
    ]
    base = float(TOP + LABELS_HEIGHT)
    parts += _axis(base, LABELS_HEIGHT, ("0 %", "50 %", "100 %"))
    tops = [0.0] * len(bars)
    for label in labels:
        segments = []
        for at, bar in enumerate(bars):
            total = sum(bar.rows.values())
            count = _count(bar, label, labels)
            if not count:
                continue
            share = LABELS_HEIGHT * count / total
            segments.append(_box(at, step, base - tops[at], share))
            tops[at] += share
        if segments:
            parts.append(f'<path fill="{colors[label]}" d="{"".join(segments)}"/>')
    # As they lie on each other.
    left = WIDTH - RIGHT + 12
    for row, label in enumerate(reversed(labels)):
        y = TOP + row * 18
        parts.append(
            f'<rect x="{left}" y="{y}" width="11" height="11" fill="{colors[label]}"/><text x="{left + 17}" y="{y + 10}">{_cut(label)}</text>'
        )
    costs = [bar.cost_usd or 0.0 for bar in bars]
    highest = max(costs, default=0.0)
    base = float(TOP + LABELS_HEIGHT + GAP + COST_HEIGHT)
    parts.append(f'<text x="{LEFT}" y="{base - COST_HEIGHT - 8}" font-weight="bold">Cost</text>')
    parts += _axis(base, COST_HEIGHT, ("$0", usd(highest)) if highest else ("$0",))
    drawn = "".join(_box(at, step, base, COST_HEIGHT * cost / highest) for at, cost in enumerate(costs) if cost)
    if drawn:
        parts.append(f'<path fill="{COST_COLOR}" d="{drawn}"/>')
    every = -(-len(bars) // MAX_TICKS) or 1
    for at in range(len(bars) - 1, -1, -every):
        x = LEFT + step * (at + 0.5)
        parts.append(f'<text x="{x:.0f}" y="{height - 14}" text-anchor="middle">{_cut(bars[at].name)}</text>')
    return "".join([*parts, "</svg>"])


def choose_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return the colour of each label: a status' own, else one that follows from the label, so that it is the same in every chart.

    Where two labels would have the same, the one that comes later by name has the next that is free; beyond LABEL_COLORS they repeat.

    Args:
        labels: All that the chart may show, those without rows too: they keep their colours for the day on which they occur.
    """
    colors = {OTHERS: OTHERS_COLOR}
    taken: set[int] = set()
    for label in sorted(set(labels)):
        if label in STATUS_COLORS:
            colors[label] = STATUS_COLORS[label]
            continue
        at = zlib.crc32(f"{SALT}{label.casefold()}".encode()) % len(LABEL_COLORS)
        if len(taken) < len(LABEL_COLORS):
            while at in taken:
                at = (at + 1) % len(LABEL_COLORS)
        taken.add(at)
        colors[label] = LABEL_COLORS[at]
    return colors


def _shown_labels(bars: Sequence[Bar]) -> list[str]:
    """Return the labels that occur, in the order in which they are named; the rarest of too many become OTHERS."""
    counted: Counter[str] = Counter()
    for bar in bars:
        counted.update(bar.rows)
    there = [label for label in counted if counted[label]]
    own = Counter({label: counted[label] for label in there if label not in STATUS_COLORS})
    if len(own) <= MAX_LABELS:
        return there
    common = {label for label, _ in own.most_common(MAX_LABELS)}
    return [*(label for label in there if label in common or label in STATUS_COLORS), OTHERS]


def _count(bar: Bar, label: str, labels: Sequence[str]) -> int:
    if label != OTHERS:
        return bar.rows.get(label, 0)
    return sum(count for name, count in bar.rows.items() if name not in labels)


def _box(at: int, step: float, bottom: float, height: float) -> str:
    width = f"{step * 0.76:.0f}"
    return f"M{LEFT + step * (at + 0.12):.0f} {round(bottom, 1):g}h{width}v-{round(height, 1):g}h-{width}z"


def _axis(base: float, height: float, names: Sequence[str]) -> list[str]:
    lines = []
    for at, name in enumerate(names):
        y = base - height * at / max(len(names) - 1, 1)
        lines.append(
            f'<path {LINE} d="M{LEFT} {y:.0f}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{name}</text>'
        )
    return lines


def _cut(name: str) -> str:
    return escape(name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…")
