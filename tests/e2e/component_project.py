"""A project of `dg` with one component over a week of real reviews, materialized and served as its page says. `docs/screenshots.py` uses it too."""

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.e2e.conftest import END_S, START_S, until
from tests.integration.test_dg import REPOSITORY, Project
from tests.stack import free_port

REVIEWS = REPOSITORY / "claude_batch_dagster" / "demo" / "data" / "product_reviews.parquet"
DAYS = [f"2026-11-0{day}" for day in range(1, 8)]
COMPONENT = """\
type: claude_batch_dagster.ClaudeBatchComponent

attributes:
  source: {path: reviews, key: review_id, partition_column: day}
  tasks:
    - name: review_labels
      model: claude-haiku-5-5
      prompt_file: prompt.md
      schema_file: label.json
      max_tokens: 100
  partitions_def: {type: daily, start_date: "2026-11-01", end_date: "2026-11-08"}
  group_name: reviews
  checks: {min_coverage: 1.0, max_failure_rate: 0.01, max_label_drift: 0.3, max_cost_usd: 1}
  resource: {max_cost_usd: 1}
"""
PROMPT = "How does the customer feel about the product?\n\n{text}\n"
SCHEMA = """\
{
  "type": "object",
  "properties": {"label": {"type": "string", "enum": ["praise", "mixed", "complaint"], "description": "How the customer feels."}},
  "required": ["label"]
}
"""


def make_project(place: Path) -> Project:
    """Make a project with the reviews and the component `reviews`; nothing is materialized."""
    project = Project(place)
    (place / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    project.environ["CLAUDE_BATCH_SIMULATE"] = "1"
    reviews = pq.read_table(REVIEWS)
    for day in DAYS:
        file = project.folder / "reviews" / f"day={day}" / "part-0.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(reviews.filter(pc.equal(reviews["day"], day)).drop_columns("day"), file)
    add_component(project, "reviews", {"defs.yaml": COMPONENT, "prompt.md": PROMPT, "label.json": SCHEMA})
    return project


def add_component(project: Project, name: str, files: dict[str, str]) -> None:
    folder = project.folder / "src" / "shop" / "defs" / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A project that `dg dev` serves."""

    project: Project
    url: str

    def path(self, path: str) -> str:
        return self.url + path


@contextmanager
def serve(project: Project) -> Iterator[Served]:
    """Serve a project with `dg dev`; afterwards nothing of it runs."""
    port = free_port()
    log = project.folder.parent / "dev.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [Path(sys.executable).with_name("dg"), "dev", "--host", "127.0.0.1", "--port", str(port)],
            cwd=project.folder,
            env=project.environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert popen.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    try:
        until(is_up, START_S)
        yield Served(project=project, url=url)
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait(END_S)
        until(lambda: not running(project), END_S)


def running(project: Project) -> list[psutil.Process]:
    """Return the processes of a project: each of them inherits its home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DAGSTER_HOME") == project.environ["DAGSTER_HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
