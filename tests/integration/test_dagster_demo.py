"""`python -m claude_batch_dagster.demo`, as a newcomer runs it: no key, no server, nothing configured."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pyarrow.dataset as ds

from claude_batch_dagster.resources.io_manager import open_output

REPOSITORY = Path(__file__).parents[2]


def test_the_demo_materializes_seven_days_in_one_run_and_shows_what_came_out(tmp_path: Path) -> None:
    """Every shipped review has a summary and a label; the last lines name the files."""
    done = subprocess.run(
        [sys.executable, "-m", "claude_batch_dagster.demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CLAUDE_BATCH_ROOT": str(tmp_path / "root"), "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Simulated: ")
    assert all(len(line) <= 100 for line in lines if not line.startswith(("Summaries:", "Labels:", "Report:")))
    assert "300 reviews" in done.stdout
    assert "Warning" not in done.stderr
    for line, name in zip(lines[-3:-1], ("review_summaries", "review_labels"), strict=True):
        table = open_output(line.split()[-1], dg.AssetKey(name)).to_table()
        assert table["status"].to_pylist() == ["succeeded"] * 300
    report = ds.dataset(lines[-1].split()[-1]).to_table()
    assert sum(report["reviews"].to_pylist()) == 300
    assert len(set(report["day"].to_pylist())) == 7
    runs = [path for path in (tmp_path / "root" / "dagster" / "history" / "runs").glob("*.db") if path.name != "index.db"]
    assert len(runs) == 1
