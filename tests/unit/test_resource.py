"""The resource's fields and what it refuses before anything is asked."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster import ClaudeBatchResource, ParquetDataset, Summarize, claude_batch_assets, claude_batch_resources

SUMMARIES = Summarize(name="summaries", column="text", model="claude-haiku-5-5")


def insights_of(folder: Path) -> dg.AssetsDefinition:
    pq.write_table(pa.table({"id": [1], "text": ["Good."]}), folder / "reviews.parquet")

    @claude_batch_assets(source=ParquetDataset(path=str(folder / "reviews.parquet"), key="id"), tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    return insights


def fail(folder: Path, resources: dict[str, object]) -> str:
    result = dg.materialize([insights_of(folder)], resources={**claude_batch_resources(), **resources}, raise_on_error=False)
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    return failed.step_failure_data.user_failure_data.description


def test_every_field_is_described():
    fields = {name: field for name, field in ClaudeBatchResource.model_fields.items() if not name.startswith("_")}
    assert len(fields) == 12
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    "field", [{"max_cost_usd": -1}, {"max_requests_per_batch": 100_001}, {"max_in_flight_batches": 0}, {"max_attempts": 0}]
)
def test_a_limit_out_of_range_fails_the_run_before_anything_is_asked(tmp_path, monkeypatch, field):
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    resource = ClaudeBatchResource(root=str(tmp_path / "root"), simulate=True, **field)
    description = fail(tmp_path, {"claude_batch": resource})
    assert next(iter(field)) in description
    assert "Nothing was sent" in description


def test_the_cap_is_ten_dollars_unless_it_is_lifted():
    assert ClaudeBatchResource().max_cost_usd == 10
    assert ClaudeBatchResource(max_cost_usd=None).max_cost_usd is None


def test_the_code_location_loads_without_a_key(tmp_path):
    dg.Definitions.validate_loadable(dg.Definitions(assets=[insights_of(tmp_path)], resources=claude_batch_resources()))


def test_materializing_without_a_key_is_refused_and_both_ways_out_are_named(tmp_path):
    description = fail(tmp_path, claude_batch_resources(root=str(tmp_path / "root")))
    assert "ANTHROPIC_API_KEY" in description
    assert "CLAUDE_BATCH_SIMULATE=1" in description
    assert not (tmp_path / "root").exists()


def test_the_resources_share_root_output_and_simulation(tmp_path):
    resources = claude_batch_resources(root=str(tmp_path), output="out", max_cost_usd=3, simulate=True)
    assert set(resources) == {"claude_batch", "claude_batch_io_manager"}
    resource, manager = resources["claude_batch"], resources["claude_batch_io_manager"]
    assert (
        (resource.root, resource.output, resource.simulate)
        == (manager.root, manager.output, manager.simulate)
        == (str(tmp_path), "out", True)
    )
    assert resource.max_cost_usd == 3


def test_fields_may_come_from_the_environment_at_run_time(tmp_path, monkeypatch):
    seen = []

    @dg.asset
    def probe(claude_batch: ClaudeBatchResource) -> None:
        seen.append((claude_batch.root, claude_batch.max_attempts))

    monkeypatch.setenv("MY_ROOT", str(tmp_path))
    monkeypatch.setenv("MY_ATTEMPTS", "2")
    resource = ClaudeBatchResource(root=dg.EnvVar("MY_ROOT"), max_attempts=dg.EnvVar.int("MY_ATTEMPTS"))
    dg.materialize([probe], resources={"claude_batch": resource})
    assert seen == [(str(tmp_path), 2)]
