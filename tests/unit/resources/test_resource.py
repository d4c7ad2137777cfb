"""The resource's fields and what it refuses before anything is asked."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from claude_batch_dagster import (
    ClaudeBatchIOManager,
    ClaudeBatchResource,
    ParquetDataset,
    Summarize,
    claude_batch_assets,
    claude_batch_resources,
)
from claude_batch_dagster.core.errors import UsageError

SUMMARIES = Summarize(name="summaries", column="text", model="claude-haiku-5-5")


def insights_of(folder: Path) -> dg.AssetsDefinition:
    pq.write_table(pa.table({"id": [1], "text": ["Good."]}), folder / "reviews.parquet")

    @claude_batch_assets(source=ParquetDataset(path=str(folder / "reviews.parquet"), key="id"), tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    return insights


def fail(folder: Path, resources: dict[str, object], **options: object) -> str:
    result = dg.materialize([insights_of(folder)], resources={**claude_batch_resources(), **resources}, raise_on_error=False, **options)
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    return failed.step_failure_data.user_failure_data.description


def test_every_field_is_described():
    fields = {name: field for name, field in ClaudeBatchResource.model_fields.items() if not name.startswith("_")}
    assert len(fields) == 14
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    "field", [{"max_cost_usd": -1}, {"max_requests_per_batch": 100_001}, {"max_in_flight_batches": 0}, {"max_attempts": 0}, {"limit": 0}]
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


def test_any_field_may_be_given_to_the_resources_and_one_that_there_is_not_is_refused():
    assert claude_batch_resources(limit=20, preflight=False)["claude_batch"].limit == 20
    with pytest.raises(ValidationError, match=r"max_cost\n.*Extra inputs are not permitted"):
        claude_batch_resources(max_cost=20)
    with pytest.raises(ValidationError, match="folder"):
        ClaudeBatchIOManager(folder="here")


def test_a_run_config_that_would_lose_fields_of_the_resource_is_refused(tmp_path, monkeypatch):
    """Dagster replaces a configured resource whole: with the root, the answers that are paid would be lost."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    resources = claude_batch_resources(root=str(tmp_path / "root"), simulate=True)
    run_config = {"resources": {"claude_batch": {"config": {"limit": 1}}}}
    description = fail(tmp_path, resources, run_config=run_config)
    assert description.startswith("The run config sets limit of the resource 'claude_batch'.")
    assert (
        "root, simulate would be lost. Nothing was sent. Put limit, ask_again, retry_failed, replace, max_cost_usd under ops: insights: config"
        in description
    )
    io_manager = {"resources": {"claude_batch_io_manager": {"config": {"output": str(tmp_path)}}}}
    assert "root, simulate would be lost" in fail(tmp_path, resources, run_config=io_manager)
    assert not (tmp_path / ".claude_batch").exists()
    assert "limit is 0" in fail(
        tmp_path,
        resources,
        run_config={"resources": {"claude_batch": {"config": {"limit": 0, "root": str(tmp_path / "root"), "simulate": True}}}},
    )


def test_the_run_config_wins_over_the_resource(tmp_path, monkeypatch):
    jobs = []

    def carry_out(context, job, reached, deferring):
        jobs.append(job)
        raise UsageError("enough")

    monkeypatch.setattr("claude_batch_dagster.resources.resource.carry_out", carry_out)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    resources = claude_batch_resources(root=str(tmp_path / "root"), simulate=True, limit=7, replace=True, max_cost_usd=3, preflight=False)
    fail(tmp_path, resources)
    config = {"limit": 2, "ask_again": [1, "b,c"], "retry_failed": True, "replace": False, "max_cost_usd": 4.5}
    fail(tmp_path, resources, run_config={"ops": {"insights": {"config": config}}})
    told = [(job.limit, job.ask_again, job.retry_failed, job.replace, job.max_cost_usd, job.preflight) for job in jobs]
    assert told == [(7, (), False, True, 3, False), (2, ("1", "b,c"), True, False, 4.5, False)]


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
