"""The demo's code location."""

import os
import subprocess
import sys
from pathlib import Path

# The tick comes after the look at the warnings: Dagster 1.13.27 warns there about a call of its own.
PROGRAM = """
import datetime, warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    import dagster as dg
    from claude_batch_dagster.demo.definitions import DEMO_DIR, daily, defs
    dg.Definitions.validate_loadable(defs)
    schedule = defs.resolve_schedule_def("review_insights_daily")
shown = [str(one.message) for one in said]
assert not shown, shown
tick = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=datetime.datetime(2026, 11, 3, 2)))
assert [request.partition_key for request in tick.run_requests] == ["2026-11-02"]
assert len(daily.get_partition_keys()) == 7
assert DEMO_DIR.endswith("/here"), DEMO_DIR
graph = defs.resolve_asset_graph()
assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {"reviews", "review_summaries", "review_labels", "review_report"}
"""


def test_the_demo_loads_without_a_key_or_a_warning_and_its_schedule_asks_about_yesterday(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "CLAUDE_BATCH_DEMO_DIR": str(tmp_path / "here")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "loading writes nothing"
