"""Reviews in one Parquet file: a summary and a moderation label for each, and what may be shown on the site."""

from pathlib import Path

import dagster as dg
import pandas as pd

from claude_batch_dagster import ClaudeBatchResource, Moderate, ParquetDataset, Summarize, claude_batch_assets, claude_batch_resources

HERE = Path(__file__).parent
MODEL = "claude-haiku-5-5"

raw_reviews = dg.AssetSpec("raw_reviews", description="Reviews as customers sent them.", kinds={"parquet"}, group_name="reviews")


@claude_batch_assets(
    source=ParquetDataset(path=str(HERE / "data" / "reviews.parquet"), asset=raw_reviews, key="review_id"),
    tasks=[
        Summarize(name="review_summaries", column="text", model=MODEL, max_words=20),
        Moderate(name="review_labels", column="text", model=MODEL, labels=["ok", "spam", "hate", "personal_data"]),
    ],
    columns=["review_id", "text"],
    group_name="reviews",
)
def review_insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """Both questions are one plan: they share batches, and each review is asked about once for each."""
    yield from claude_batch.run(context)


@dg.asset(group_name="reviews", kinds={"pandas", "parquet"})
def shown_reviews(review_summaries: pd.DataFrame, review_labels: pd.DataFrame) -> dg.MaterializeResult:
    """What the site shows: labelled ok, with its summary. A review without an answer waits, it is not shown unseen."""
    labels = review_labels[["review_id", "label", "severity", "status"]]
    joined = labels.merge(review_summaries[["review_id", "text", "summary"]], on="review_id", validate="one_to_one")
    shown = joined[(joined["status"] == "succeeded") & (joined["label"] == "ok")].drop(columns="status")
    path = HERE / "output" / "shown_reviews.parquet"
    path.parent.mkdir(exist_ok=True)
    shown.to_parquet(path, index=False)
    return dg.MaterializeResult(metadata={"dagster/row_count": len(shown), "held_back": len(joined) - len(shown), "dagster/uri": str(path)})


defs = dg.Definitions(
    assets=[raw_reviews, review_insights, shown_reviews],
    resources=claude_batch_resources(output=str(HERE / "output"), max_cost_usd=1),
)
