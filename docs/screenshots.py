"""Take the pages' pictures again, by hand: `python docs/screenshots.py` writes docs/images/*.png, in about two minutes, without a key."""

import os
import re
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402  the tests' folder is not installed

from tests.conftest import pytest_configure as guard  # noqa: E402
from tests.e2e.browser import find_browser  # noqa: E402
from tests.e2e.component_project import DAYS, Served, add_component, make_project, serve  # noqa: E402
from tests.e2e.conftest import LOOPBACK_ONLY, row, show_our_log  # noqa: E402

IMAGES = REPOSITORY / "docs" / "images"
MAX_BYTES = 120_000
VIEWPORT = {"width": 1440, "height": 800}
NAVIGATION = 240
"""Its width, which is cut off."""
LATER = """\
type: claude_batch_dagster.ClaudeBatchComponent

attributes:
  source: {path: reviews, key: review_id, partition_column: day}
  tasks:
    - {preset: summarize, name: review_summaries, column: text, model: claude-haiku-5-5, max_words: 20}
  partitions_def: {type: daily, start_date: "2026-11-01", end_date: "2026-11-08"}
  group_name: reviews
  wait_for: 0s
  resource: {max_cost_usd: 1}
"""


def main() -> None:
    """Materialize a week, defer a day, and photograph what the UI shows of both."""
    guard()
    os.environ.setdefault("PYTHONPATH", str(REPOSITORY))
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-", ignore_cleanup_errors=True) as folder:
        project = make_project(Path(folder))
        add_component(project, "later", {"defs.yaml": LATER})
        project.dg("launch", "--assets", "review_labels", "--partition-range", f"{DAYS[0]}...{DAYS[-1]}")
        with serve(project) as served, sync_playwright() as playwright:
            arguments = ["--no-sandbox", "--disable-gpu", LOOPBACK_ONLY]
            browser = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
            page = browser.new_context(viewport=VIEWPORT, timezone_id="UTC", locale="en-US").new_page()
            # Before the deferred day, so that its run is the newest.
            photograph_week(page, served)
            project.dg("launch", "--assets", "review_summaries", "--partition", DAYS[-1])
            photograph_deferred(page, served)
            browser.close()


def photograph_week(page: Page, served: Served) -> None:
    """Take the numbers, the chart, the checks, the plots and the log of a week that was published."""
    page.goto(served.path(f"/assets/review_labels?view=partitions&partition={DAYS[-1]}"))
    expect(row(page, "claude_batch/cost_usd")).to_be_visible()
    row(page, "claude_batch/cost_usd").scroll_into_view_if_needed()
    take(page, "asset-numbers", height=790)
    row(page, "chart").get_by_text("[Show Markdown]").click()
    expect(page.get_by_role("dialog").get_by_role("img", name="label: shares of the answered rows")).to_be_visible()
    page.wait_for_timeout(500)
    save(page.get_by_role("dialog").screenshot(animations="disabled"), "chart")

    page.goto(served.path("/assets/review_labels?view=overview"))
    expect(page.get_by_text("prompt.md").first).to_be_visible()
    take(page, "component-asset", height=700)

    page.goto(served.path("/assets/review_labels?view=checks&checkDetail=label_drift"))
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    take(page, "checks")

    page.goto(served.path("/runs"))
    page.locator("a[href*='/runs/']").filter(has_text=re.compile(r"^\s*[0-9a-f]{8}\s*$")).first.click()
    page.wait_for_url(re.compile("/runs/[0-9a-f-]{36}"))
    show_our_log(page)
    expect(page.get_by_text("Published 300 rows").first).to_be_visible()
    take(page, "run-log", top=300)


def photograph_deferred(page: Page, served: Served) -> None:
    """Take the observation that a run leaves that did not wait."""
    page.goto(served.path("/assets/review_summaries?view=events"))
    page.get_by_text("Observed").first.click()
    expect(page.get_by_text("claude_batch/run").first).to_be_visible()
    take(page, "deferred-observation")


def take(page: Page, name: str, top: int = 0, height: int = 640) -> None:
    """Photograph the page without Dagster's navigation."""
    page.wait_for_timeout(700)
    clip = {"x": NAVIGATION, "y": top, "width": VIEWPORT["width"] - NAVIGATION, "height": height - top}
    save(page.screenshot(animations="disabled", clip=clip), name)


def save(png: bytes, name: str) -> None:
    """Write a picture, unless it is too large for a page."""
    print(f"{name}.png: {len(png):,} bytes")
    (IMAGES / f"{name}.png").write_bytes(png)
    if len(png) > MAX_BYTES:
        sys.exit(f"{name}.png has {len(png):,} bytes, the limit is {MAX_BYTES:,}. Cut it to what matters.")


if __name__ == "__main__":
    main()
