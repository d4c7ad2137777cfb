"""The demo in Dagster's own UI, with the mouse."""

import re
import time

import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import Page, expect

from tests.e2e.conftest import (
    LOCATION,
    LONG_PATIENCE_MS,
    WORKFLOW_LINK,
    Dev,
    Runs,
    Screenshots,
    expect_end,
    launch_latest,
    row,
    show_our_log,
    status,
    until,
)

ASSETS = ("reviews", "review_labels", "review_summaries", "review_report")
DAY = "2026-11-03"
LAST_DAY = "2026-11-07"


def test_lineage_shows_the_four_assets_and_their_links(page: Page, dev: Dev, screenshots: Screenshots) -> None:
    page.goto(dev.path(f"/locations/{LOCATION}/asset-groups/reviews/lineage"))
    for asset in ASSETS:
        expect(page.get_by_text(asset, exact=True).last).to_be_visible()
    expect(page.locator("path[marker-end]")).to_have_count(4)
    expect(page.get_by_text("Claude", exact=True)).to_have_count(2)
    screenshots.take(page, "lineage")
    page.goto(dev.path("/assets/review_labels?view=overview"))
    upstream, downstream = page.get_by_text("Upstream assets").locator(".."), page.get_by_text("Downstream assets").locator("..")
    expect(upstream.locator("a[href^='/assets/reviews']")).to_be_visible()
    expect(downstream.locator("a[href^='/assets/review_report']")).to_be_visible()


def test_code_location_loads_without_a_warning(page: Page, dev: Dev, screenshots: Screenshots) -> None:
    page.goto(dev.path("/deployment/locations"))
    expect(page.get_by_role("link", name=LOCATION)).to_be_visible()
    expect(page.get_by_text("Loaded", exact=True)).to_be_visible()
    expect(page.get_by_text(re.compile("warning|error|failed", re.IGNORECASE))).to_have_count(0)
    screenshots.take(page, "code-location")
    before_runs = dev.output.partition("BackfillDaemon - INFO - Evaluating")[0]
    assert not re.search("warning|error|traceback", before_runs, re.IGNORECASE), before_runs


def test_run_log_tells_the_story_and_links_to_temporal(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path(f"/runs/{everything.first}"))
    expect(status(page, "Success")).to_be_visible()
    show_our_log(page)
    for line in (
        "Planning: ",
        "600 requests to ask",
        "Batch run r1 (1 batch)",
        "Publishing 600 rows",
        "Published 600 rows (600 succeeded)",
    ):
        expect(page.get_by_text(line)).to_be_visible()
    expect(page.locator(WORKFLOW_LINK)).to_be_visible()
    screenshots.take(page, "run-log")


def test_partitions_page_shows_every_day_with_metadata_of_its_own(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path("/assets/review_labels?view=partitions"))
    expect(page.get_by_text("Materialized (7)")).to_be_visible()
    expect(page.get_by_text("Missing (0)")).to_be_visible()
    page.get_by_text(DAY, exact=True).filter(visible=True).first.click()
    expect(row(page, "dagster/partition_row_count")).to_contain_text("43")
    expect(row(page, "claude_batch/cost_usd")).to_contain_text("0.00")
    expect(row(page, "claude_batch/run")).to_contain_text("batch run r1")
    expect(row(page, "dagster/uri")).to_contain_text(f"/simulated/output/review_labels/day={DAY}/part-0.parquet")
    screenshots.take(page, "partition")
    preview = page.get_by_text("[simulated]").first
    expect(preview).to_be_visible()
    preview.scroll_into_view_if_needed()
    screenshots.take(page, "partition-preview")


def test_metadata_is_a_table_and_plots(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path("/assets/review_labels?view=overview"))
    for key in ("cost_usd", "input_tokens", "output_tokens", "requests", "succeeded", "workflow"):
        expect(row(page, f"claude_batch/{key}")).to_be_visible()
    screenshots.take(page, "overview")
    page.get_by_role("button", name="Plots").click()
    for key in ("cost_usd", "input_tokens", "succeeded"):
        title = page.get_by_text(f"claude_batch/{key}", exact=True)
        title.scroll_into_view_if_needed()
        plot = title.locator("xpath=ancestor::*[.//canvas][1]//canvas")
        expect(plot).to_have_count(1)
        expect(plot).to_be_visible()
    page.get_by_text("claude_batch/cost_usd", exact=True).scroll_into_view_if_needed()
    screenshots.take(page, "plots")


def test_the_chart_of_labels_and_cost_is_a_picture(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path(f"/assets/review_labels?view=partitions&partition={LAST_DAY}"))
    expect(row(page, "claude_batch/endpoint")).to_contain_text("simulator")
    row(page, "chart").get_by_text("[Show Markdown]").click()
    chart = page.get_by_role("dialog").get_by_role("img", name="label: shares of the answered rows")
    expect(chart).to_be_visible()
    expect(chart).to_have_js_property("naturalWidth", 680)
    screenshots.take(page, "labels-and-cost")


def test_checks_tab_shows_that_every_row_is_answered(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path("/assets/review_labels?view=checks"))
    expect(page.get_by_text("rows_answered").first).to_be_visible()
    expect(page.get_by_text("Passed", exact=True)).to_be_visible()
    expect(page.get_by_text("All 300 rows have an answer, a refusal or nothing to ask about.")).to_be_visible()
    expect(row(page, "succeeded")).to_contain_text("300")
    screenshots.take(page, "checks")


def test_the_latest_day_again_asks_nothing(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path(f"/runs/{everything.again}"))
    expect_end(page, "Success")
    show_our_log(page)
    expect(page.get_by_text("0 requests asked, 42 answered already")).to_be_visible()
    expect(page.get_by_text("Published 42 rows (42 succeeded)")).to_be_visible()
    screenshots.take(page, "run-that-asked-nothing")


def test_a_run_that_is_terminated_is_canceled_with_its_batch(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    """One row changed, so one request is out, in a batch that would take a day."""
    simulator = dev.simulator
    source = dev.root / "demo" / "reviews" / f"day={LAST_DAY}" / "part-0.parquet"
    former = source.read_bytes()
    simulator.switch_on("slow-batch", 86_400)
    try:
        rows = pq.read_table(source)
        texts = [f"The lens cap is gone since {time.time()}.", *rows["text"].to_pylist()[1:]]
        pq.write_table(rows.set_column(rows.schema.get_field_index("text"), "text", pa.array(texts)), source)
        known = {batch["id"] for batch in simulator.batches()}
        launch_latest(page, dev, "review_labels")
        batch_id = until(lambda: next((batch["id"] for batch in simulator.batches() if batch["id"] not in known), None))
        expect(status(page, "Started")).to_be_visible()
        page.get_by_role("button", name="Terminate").click()
        dialog = page.get_by_role("dialog")
        screenshots.take(page, "terminate-dialog")
        dialog.get_by_role("button", name="Terminate 1 run").click()
        expect(dialog).to_contain_text("Successfully requested termination")
        dialog.get_by_role("button", name="Done").click()
        expect_end(page, "Canceled")
    finally:
        simulator.clear()
        source.write_bytes(former)
    show_our_log(page)
    expect(page.get_by_text(re.compile(r"batch run r\d+ is being canceled"))).to_be_visible()
    screenshots.take(page, "run-canceled")
    (batch,) = [batch for batch in simulator.batches() if batch["id"] == batch_id]
    assert (batch["canceled"], batch["count"]) == (True, 1)
    until(lambda: next(one for one in simulator.batches() if one["id"] == batch_id)["outcomes"] == {"canceled": 1})


def test_the_report_follows_with_its_chart(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path("/assets/review_report?view=overview"))
    show = page.get_by_text("[Show Markdown]")
    expect(show).to_be_visible(timeout=LONG_PATIENCE_MS)
    expect(row(page, "reviews")).to_contain_text("300")
    screenshots.take(page, "report")
    show.click()
    chart = page.get_by_role("dialog").get_by_role("img", name="Reviews by day and label")
    expect(chart).to_be_visible()
    expect(chart).to_have_js_property("naturalWidth", 680)
    screenshots.take(page, "report-chart")
    page.goto(dev.path(f"/locations/{LOCATION}/asset-groups/reviews/lineage"))
    expect(page.get_by_text("100% filled")).to_have_count(3)
    screenshots.take(page, "lineage-filled")
