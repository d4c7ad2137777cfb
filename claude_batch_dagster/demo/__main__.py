"""`python -m claude_batch_dagster.demo`: all seven days in one Dagster run, and a look at what came out."""

import os
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg

from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.verbs.connection import external_connection
from claude_batch_dagster.verbs.endpoint import DEFAULT_ROOT, SIMULATOR, default_root, has_credentials, resolve_endpoint

SHOWN_ROWS = 6
WIDTH = 100
SUMMARY_WIDTH = 62
INSTANCE_SETTINGS = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"


def main() -> int:
    """Materialize the demo; return the exit code."""
    if not has_credentials() and external_connection() is None:
        os.environ["CLAUDE_BATCH_SIMULATE"] = "1"
    is_simulated = resolve_endpoint(simulate=False, needs_key=False) == SIMULATOR
    if is_simulated:
        print("Simulated: no key is used, nothing is paid, and answers are marked [simulated].", flush=True)

    # The definitions read the environment, so they are imported once it is complete.
    from claude_batch_dagster.demo.definitions import JOB_NAME, daily, defs

    days = daily.get_partition_keys()
    started_s = time.monotonic()
    with _open_instance() as instance:
        result = defs.resolve_job_def(JOB_NAME).execute_in_process(
            instance=instance,
            tags={"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]},
            run_config={"loggers": {"console": {"config": {"log_level": "INFO"}}}},
            raise_on_error=False,
        )
    if not result.success:
        print(f"\nThe demo failed. Dagster run {result.run_id}:\n{_why(result)}", file=sys.stderr)
        return 1
    _show(is_simulated=is_simulated, elapsed_s=time.monotonic() - started_s)
    return 0


def _open_instance() -> dg.DagsterInstance:
    """Return the instance at DAGSTER_HOME, or one that lies below a local root and sends no telemetry."""
    if not os.environ.get("DAGSTER_HOME"):
        root = default_root()
        home = Path(absolute_uri(DEFAULT_ROOT) if "://" in root else root) / "dagster"
        home.mkdir(parents=True, exist_ok=True)
        settings = home / "dagster.yaml"
        if not settings.exists():
            settings.write_text(INSTANCE_SETTINGS)
        os.environ["DAGSTER_HOME"] = str(home)
    return dg.DagsterInstance.get()


def _why(result: dg.ExecuteInProcessResult) -> str:
    reasons = []
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            described = failure.user_failure_data.description if failure.user_failure_data else None
            reasons.append(described or (failure.error.message.strip() if failure.error else event.message or "unknown"))
    return "\n".join(f"- {reason}" for reason in dict.fromkeys(reasons)) or "Look at the log above."


def _show(*, is_simulated: bool, elapsed_s: float) -> None:
    import pyarrow.parquet as pq

    from claude_batch_dagster.demo.definitions import DEMO_DIR
    from claude_batch_dagster.resources.io_manager import open_output, outputs_folder
    from claude_batch_dagster.storage.store import Store, join_uri

    outputs = outputs_folder(default_root(), None, resolve_endpoint(simulate=False, needs_key=False))
    tables = {name: open_output(join_uri(outputs, name), dg.AssetKey(name)).to_table() for name in ("review_summaries", "review_labels")}
    summaries = {(row["day"], row["review_id"]): row for row in tables["review_summaries"].to_pylist()}
    labels = tables["review_labels"].to_pylist()

    marked = " (simulated)" if is_simulated else ""
    print(f"\n{len(labels)} reviews in {elapsed_s:.0f} s, each with a summary and a label{marked}. Some of them:\n")
    print(f"{'day':10}  {'review':>6}  {'label':9}  {'felt':>5}  summary")
    for row in labels[:: max(1, len(labels) // SHOWN_ROWS)][:SHOWN_ROWS]:
        summary = summaries[row["day"], row["review_id"]]
        text = (summary["summary"] or summary["status"]).removeprefix("[simulated]").strip()
        shown = textwrap.shorten(text, SUMMARY_WIDTH, placeholder=" ...")
        print(f"{row['day']:10}  {row['review_id']:>6}  {row['label'] or row['status']:9}  {row['human_sentiment']:+5.1f}  {shown}"[:WIDTH])

    report = pq.read_table(Store(join_uri(DEMO_DIR, "review_report")).open("part-0.parquet")).to_pandas()
    print(f"\n{'label':10}  {'reviews':>7}  share")
    for label, count in report.groupby("label")["reviews"].sum().sort_values(ascending=False).items():
        print(f"{label!s:10}  {count:>7}  {'█' * max(1, round(40 * count / len(labels)))}")
    cost_usd = sum(row["cost_usd"] or 0 for rows in (labels, summaries.values()) for row in rows)
    print(
        f"\nAt batch prices this is worth ${cost_usd:.4f}{'; nothing was paid' if is_simulated else ''}. `felt` is what human raters said, -4 to 4."
    )
    print(f"Summaries: {join_uri(outputs, 'review_summaries')}")
    print(f"Labels:    {join_uri(outputs, 'review_labels')}")
    print(f"Report:    {join_uri(DEMO_DIR, 'review_report', 'part-0.parquet')}")


if __name__ == "__main__":
    sys.exit(main())
