"""`claude-batch dev` as a person starts it, and a browser in front of it.

E2E_SCREENSHOTS=DIR keeps the screenshots there; a page whose test failed is always among them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from claude_batch_dagster.embedded import find_stack
from tests.e2e.browser import NoBrowserError, find_browser
from tests.stack import Process, RunningSimulator, free_port

T = TypeVar("T")

PROGRAM = Path(sys.executable).with_name("claude-batch")
LOCATION = "claude_batch_dagster.demo.definitions"
WORKFLOW_LINK = "a[href*='/namespaces/default/workflows/claude-batch']"
START_S = 150.0
END_S = 90.0
# The daemon looks at backfills every 30 s.
PATIENCE_MS = 30_000
LONG_PATIENCE_MS = 120_000
VIEWPORT = {"width": 1500, "height": 1000}
# Whatever a page asks of another machine fails at once, here as for a reader without a network.
LOOPBACK_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
FAILED = pytest.StashKey[bool]()

expect.set_options(timeout=PATIENCE_MS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


def until(look: Callable[[], T], timeout_s: float = END_S) -> T:
    """Look until there is something, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing within {timeout_s} s"
        time.sleep(0.1)
    return found


@dataclass(kw_only=True)
class Dev:
    """A running `claude-batch dev`."""

    popen: "subprocess.Popen[bytes]"
    folder: Path
    url: str

    @property
    def output(self) -> str:
        text = (self.folder / "dev.log").read_text(errors="replace")
        return re.sub(r"\x1b\[\d+m", "", text)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def simulator(self) -> RunningSimulator:
        stack = find_stack(str(self.root / "simulated"))
        assert stack is not None
        assert stack.simulator_url is not None
        return RunningSimulator(url=stack.simulator_url, process=Process(popen=self.popen))

    def path(self, path: str) -> str:
        return self.url + path

    def runs(self) -> list[dict[str, Any]]:
        """Return what Dagster has run, the newest first."""
        query = "{runsOrError{... on Runs{results{runId status assetSelection{path}}}}}"
        request = urllib.request.Request(
            self.url + "/graphql", data=json.dumps({"query": query}).encode(), headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return list(json.load(reply)["data"]["runsOrError"]["results"])

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs for this root: the environment is inherited by each of them."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("CLAUDE_BATCH_ROOT") == str(self.root):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def stop(self) -> None:
        assert len(self.processes()) > 5, "dev, its supervisor, Temporal, the worker, the simulator and Dagster's"
        self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(END_S)
        left = [process.cmdline() for process in self.processes()]
        assert (code, left) == (0, []), self.output[-4000:]


@dataclass(kw_only=True)
class Screenshots:
    """Takes them, numbered in their order."""

    folder: Path
    taken: list[Path] = field(default_factory=list)

    def take(self, page: Page, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{len(self.taken) + 1:02}-{name}.png"
        page.screenshot(path=path, animations="disabled")
        self.taken.append(path)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path. Without one nothing is started: CI fails, others are told what was not tested."""
    try:
        return find_browser()
    except NoBrowserError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def dev(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """`claude-batch dev` in an empty folder, simulated; when it has ended, nothing of it runs."""
    folder = tmp_path_factory.mktemp("dev")
    port = free_port()
    with (folder / "dev.log").open("wb") as log:
        popen = subprocess.Popen(
            [PROGRAM, "dev", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "CLAUDE_BATCH_ROOT": str(folder / "root")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = Dev(popen=popen, folder=folder, url=f"http://127.0.0.1:{port}")
    try:
        until(lambda: "Dagster UI " in running.output or popen.poll() is not None, START_S)
        assert popen.poll() is None, running.output
        yield running
    finally:
        if popen.poll() is None:
            running.stop()


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """Headless."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", LOOPBACK_ONLY])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Screenshots:
    """In E2E_SCREENSHOTS, else where pytest keeps temporary files."""
    wanted = os.environ.get("E2E_SCREENSHOTS")
    return Screenshots(folder=Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots"))


@pytest.fixture
def page(browser: Browser, screenshots: Screenshots, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser that remembers nothing; photographed where its test fails."""
    with browser.new_context(viewport=VIEWPORT) as context:
        context.set_default_timeout(PATIENCE_MS)
        opened = context.new_page()
        yield opened
        if request.node.stash.get(FAILED, False):
            screenshots.take(context.pages[-1], f"FAILED-{request.node.name}")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Ids of Dagster's runs.

    Attributes:
        first: Of the partitioned assets, all days: it has succeeded.
        again: Of the newest day's summaries, right after: it was launched.
    """

    first: str
    again: str


@pytest.fixture(scope="session")
def everything(dev: Dev, browser: Browser, screenshots: Screenshots) -> Runs:
    """Materialize all four assets for all days with the mouse, then one of them again.

    The report's run follows by itself, from the daemon's next look. What is only launched here goes on while other tests look at pages.
    """
    with browser.new_context(viewport=VIEWPORT) as context:
        page = context.new_page()
        page.goto(dev.path(f"/locations/{LOCATION}/asset-groups/reviews/lineage"))
        page.get_by_role("button", name="Materialize all").first.click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("materialize 4 assets")
        expect(dialog.get_by_role("button", name="Launch")).to_be_disabled()
        dialog.get_by_role("button", name="All", exact=True).click()
        expect(dialog).to_contain_text("7 partitions")
        screenshots.take(page, "materialize-all-dialog")
        dialog.get_by_role("button", name="Launch backfill").click()
        expect(page.get_by_text("Created backfill")).to_be_visible()
        first = until(lambda: next((run["runId"] for run in dev.runs() if len(run["assetSelection"]) == 3), None))
        page.goto(dev.path(f"/runs/{first}"))
        expect_end(page, "Success")
        screenshots.take(page, "run")
        again = launch_latest(page, dev, "review_summaries", lambda: screenshots.take(page, "materialize-latest-dialog"))
    return Runs(first=first, again=again)


def status(page: Page, name: str) -> Locator:
    """Return the run's state in the head of its page."""
    return page.get_by_text(name, exact=True).first


def expect_end(page: Page, name: str) -> None:
    """Wait for the run's end, and see that it is this one."""
    ends = page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
    expect(ends).to_be_visible(timeout=LONG_PATIENCE_MS)
    expect(ends).to_have_text(name)


def row(page: Page, key: str) -> Locator:
    """Return a row of a metadata table."""
    return page.get_by_role("row").filter(has=page.locator("td:first-child").get_by_text(key, exact=True))


def show_our_log(page: Page) -> None:
    """Hide Dagster's own events in a run's log."""
    page.get_by_role("button", name="Levels").click()
    page.get_by_text("event", exact=True).click()
    page.keyboard.press("Escape")
    expect(page.get_by_text("event", exact=True)).to_be_hidden()


def launch_latest(page: Page, dev: Dev, asset: str, before_launch: Callable[[], None] = lambda: None) -> str:
    """Materialize the newest partition of an asset with the mouse, and open the run's page; return the run."""
    page.goto(dev.path(f"/assets/{asset}"))
    page.get_by_role("button", name="Materialize").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Latest", exact=True).click()
    expect(dialog).to_contain_text("1 partition")
    before_launch()
    dialog.get_by_role("button", name="Launch 1 run").click()
    page.get_by_role("button", name="View", exact=True).or_(page.get_by_role("link", name="View", exact=True)).click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    return page.url.rpartition("/")[2].partition("?")[0]
