"""The `dg` command in a project: what a person types first, and that it asks nothing of the network."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.dagster_house import write_reviews
from tests.stack import MODEL

REPOSITORY = Path(__file__).parents[2]
# Writes down whatever a process of these commands asks of another machine.
LISTENING = """\
import os, sys

def _write_down(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" and isinstance(arguments[1], tuple) else arguments[0]
        if isinstance(host, str) and host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0", ""):
            with open(os.environ["ASKED_OUTSIDE"], "a") as file:
                file.write(f"{event} {host} {sys.argv}\\n")

sys.addaudithook(_write_down)
"""
DEFINITIONS = """\
from pathlib import Path

from dagster import definitions, load_from_defs_folder


@definitions
def defs():
    return load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


class Project:
    """A project of dg's, with the component registered as its package does."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "project"
        (self.folder / "src" / "shop" / "defs").mkdir(parents=True)
        (self.folder / "src" / "shop" / "__init__.py").touch()
        (self.folder / "src" / "shop" / "definitions.py").write_text(DEFINITIONS)
        (self.folder / "pyproject.toml").write_text('[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "shop"\n')
        self.outside = place / "asked_outside"
        home, site = place / "home", place / "site"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        site.mkdir()
        (site / "sitecustomize.py").write_text(LISTENING)
        _register(site)
        self.environ = {
            **os.environ,
            "ASKED_OUTSIDE": str(self.outside),
            "DAGSTER_HOME": str(home),
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join((str(site), str(self.folder / "src"), str(REPOSITORY))),
            "VIRTUAL_ENV": sys.prefix,
        }

    def dg(self, *arguments: str, fails: bool = False) -> str:
        """Run a command, and return what it printed."""
        command = [str(Path(sys.executable).parent / "dg"), *arguments]
        process = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False)
        assert (process.returncode != 0) is fails, process.stdout + process.stderr
        return process.stdout


def _register(site: Path) -> None:
    """What an installation of this repository says of its entry points, whenever the one that runs the tests was made."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    folder = site / f"claude_batch_dagster-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    )
    (folder / "entry_points.txt").write_text("".join(groups))


@pytest.fixture
def project(place: Path) -> Project:
    return Project(place)


def test_a_component_is_listed_scaffolded_checked_and_launched_without_an_edit(project: Project, place: Path):
    listed = {one["key"]: one["summary"] for one in json.loads(project.dg("list", "components", "--json"))["items"]}
    assert "Ask Claude about every row" in listed["claude_batch_dagster.ClaudeBatchComponent"]

    write_reviews(project.folder)
    project.dg(
        "scaffold",
        "defs",
        "claude_batch_dagster.ClaudeBatchComponent",
        "reviews",
        *("--source", "reviews", "--key", "review_id", "--column", "text", "--model", MODEL, "--max-cost-usd", "2.5"),
    )
    folder = project.folder / "src" / "shop" / "defs" / "reviews"
    assert sorted(file.name for file in folder.iterdir()) == ["defs.yaml", "prompt.md"]
    assert "validated successfully" in project.dg("check", "yaml")
    assert "All definitions loaded successfully" in project.dg("check", "defs")
    found = json.loads(project.dg("list", "defs", "--json"))
    (asset,) = found["assets"]
    assert (asset["asset_key"], asset["kinds"], asset["source"]) == (
        "summaries",
        ["claude", "parquet"],
        "src/shop/defs/reviews/prompt.md:1",
    )
    assert [one["key"] for one in found["asset_checks"]] == ["summaries:rows_answered"]

    project.dg("launch", "--assets", "summaries")
    (written,) = place.glob("**/summaries/part-0.parquet")
    assert pq.read_table(written)["status"].to_pylist() == ["succeeded"] * 3 + ["skipped"]
    assert not project.outside.exists(), project.outside.read_text()


def test_a_component_is_scaffolded_in_python_and_launched_without_an_edit(project: Project, place: Path):
    write_reviews(project.folder)
    project.dg(
        "scaffold",
        "defs",
        "claude_batch_dagster.ClaudeBatchComponent",
        "reviews",
        *("--format", "python", "--source", "reviews", "--key", "review_id, stars", "--model", MODEL, "--max-cost-usd", "2.5"),
    )
    folder = project.folder / "src" / "shop" / "defs" / "reviews"
    assert sorted(file.name for file in folder.iterdir()) == ["component.py", "prompt.md"]
    assert "All definitions loaded successfully" in project.dg("check", "defs")
    project.dg("launch", "--assets", "summaries")
    (written,) = place.glob("**/summaries/part-0.parquet")
    assert pq.read_table(written)["status"].to_pylist() == ["succeeded"] * 3 + ["skipped"]


def test_check_yaml_names_the_key_that_is_wrong_inside_a_task(project: Project):
    folder = project.folder / "src" / "shop" / "defs" / "reviews"
    folder.mkdir()
    (folder / "defs.yaml").write_text(
        "type: claude_batch_dagster.ClaudeBatchComponent\n"
        "attributes:\n"
        "  source: {path: reviews, key: review_id, partition_colum: day}\n"
        "  tasks:\n"
        f"    - {{preset: summarize, name: summaries, column: text, model: {MODEL}, max_wrds: 3}}\n"
        "  fail_abov: 0.5\n"
        "  resource: {max_cost: 3}\n"
    )
    said = project.dg("check", "yaml", fails=True)
    for key in ("partition_colum", "max_wrds", "fail_abov", "max_cost"):
        assert f"('{key}' was unexpected)" in said
    assert said.count("^ ") == 4
