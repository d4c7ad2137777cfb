"""The picture: what it draws, and that it stays small."""

import base64
import re
from xml.etree import ElementTree

import pytest

from claude_batch_dagster.charts import LABELS_HEIGHT, MAX_BARS, MAX_CHART_BYTES, OTHERS, Bar, chart_markdown, draw_chart

QUOTES = '"' * 90
SVG = "{http://www.w3.org/2000/svg}"


def bar(name: str, cost_usd: float | None = 0.5, **rows: int) -> Bar:
    return Bar(name=name, rows=rows, cost_usd=cost_usd)


def boxes(svg: str) -> dict[str, list[tuple[float, float]]]:
    """Of each colour, (bottom, height) of its boxes."""
    paths = ElementTree.fromstring(svg).iter(f"{SVG}path")
    return {
        path.attrib["fill"]: [
            (float(bottom), float(height)) for bottom, height in re.findall(r"M[\d.]+ ([\d.]+)h[\d.]+v-([\d.]+)", path.attrib["d"])
        ]
        for path in paths
        if "fill" in path.attrib
    }


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_shares_fill_the_height_whatever_the_rows():
    drawn = boxes(draw_chart([bar("a", praise=3, complaint=1), bar("b", praise=300, complaint=900)], title="label"))
    praise, complaint, cost = drawn.values()
    assert [height / LABELS_HEIGHT for _, height in praise] == [0.75, 0.25]
    assert [height / LABELS_HEIGHT for _, height in complaint] == [0.25, 0.75]
    assert [bottom for bottom, _ in complaint] == [bottom - height for bottom, height in praise], "they lie on each other"
    assert len(cost) == 2


def test_an_unknown_cost_and_a_day_without_rows_have_no_box():
    drawn = boxes(draw_chart([bar("a", None, praise=3), bar("b", 0.2), bar("c", 0.1, praise=1)], title="label"))
    praise, cost = drawn.values()
    assert len(praise) == 2
    assert [height for _, height in cost] == [60.0, 30.0]
    assert draw_chart([], title="nothing").endswith("</svg>")


def test_too_many_labels_become_one():
    rows = {f"label-{number}": 20 - number for number in range(12)}
    svg = draw_chart([Bar(name="a", rows=rows, cost_usd=1)], title="label")
    assert OTHERS in texts(svg)
    assert "label-6" in texts(svg)
    assert "label-7" not in texts(svg)
    assert sum(height for one in list(boxes(svg).values())[:-1] for _, height in one) == pytest.approx(LABELS_HEIGHT, abs=0.5)


def test_a_label_cannot_break_the_picture():
    svg = draw_chart([Bar(name="<b>&", rows={'"</svg><script>': 1}, cost_usd=1)], title="a < b")
    assert "<b>&" in texts(svg)
    assert not list(ElementTree.fromstring(svg).iter(f"{SVG}script"))


def test_the_image_is_small_and_ends_with_the_last_bars():
    many = [
        Bar(
            name=f"2026-{number:03}-{QUOTES}",
            rows={f"{label}{QUOTES}": (label * 37 + number * 13) % 97 + 1 for label in range(20)},
            cost_usd=number * 0.37,
        )
        for number in range(400)
    ]
    markdown = chart_markdown(many, title="label: shares of the answered rows")
    assert len(markdown) <= MAX_CHART_BYTES
    encoded = re.fullmatch(r"!\[label: shares of the answered rows\]\(data:image/svg\+xml;base64,(.+)\)", markdown)
    assert encoded
    svg = base64.b64decode(encoded[1]).decode()
    assert any(text.startswith("2026-399") for text in texts(svg))
    assert {len(found) for found in boxes(svg).values()} == {MAX_BARS}
