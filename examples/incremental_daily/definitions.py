"""Reviews of a day, every night: a schedule fetches and asks, the run does not wait, a sensor publishes, and a freshness policy watches."""

from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd

from claude_batch_dagster import (
    ClaudeBatchResource,
    Moderate,
    ParquetDataset,
    build_claude_batch_checks,
    build_claude_batch_sensor,
    claude_batch_assets,
    claude_batch_resources,
)

HERE = Path(__file__).parent
LABELS = ("praise", "mixed", "complaint")

FIRST_DAY = date(2026, 11, 1)
REVIEWS_A_DAY = 10

daily = dg.DailyPartitionsDefinition(str(FIRST_DAY))


@dg.multi_asset(
    specs=[dg.AssetSpec("reviews", partitions_def=daily, group_name="reviews", kinds={"parquet"}, description="One file a day.")],
    partitions_def=daily,
    # As the labels: several days are one run.
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def fetch_reviews(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """What customers wrote on a day. Put your export in here: this one hands out ten of 300 real reviews a day, then the same again."""
    shop = pd.read_parquet(HERE / "data" / "shop.parquet")
    for key in context.partition_keys:
        day = date.fromisoformat(key)
        first = (day - FIRST_DAY).days * REVIEWS_A_DAY % len(shop)
        written = shop.iloc[first : first + REVIEWS_A_DAY]
        file = HERE / "lake" / f"{day:%Y/%m/%d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        written.to_parquet(file, index=False)
        said = {"dagster/partition_row_count": len(written), "dagster/uri": str(file)}
        context.add_asset_metadata(said, asset_key="reviews", partition_key=key)
    return dg.MaterializeResult(asset_key="reviews")


@claude_batch_assets(
    source=ParquetDataset(
        path=str(HERE / "lake" / "{partition:%Y/%m/%d}.parquet"), asset="reviews", key="review_id", partition_column="day"
    ),
    tasks=[Moderate(name="review_labels", column="text", model="claude-haiku-5-5", labels=LABELS)],
    partitions_def=daily,
    wait_for=timedelta(minutes=10),
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=48), warn_window=timedelta(hours=30)),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=60),
    group_name="reviews",
)
def label_reviews(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """Waits ten minutes; a batch that takes longer is published by the run that the sensor requests."""
    yield from claude_batch.run(context)


@dg.asset(
    partitions_def=daily,
    # eager() alone looks at the latest day only, and a batch may end on the day after.
    automation_condition=dg.AutomationCondition.eager().without(dg.AutomationCondition.in_latest_time_window()),
    group_name="reviews",
)
def complaints_of_the_day(context: dg.AssetExecutionContext, review_labels: pd.DataFrame) -> dg.MaterializeResult:
    """Follows each day by itself, whenever it is published."""
    complaints = review_labels[review_labels["label"] == "complaint"]
    return dg.MaterializeResult(metadata={"dagster/partition_row_count": len(complaints), "share": len(complaints) / len(review_labels)})


nightly_job = dg.define_asset_job("nightly_job", selection=dg.AssetSelection.assets("reviews", "review_labels"))

defs = dg.Definitions(
    assets=[fetch_reviews, label_reviews, complaints_of_the_day],
    asset_checks=build_claude_batch_checks(label_reviews, min_coverage=1.0, allowed_labels=LABELS, max_label_drift=0.5, max_cost_usd=1),
    jobs=[nightly_job],
    schedules=[dg.build_schedule_from_partitioned_job(nightly_job, hour_of_day=2)],
    sensors=[
        build_claude_batch_sensor(label_reviews),
        dg.AutomationConditionSensorDefinition("follow", target=dg.AssetSelection.all(), default_status=dg.DefaultSensorStatus.RUNNING),
    ],
    resources=claude_batch_resources(output=str(HERE / "output"), max_cost_usd=1),
)
