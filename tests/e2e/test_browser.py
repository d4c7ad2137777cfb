"""Without a browser the UIs are not tested, which nobody can overlook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.browser import NAMES, NoBrowserError, find_browser

REPOSITORY = Path(__file__).parents[2]


def install(folder: Path, name: str) -> str:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


def test_chrome_names_the_browser_and_else_the_path_is_searched(tmp_path):
    mine = install(tmp_path / "elsewhere", "my-chrome")
    found = install(tmp_path / "bin", "google-chrome")
    path = str(tmp_path / "bin")
    assert find_browser({"PATH": path, "CHROME": mine}) == mine
    assert find_browser({"PATH": path}) == found


def test_where_none_is_found_the_error_says_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.e2e.browser.ELSEWHERE", ())
    with pytest.raises(NoBrowserError, match="CHROME=/nowhere is no program"):
        find_browser({"PATH": str(tmp_path), "CHROME": "/nowhere"})
    with pytest.raises(NoBrowserError, match=r"apt-get install -y chromium") as error:
        find_browser({"PATH": str(tmp_path)})
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize(("ci", "outcome", "code"), [("true", "1 error", 1), ("", "1 skipped", 0)])
def test_a_missing_browser_fails_ci_and_is_said_elsewhere(ci, outcome, code):
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "tests/e2e/test_dagster_ui.py", "-k", "lineage"]
    environ = {**os.environ, "CHROME": "/nowhere", "CI": ci}
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout
    assert outcome in done.stdout
    assert "CHROME=/nowhere is no program. The UIs were not tested." in done.stdout
