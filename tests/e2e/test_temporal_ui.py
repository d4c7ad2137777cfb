"""The batch run in Temporal's own UI, which each materialization links to."""

from playwright.sync_api import Page, expect

from tests.e2e.conftest import WORKFLOW_LINK, Dev, Runs, Screenshots


def test_the_workflow_page_says_what_the_run_did(page: Page, dev: Dev, everything: Runs, screenshots: Screenshots) -> None:
    page.goto(dev.path("/assets/review_summaries?view=partitions&partition=2026-11-03"))
    with page.expect_popup() as opened:
        page.locator(WORKFLOW_LINK).first.click()
    workflow = opened.value
    expect(workflow.get_by_text("Completed", exact=True).first).to_be_visible()
    for summary in ("open batch run r1", "and submit its first shard", "finish batch run r1 as finished"):
        expect(workflow.get_by_text(summary).first).to_be_visible()
    screenshots.take(workflow, "workflow")
    workflow.get_by_role("link", name="User Metadata").or_(workflow.get_by_role("tab", name="User Metadata")).first.click()
    # Each text stands in a frame of its own.
    summary, details, current = (workflow.locator("iframe").nth(number).content_frame for number in range(3))
    expect(summary.get_by_text("batch run r1: review_labels, review_summaries")).to_be_visible()
    expect(details.get_by_text("600 requests")).to_be_visible()
    expect(current.get_by_text("succeeded: 600")).to_be_visible()
    screenshots.take(workflow, "workflow-details")
