"""A component's asset in Dagster's UI: where its prompt is, what its checks say, its chart and its plots."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.component_project import DAYS, Served, make_project, serve
from tests.e2e.conftest import Screenshots, row

ASSET = "/assets/review_labels"


@pytest.fixture(scope="module")
def served(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The component's week, materialized and served by `dg dev`."""
    project = make_project(tmp_path_factory.mktemp("component"))
    project.dg("launch", "--assets", "review_labels", "--partition-range", f"{DAYS[0]}...{DAYS[-1]}")
    with serve(project) as found:
        yield found


def test_the_asset_links_to_its_prompt_its_schema_and_its_yaml(page: Page, served: Served, screenshots: Screenshots) -> None:
    page.goto(served.path(f"{ASSET}?view=overview"))
    folder = served.project.folder / "src" / "shop" / "defs" / "reviews"
    for name in ("prompt.md", "label.json", "defs.yaml"):
        link = page.get_by_role("link", name=f"Open {name}").filter(has_text="in editor")
        expect(link).to_have_attribute("href", re.compile(re.escape(f"{folder / name}:1")))
    expect(page.get_by_text("How the customer feels. From text of the source.")).to_be_visible()
    screenshots.take(page, "component-overview")


def test_a_green_and_a_red_check_say_their_numbers(page: Page, served: Served, screenshots: Screenshots) -> None:
    page.goto(served.path(f"{ASSET}?view=checks&checkDetail=coverage"))
    expect(page.get_by_text("All 7 partitions are within")).to_be_visible()
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    expect(row(page, "value")).to_contain_text("1")
    page.get_by_text("label_drift", exact=True).first.click()
    expect(page.get_by_text(re.compile(r"\d of 7 partitions (is|are) beyond max_label_drift=0.3\.$"))).to_be_visible()
    command = page.locator("pre", has_text="claude-batch sql")
    expect(command).to_contain_text("FROM '.claude_batch/simulated/output/review_labels/day=2026-11-0")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    expect(row(page, "limit")).to_contain_text("0.3")
    screenshots.take(page, "component-check-failed")


def test_the_last_day_has_the_chart_of_the_week(page: Page, served: Served, screenshots: Screenshots) -> None:
    page.goto(served.path(f"{ASSET}?view=partitions&partition={DAYS[-1]}"))
    row(page, "chart").get_by_text("[Show Markdown]").click()
    chart = page.get_by_role("dialog").get_by_role("img", name="label: shares of the answered rows")
    expect(chart).to_be_visible()
    expect(chart).to_have_js_property("naturalWidth", 680)
    screenshots.take(page, "component-chart")


def test_the_numbers_of_the_days_are_plotted(page: Page, served: Served, screenshots: Screenshots) -> None:
    page.goto(served.path(f"{ASSET}?view=overview"))
    page.get_by_role("button", name="Plots").click()
    for key in ("cost_usd", "requests", "succeeded"):
        title = page.get_by_text(f"claude_batch/{key}", exact=True)
        title.scroll_into_view_if_needed()
        expect(title.locator("xpath=ancestor::*[.//canvas][1]//canvas")).to_be_visible()
    screenshots.take(page, "component-plots")


def test_nothing_is_asked_of_the_network(served: Served) -> None:
    asked = served.project.outside
    assert not asked.exists(), asked.read_text()
