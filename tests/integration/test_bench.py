"""Every part of the bench runs, at a tiny size, and gives the figures that its goals are compared with."""

import json
import subprocess
import sys
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bench.goals import GOALS, judge, show_goals
from bench.measure import REPOSITORY, Bench
from bench.server import CHUNK, read_custom_ids

TINY = ("--rows", "200", "--repeat", "1")
PARTS: dict[str, tuple[str, ...]] = {
    "plan": (),
    "submit": (),
    "collect": (),
    "lookup": (),
    "publish": (),
    "end_to_end": (),
    "soak": (),
    # The others take longer.
    "start": ("python", "help", "import"),
    "events": ("shards_1",),
}
# Too little for an index at this size, or left out here.
MAY_BE_MISSING = {
    "lookup.disk_per_key",
    "publish.day_after_compaction",
    "events.shards_12_of_allowed",
    "events.shards_1000_of_allowed",
}


def run_part(name: str, work: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{name}", *TINY, "--work", str(work), "--json", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_measures_every_case_and_gives_what_its_goals_need(name: str, work: Path) -> None:
    report = run_part(name, work, *(word for case in PARTS[name] for word in ("--only", case)))
    bench: Bench = import_module(f"bench.{name}").BENCH
    assert set(report["cases"]) | set(report["skipped"]) == set(PARTS[name] or bench.cases)
    assert all(case["wall_s"] > 0 and case["peak_mb"] > 0 for case in report["cases"].values())
    wanted = {goal.figure for goal in GOALS if goal.figure.startswith(f"{name}.")}
    assert wanted - {f"{name}.{figure}" for figure in report["figures"]} <= MAY_BE_MISSING


def test_goals_tell_reached_from_missed_and_from_not_measured() -> None:
    report = {
        "bench": "plan",
        "rows": 100_000,
        "figures": {"against_iterrows": {"value": 13.0, "unit": "x"}, "share_of_p0": {"value": 69.9, "unit": "%"}},
    }
    judged = {one["figure"]: one["reached"] for one in judge([report])}
    assert judged["plan.against_iterrows"] is True
    assert judged["plan.share_of_p0"] is False
    assert judged["plan.against_to_dict"] is None
    table = show_goals(judge([report]))
    assert "not measured" in table
    assert "NO" in table


def test_the_server_finds_every_request_wherever_its_body_is_cut() -> None:
    for before in range(200):
        text = b"x" * (CHUNK - before)
        body = b'{"requests":[{"custom_id":"row-1","params":{"text":"%b"}},\n{"custom_id":"row-2","params":{"text":"%b"}}]}' % (
            text,
            text[:1_000],
        )
        assert read_custom_ids(BytesIO(body), len(body)) == [b"row-1", b"row-2"], before
