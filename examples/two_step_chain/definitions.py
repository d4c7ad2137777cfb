"""A chain: what the first task answers is what the second one asks about."""

from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import BaseModel, Field

from claude_batch_dagster import (
    ClaudeBatchResource,
    ClaudeTask,
    ParquetDataset,
    build_claude_batch_checks,
    claude_batch_assets,
    claude_batch_resources,
)

HERE = Path(__file__).parent
MODEL = "claude-haiku-5-5"


class Complaint(BaseModel):
    """What is wrong with the product, if anything is."""

    complaint: str | None = Field(description="The customer's main complaint in one sentence; null where there is none.")


class Assignment(BaseModel):
    """Who takes care of it."""

    team: Literal["hardware", "firmware", "logistics", "support", "nobody"]
    urgency: Literal["today", "this_week", "later"]


@claude_batch_assets(
    source=ParquetDataset(path=str(HERE / "data" / "reviews.parquet"), key="review_id"),
    tasks=[
        ClaudeTask(
            name="complaints", model=MODEL, prompt="What does this customer complain about?\n{text}", output=Complaint, max_tokens=200
        )
    ],
    group_name="complaints",
)
def find_complaints(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """The first step reads the reviews."""
    yield from claude_batch.run(context)


@claude_batch_assets(
    # No path: the rows are the output of the first step. A row without a complaint has nothing to ask about, and is skipped.
    source=ParquetDataset(asset="complaints", key="review_id"),
    tasks=[ClaudeTask(name="assignments", model=MODEL, prompt="Who takes care of this?\n{complaint}", output=Assignment, max_tokens=200)],
    columns=["review_id", "complaint"],
    group_name="complaints",
)
def assign_complaints(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """The second step asks again only where the first one's answer changed."""
    yield from claude_batch.run(context)


defs = dg.Definitions(
    assets=[find_complaints, assign_complaints],
    asset_checks=build_claude_batch_checks(
        [find_complaints, assign_complaints], max_failure_rate=0.02, severity=dg.AssetCheckSeverity.WARN
    ),
    resources=claude_batch_resources(output=str(HERE / "output"), max_cost_usd=1),
)
