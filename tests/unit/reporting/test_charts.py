"""The picture: what it draws, and that it stays small."""

import base64
import re
from xml.etree import ElementTree

import pytest

from claude_batch_dagster.core.status import FAILED_STATUSES, STATUSES
from claude_batch_dagster.reporting.charts import (
    COST_COLOR,
    LABEL_COLORS,
    LABELS_HEIGHT,
    MAX_BARS,
    MAX_CHART_BYTES,
    OTHERS,
    OTHERS_COLOR,
    STATUS_COLORS,
    TEXT_COLOR,
    Bar,
    chart_markdown,
    choose_colors,
    draw_chart,
)

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


def test_a_label_keeps_its_color_whatever_else_a_chart_shows_first():
    day = boxes(draw_chart([bar("a", praise=3, complaint=1, mixed=0)], title="label"))
    week = boxes(draw_chart([bar("b", complaint=1, mixed=5, praise=1), bar("c", mixed=2, complaint=0, praise=9)], title="label"))
    colors = choose_colors(["mixed", "complaint", "praise"])
    assert list(day)[:2] == [colors["praise"], colors["complaint"]]
    assert list(week)[:3] == [colors["complaint"], colors["mixed"], colors["praise"]]
    assert choose_colors(["Praise"])["Praise"] == choose_colors(["praise", "other", "spam"])["praise"]


@pytest.mark.parametrize(
    "labels",
    [
        ("praise", "mixed", "complaint", "abusive", "off_topic"),
        ("positive", "negative", "neutral", "mixed"),
        ("ok", "spam", "hate"),
        ("price", "quality", "service", "other"),
        ("bug", "feature", "question", "other"),
    ],
)
def test_usual_labels_have_the_same_color_with_and_without_the_others(labels: tuple[str, ...]):
    assert all(choose_colors([label])[label] == choose_colors(labels)[label] for label in labels)


def test_no_two_labels_of_a_chart_share_a_color_and_none_has_that_of_a_status():
    labels = [f"label-{number}" for number in range(len(LABEL_COLORS))]
    assert set(choose_colors(labels).values()) == {*LABEL_COLORS, OTHERS_COLOR}
    assert len(choose_colors([*labels, "one more"])) == len(labels) + 2
    assert not {*LABEL_COLORS} & {*STATUS_COLORS.values(), OTHERS_COLOR, COST_COLOR}


def test_a_status_has_the_color_of_its_meaning_beside_labels_too():
    assert set(STATUS_COLORS) == set(STATUSES)
    assert len(set(STATUS_COLORS.values())) == len(STATUSES)
    shown = set(texts(draw_chart([Bar(name="a", rows=dict.fromkeys(STATUSES, 1), cost_usd=1)], title="status")))
    assert shown >= set(STATUSES)
    assert OTHERS not in shown
    drawn = boxes(draw_chart([bar("a", praise=3, errored=1, refused=1)], title="label"))
    assert list(drawn)[1:3] == [STATUS_COLORS["errored"], STATUS_COLORS["refused"]]
    for status in FAILED_STATUSES:
        red, _, blue = channels(STATUS_COLORS[status])
        assert (red > blue) == (status != "pending"), "failures are warm, and what is not over is not"


@pytest.mark.parametrize("background", ["#ffffff", "#16181d"])
def test_colors_and_words_stand_out_from_light_and_dark(background: str):
    words = {TEXT_COLOR: 4.0}
    areas = dict.fromkeys((*LABEL_COLORS, *STATUS_COLORS.values(), OTHERS_COLOR, COST_COLOR), 2.5)
    faint = {color: contrast(color, background) for color, least in (words | areas).items() if contrast(color, background) < least}
    assert faint == {}
    assert "#fff" not in draw_chart([bar("a", praise=1)], title="label"), "the theme's own background shows"


def channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21: WCAG 2's."""

    def luminance(color: str) -> float:
        parts = [part / 255 for part in channels(color)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
