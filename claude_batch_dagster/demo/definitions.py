"""The demo's code location: reviews of a day come in, are summarized and labelled in shared batches, and a report counts them.

Everything is written below CLAUDE_BATCH_DEMO_DIR, or `demo` below the root; answers as everywhere below the root.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster import ClaudeBatchResource, Moderate, ParquetDataset, Summarize, claude_batch_assets, claude_batch_resources
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.demo.report import COSTS, COUNTS, chart_of, report_markdown
from claude_batch_dagster.storage.store import Store, absolute_uri, join_uri
from claude_batch_dagster.verbs.endpoint import default_root

MODEL = "claude-haiku-5-5"
LABELS = ("praise", "mixed", "complaint", "abusive", "off_topic")
SHIPPED = Path(__file__).parent / "data" / "product_reviews.parquet"
DEMO_DIR = absolute_uri(os.environ.get("CLAUDE_BATCH_DEMO_DIR") or join_uri(default_root(), "demo"))
JOB_NAME = "review_insights_job"

daily = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-08")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            "reviews",
            description="Real product reviews, one file a day (VADER's ground truth, C.J. Hutto and E. Gilbert, ICWSM 2014, MIT licence).",
            partitions_def=daily,
            group_name="reviews",
            kinds={"parquet"},
        )
    ],
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def shipped_reviews(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    """Write each day of the shipped file as `reviews/day=YYYY-MM-DD/part-0.parquet`."""
    shipped = pq.read_table(SHIPPED).replace_schema_metadata(None)
    folder = Store(join_uri(DEMO_DIR, "reviews"))
    for day in context.partition_keys:
        rows = shipped.filter(pc.equal(shipped["day"], day)).drop_columns("day")
        path = f"day={day}/part-0.parquet"
        content = pa.BufferOutputStream()
        pq.write_table(rows, content, compression="zstd")
        folder.put(path, content.getvalue().to_pybytes())
        context.add_asset_metadata(
            {"dagster/partition_row_count": rows.num_rows, "dagster/uri": join_uri(folder.uri, path)},
            asset_key="reviews",
            partition_key=day,
        )
    return dg.MaterializeResult(asset_key="reviews")


reviews = ParquetDataset(path=join_uri(DEMO_DIR, "reviews"), asset="reviews", key="review_id", partition_column="day")


@claude_batch_assets(
    source=reviews,
    tasks=[
        Summarize(name="review_summaries", column="text", model=MODEL, max_words=25),
        Moderate(name="review_labels", column="text", model=MODEL, labels=LABELS),
    ],
    columns=["review_id", "human_sentiment"],
    partitions_def=daily,
    group_name="reviews",
)
def review_insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource) -> Iterator[object]:
    """Ask about the selected days in one batch run."""
    yield from claude_batch.run(context)


@dg.asset(group_name="reviews", kinds={"duckdb", "parquet"}, deps=["review_labels", "review_summaries"])
def review_report(claude_batch: ClaudeBatchResource) -> dg.MaterializeResult[None]:
    """Reviews and cost by day and label, over all days that there are, compared with what people felt about them."""
    with claude_batch.open_views() as views:
        counts = views.connection.execute(COUNTS).df()
        costs = views.connection.execute(COSTS).df().iloc[0]
    folder = Store(join_uri(DEMO_DIR, "review_report"))
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(counts, preserve_index=False), content, compression="zstd")
    folder.put("part-0.parquet", content.getvalue().to_pybytes())
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(counts),
            "dagster/uri": join_uri(folder.uri, "part-0.parquet"),
            "reviews": int(counts["reviews"].sum()),
            "days": int(counts["day"].nunique()),
            "responses": int(costs["responses"]),
            "cost": usd(float(costs["cost_usd"])),
            "cost_usd": float(costs["cost_usd"]),
            "chart": dg.MetadataValue.md(chart_of(counts, LABELS)),
            "report": dg.MetadataValue.md(report_markdown(counts, LABELS)),
        }
    )


review_insights_job = dg.define_asset_job(JOB_NAME, selection=dg.AssetSelection.groups("reviews"))

defs = dg.Definitions(
    assets=[shipped_reviews, review_insights, review_report],
    jobs=[review_insights_job],
    schedules=[dg.build_schedule_from_partitioned_job(review_insights_job, name="review_insights_daily", hour_of_day=2)],
    resources=claude_batch_resources(),
)
