"""Photos of gauges in a Parquet column: Claude reads each one, and the readings are compared with what is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import BaseModel, Field

from claude_batch_dagster import ClaudeBatchResource, ClaudeTask, ParquetDataset, claude_batch_assets, claude_batch_resources

HERE = Path(__file__).parent


class Reading(BaseModel):
    """What is seen on the photo."""

    unit: str | None = Field(description="The unit as printed on the dial; null where none can be read.")
    value: float | None = Field(description="What the needle points at; null where it cannot be read.")


def show_gauge(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the message's content blocks. The bytes of the column become base64; a row without a photo asks nothing."""
    if row["photo"] is None:
        return None
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": row["photo"]}}
    return [image, {"type": "text", "text": f"This is the gauge of {row['station']}. Read it."}]


@claude_batch_assets(
    source=ParquetDataset(path=str(HERE / "data" / "gauges.parquet"), key="photo_id"),
    tasks=[
        ClaudeTask(
            name="readings",
            model="claude-haiku-5-5",
            prompt=show_gauge,
            version=1,  # a change of the function asks again only with the next version
            prompt_columns=["photo", "station"],
            output=Reading,
            max_tokens=200,
        )
    ],
    columns=["photo_id", "station", "true_value"],
    group_name="gauges",
)
def read_gauges(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
    """One request a photo; a photo that is there twice is asked once."""
    yield from claude_batch.run(context)


@dg.asset_check(asset="readings", description="Readings are within 5 units of what was known, on average.")
def readings_are_close(readings: pd.DataFrame) -> dg.AssetCheckResult:
    """A warning, not an error: the photos are the only ones with a known value."""
    off = (readings["value"] - readings["true_value"]).abs().mean()
    return dg.AssetCheckResult(passed=bool(off <= 5), severity=dg.AssetCheckSeverity.WARN, metadata={"mean_difference": float(off)})


defs = dg.Definitions(
    assets=[read_gauges],
    asset_checks=[readings_are_close],
    resources=claude_batch_resources(output=str(HERE / "output"), max_cost_usd=1),
)
