"""What `claude_batch_assets` defines."""

import subprocess
import sys
from types import ModuleType

import dagster as dg
import pytest

from claude_batch_dagster import ClaudeBatchResource, ClaudeTask, Moderate, ParquetDataset, Summarize, claude_batch_assets
from claude_batch_dagster.assets.asked import asked_assets
from claude_batch_dagster.assets.decorator import RUN_CONFIG
from claude_batch_dagster.core.errors import UsageError

MODEL = "claude-haiku-5-5"
DAILY = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-08")
SUMMARIES = Summarize(name="summaries", column="text", model=MODEL)
LABELS = Moderate(name="labels", column="text", model=MODEL, labels=("ok", "spam"))
SOURCE = ParquetDataset(path="reviews", asset="reviews", key="review_id", partition_column="day")
WHOLE = ParquetDataset(path="reviews", asset="reviews", key="review_id")


def define(**arguments):
    @claude_batch_assets(**{"source": SOURCE, "tasks": [SUMMARIES, LABELS], "partitions_def": DAILY, **arguments})
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    return insights


def test_each_task_is_an_asset_with_lineage_code_version_kinds_and_a_check():
    insights = define(group_name="claude", owners=["team:research"], tags={"domain": "reviews"})
    specs = {spec.key.to_user_string(): spec for spec in insights.specs}
    assert set(specs) == {"summaries", "labels"}
    spec = specs["summaries"]
    assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey("reviews")]
    assert spec.code_version == SUMMARIES.task_key
    assert spec.kinds == {"claude", "parquet"}
    assert spec.skippable
    assert (spec.group_name, spec.owners, spec.tags["domain"]) == ("claude", ["team:research"], "reviews")
    assert spec.metadata["dagster/io_manager_key"] == "claude_batch_io_manager"
    assert spec.partitions_def == DAILY
    assert {check.asset_key.to_user_string() for check in insights.check_keys} == {"summaries", "labels"}
    assert insights.can_subset


def test_partitioned_assets_are_backfilled_in_a_single_run_unless_told_otherwise():
    assert define().backfill_policy == dg.BackfillPolicy.single_run()
    assert define(backfill_policy=dg.BackfillPolicy.multi_run(7)).backfill_policy == dg.BackfillPolicy.multi_run(7)
    assert define(source=WHOLE, partitions_def=None).backfill_policy is None


def test_a_key_prefix_stands_before_the_names():
    assert define(key_prefix=["claude", "v1"]).keys == {dg.AssetKey(["claude", "v1", "summaries"]), dg.AssetKey(["claude", "v1", "labels"])}
    assert dg.AssetKey(["claude", "labels"]) in define(key_prefix="claude").keys


@pytest.mark.parametrize(
    "asset",
    ["reviews", dg.AssetKey("reviews"), dg.AssetSpec("reviews"), dg.asset(name="reviews")(lambda: None), None],
    ids=["name", "key", "spec", "definition", "none"],
)
def test_the_source_asset_may_be_named_in_any_way(asset):
    insights = define(source=ParquetDataset(path="reviews", asset=asset, key="review_id", partition_column="day"))
    assert [dep.asset_key for spec in insights.specs for dep in spec.deps] == ([] if asset is None else [dg.AssetKey("reviews")] * 2)


def test_the_body_learns_what_to_ask_even_after_keys_and_metadata_were_changed():
    module = ModuleType("module")
    module.insights = define()
    (prefixed,) = dg.load_assets_from_modules([module], key_prefix="x")
    asked = asked_assets(prefixed.map_asset_specs(lambda spec: spec.merge_attributes(metadata={"more": 1})))
    assert {key.to_user_string(): one.task.name for key, one in asked.items()} == {"x/summaries": "summaries", "x/labels": "labels"}
    assert next(iter(asked.values())).source is SOURCE


def test_a_body_of_other_assets_is_told_how_to_define_them():
    @dg.multi_asset(specs=[dg.AssetSpec("mine")])
    def other():
        pass

    with pytest.raises(UsageError, match=r"mine.*@claude_batch_assets"):
        asked_assets(other)


def test_the_description_shows_the_instructions_in_a_fence_that_they_cannot_close():
    task = ClaudeTask(name="code", model=MODEL, prompt="Fix:\n````\n{text}\n````", max_tokens=100)
    assert "`````text\nFix:" in next(iter(define(tasks=[task]).specs)).description


def test_an_async_body_is_refused_because_it_cannot_be_stopped():
    async def coroutine(context, claude_batch):
        pass

    async def generator(context, claude_batch):
        yield

    for body in (coroutine, generator):
        with pytest.raises(UsageError, match="is async"):
            claude_batch_assets(source=WHOLE, tasks=[SUMMARIES])(body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "no tasks"),
        ({"tasks": [SUMMARIES, SUMMARIES]}, "two tasks named 'summaries'"),
        ({"columns": ["review_id", "label"]}, "'labels' would have two columns named 'label'"),
        ({"columns": ["status"]}, "two columns named 'status'"),
        ({"columns": "text"}, r"columns=\['text'\]"),
        ({"source": WHOLE}, r'has no partition_column.*partition_column="day"'),
        (
            {"partitions_def": None},
            r"partition_column='day', and claude_batch_assets has no partitions_def: .* ask about all of its partitions",
        ),
        ({"fail_above": 5}, r"fail_above=5; it is a share.*fail_above=0\.05"),
        ({"fail_above": float("nan")}, "fail_above=nan"),
        ({"partitions_def": dg.MultiPartitionsDefinition({"a": DAILY, "b": dg.StaticPartitionsDefinition(["x"])})}, "one partition column"),
    ],
    ids=[
        "no-tasks",
        "twins",
        "task-column",
        "own-column",
        "columns",
        "no-partition-column",
        "no-partitions-def",
        "percent",
        "nan",
        "multi",
    ],
)
def test_contradictions_are_refused_when_the_code_location_loads(arguments, message):
    with pytest.raises(UsageError, match=message):
        define(**arguments)


def test_a_run_is_told_otherwise_in_the_config_of_the_op_and_every_field_says_what_it_does():
    schema = define().op.config_schema
    fields = schema.config_type.fields
    assert set(fields) == set(RUN_CONFIG) == {"limit", "ask_again", "retry_failed", "replace", "max_cost_usd"}
    assert all(field.description and not field.is_required for field in fields.values())


def test_a_body_keeps_a_config_of_its_own():
    class Mine(dg.Config):
        depth: int = 1

    @claude_batch_assets(source=WHOLE, tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext, config: Mine, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    assert set(insights.op.config_schema.config_type.fields) == {"depth"}


def drops(context):
    pass


def wraps_instead_of_yielding_from(context):
    yield iter(())


@pytest.mark.parametrize(
    ("body", "what"),
    [(drops, "drops returned None"), (wraps_instead_of_yielding_from, "yielded a tuple_iterator")],
    ids=["none", "iterator"],
)
@pytest.mark.parametrize("tasks", [[SUMMARIES], [SUMMARIES, LABELS]], ids=["one", "two"])
def test_a_body_that_drops_the_events_of_run_fails_and_is_told_what_to_write(body, what, tasks):
    insights = claude_batch_assets(source=WHOLE, tasks=tasks)(body)
    io_manager = {"claude_batch_io_manager": dg.mem_io_manager}
    result = dg.materialize([insights], resources=io_manager, raise_on_error=False)
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    description = failed.step_failure_data.user_failure_data.description
    assert what in description
    assert description.endswith("Write: yield from claude_batch.run(context)")
    assert not result.get_asset_materialization_events()


def test_a_body_may_return_the_events_instead_of_yielding_them():
    @claude_batch_assets(source=WHOLE, tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext):
        return iter([dg.MaterializeResult(asset_key="summaries")])

    assert dg.materialize([insights], resources={"claude_batch_io_manager": dg.mem_io_manager}).success


def test_a_missing_resource_is_named_when_the_code_location_loads():
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="'claude_batch' required by op 'insights' was not provided"):
        dg.Definitions.validate_loadable(dg.Definitions(assets=[define()]))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="'claude_batch_io_manager' required by output 'summaries'"):
        dg.Definitions.validate_loadable(dg.Definitions(assets=[define()], resources={"claude_batch": ClaudeBatchResource()}))


def test_the_package_names_its_public_parts_and_imports_them_only_when_used():
    code = (
        "import sys, claude_batch_dagster as c; assert 'dagster' not in sys.modules; "
        "assert {'claude_batch_assets', 'ClaudeBatchResource', 'ParquetDataset'} <= set(dir(c)); "
        "assert all(getattr(c, name) for name in c.__all__); assert 'dagster' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import claude_batch_dagster

    with pytest.raises(AttributeError, match="nonsense"):
        _ = claude_batch_dagster.nonsense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "reviews.parquet"},
            r"source='reviews.parquet', which is no source\. Write source=ParquetDataset\(path='reviews.parquet'",
        ),
        ({"tasks": SUMMARIES}, r"a ClaudeTask for its tasks\. Write a list"),
        ({"tasks": "summaries"}, r"a str for its tasks"),
        ({"tasks": ["summaries"]}, r"has the task 'summaries', which is none"),
        ({"fail_above": "5%"}, r"fail_above='5%'; it is a share"),
        ({"wait_for": 0}, r"wait_for=0, which is no timedelta\. Write wait_for=timedelta\(seconds=0\)"),
        ({"wait_for": "15m"}, r"Write wait_for=timedelta\(minutes=15\)"),
        ({"tasks": [ClaudeTask(name="t", model=MODEL, prompt="Say {{hello}}.", max_tokens=9)]}, r"The prompt of 't' has no slot"),
    ],
)
def test_arguments_of_another_kind_are_refused_where_they_are_written(arguments, message):
    with pytest.raises(UsageError, match=message):
        define(**arguments)
