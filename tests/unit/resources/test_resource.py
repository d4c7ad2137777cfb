"""The resource's fields and what it refuses before anything is asked."""

import re
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


def partitioned(folder: Path) -> dg.AssetsDefinition:
    for day in ("a", "b"):
        file = folder / "reviews" / f"day={day}" / "x.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [1], "text": ["Good."]}), file)
    source = ParquetDataset(path=folder / "reviews", key="id", partition_column="day")

    @claude_batch_assets(source=source, tasks=[SUMMARIES], partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    return insights


def test_a_run_without_a_partition_is_refused_where_the_assets_have_partitions(tmp_path, monkeypatch):
    """It would ask about all of them at once, and a plain schedule requests such a run."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    resources = claude_batch_resources(root=tmp_path / "root", simulate=True)
    result = dg.materialize([partitioned(tmp_path)], resources=resources, raise_on_error=False)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    description = failed.step_failure_data.user_failure_data.description
    assert description.startswith(
        "The run has no partition, and summaries is partitioned: it would ask about all partitions at once. Nothing was sent."
    )
    assert "dg.build_schedule_from_partitioned_job" in description
    assert not (tmp_path / "root").exists()


def test_what_a_run_is_of_goes_to_assets_with_partitions_alone(tmp_path, monkeypatch):
    jobs = []

    def carry_out(context, job, reached, deferring):
        jobs.append((context.op_def.name, job.partitions))
        raise UsageError("enough")

    monkeypatch.setattr("claude_batch_dagster.resources.resource.carry_out", carry_out)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    pq.write_table(pa.table({"id": [1], "text": ["Good."]}), tmp_path / "all.parquet")

    @claude_batch_assets(
        source=ParquetDataset(path=tmp_path / "all.parquet", key="id"), tasks=[SUMMARIES], name="whole", key_prefix="whole"
    )
    def whole(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    resources = claude_batch_resources(root=tmp_path / "root", simulate=True)
    dg.materialize([partitioned(tmp_path), whole], resources=resources, partition_key="b", raise_on_error=False)
    assert sorted(jobs) == [("insights", ("b",)), ("whole", None)]


def test_folders_may_be_paths(tmp_path):
    resources = claude_batch_resources(root=tmp_path, output=tmp_path / "out")
    for name in ("claude_batch", "claude_batch_io_manager"):
        assert (resources[name].root, resources[name].output) == (str(tmp_path), str(tmp_path / "out"))


def test_the_check_alone_says_that_nothing_is_published_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    insights = insights_of(tmp_path)
    checks = dg.AssetSelection.checks(*insights.check_keys)
    result = dg.materialize([insights], resources=claude_batch_resources(root=tmp_path / "root", simulate=True), selection=checks)
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert evaluation.description == "Nothing is published yet. Materialize the asset first."


@pytest.mark.parametrize(("endpoint", "warns"), [("simulator", True), ("anthropic", False)])
def test_a_new_root_for_assets_that_were_materialized_before_is_warned_of(tmp_path, monkeypatch, capfd, endpoint, warns):
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("summaries", metadata={"claude_batch/endpoint": endpoint}))
        fail(tmp_path, claude_batch_resources(root=tmp_path / "root", simulate=True, limit=0), instance=instance)
    words = f"WARNING - __ephemeral_asset_job__ - .*The root {tmp_path}/root/simulated is new, and summaries was materialized before"
    assert bool(re.search(words, capfd.readouterr().err)) is warns


def test_a_config_of_the_bodys_own_is_not_passed_over_where_it_has_the_same_names(tmp_path, monkeypatch):
    jobs = []

    def carry_out(context, job, reached, deferring):
        jobs.append(job)
        raise UsageError("enough")

    class Own(dg.Config):
        max_cost_usd: float = 0.5
        tone: str = "dry"

    pq.write_table(pa.table({"id": [1], "text": ["Good."]}), tmp_path / "reviews.parquet")

    @claude_batch_assets(source=ParquetDataset(path=tmp_path / "reviews.parquet", key="id"), tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext, config: Own, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    monkeypatch.setattr("claude_batch_dagster.resources.resource.carry_out", carry_out)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    resources = claude_batch_resources(root=str(tmp_path / "root"), simulate=True, limit=7)
    for own in ({}, {"max_cost_usd": 1e-9}):
        dg.materialize([insights], resources=resources, run_config={"ops": {"insights": {"config": own}}}, raise_on_error=False)
    assert [(job.limit, job.ask_again, job.replace, job.max_cost_usd) for job in jobs] == [(7, (), False, 0.5), (7, (), False, 1e-9)]


def test_a_run_that_is_being_terminated_begins_nothing(tmp_path, monkeypatch):
    """The in-process executor goes on with other steps, and retries the one that was interrupted."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")

    @dg.asset
    def reviews(context: dg.AssetExecutionContext) -> None:
        context.instance.report_run_canceling(context.run)

    pq.write_table(pa.table({"id": [1], "text": ["Good."]}), tmp_path / "reviews.parquet")
    source = ParquetDataset(path=tmp_path / "reviews.parquet", asset=reviews, key="id")

    @claude_batch_assets(source=source, tasks=[SUMMARIES], retry_policy=dg.RetryPolicy(max_retries=2))
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    resources = claude_batch_resources(root=str(tmp_path / "root"), simulate=True)
    result = dg.materialize([reviews, insights], resources=resources, raise_on_error=False)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data.description.startswith("The run is being terminated. Nothing was sent.")
    assert not [event for event in result.all_events if event.is_step_up_for_retry]
    assert not (tmp_path / "root").exists()
