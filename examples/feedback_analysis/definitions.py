"""Feedback becomes a table: a Pydantic model says which columns, and Claude fills them for every row."""

from pathlib import Path
from typing import Literal

import dagster as dg
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import BaseModel, Field

from claude_batch_dagster import ClaudeBatchResource, ClaudeTask, ParquetDataset, claude_batch_assets, claude_batch_resources

HERE = Path(__file__).parent


class Feedback(BaseModel):
    """The columns of the output. Each description is part of the question, and stands beside the column in Dagster."""

    topics: list[Literal["picture", "sound", "remote", "formats", "support", "price", "setup", "other"]] = Field(
        description="What the review is about, most important first."
    )
    sentiment: Literal["positive", "mixed", "negative"] = Field(description="What the customer thinks of the product as a whole.")
    would_buy_again: bool | None = Field(description="Null where the review does not say.")
    defect: str | None = Field(description="A fault of the product in at most ten words; null where none is named.")


feedback = ClaudeTask(
    name="feedback",
    model="claude-haiku-5-5",
    system="You read product reviews for the team that builds the product. Report only what the review says.",
    prompt="Review of {day}:\n{text}",
    output=Feedback,
    max_tokens=400,
)


@claude_batch_assets(
    source=ParquetDataset(path=str(HERE / "data" / "reviews.parquet"), key="review_id"),
    tasks=[feedback],
    columns=["review_id", "day", "human_sentiment"],
    fail_above=0.05,
    group_name="feedback",
)
def analyzed_feedback(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """Where more than 5 % of the rows fail, the run fails and yesterday's table stays."""
    yield from claude_batch.run(context)


@dg.asset(group_name="feedback", kinds={"arrow"})
def defects(feedback: ds.Dataset) -> dg.MaterializeResult:
    """The faults that customers name, for the next sprint."""
    named = feedback.to_table(columns=["review_id", "defect"], filter=pc.field("defect").is_valid())
    lines = [f"- {row['review_id']}: {row['defect']}" for row in named.slice(0, 20).to_pylist()]
    return dg.MaterializeResult(metadata={"dagster/row_count": named.num_rows, "defects": dg.MetadataValue.md("\n".join(lines) or "None.")})


defs = dg.Definitions(
    assets=[analyzed_feedback, defects],
    resources=claude_batch_resources(output=str(HERE / "output"), max_cost_usd=1),
)
