"""What `claude_batch_assets` defines."""

import subprocess
import sys
from types import ModuleType

import dagster as dg
import pytest

from claude_batch_dagster import ClaudeBatchResource, ClaudeTask, Moderate, ParquetDataset, Summarize, claude_batch_assets
from claude_batch_dagster.assets import asked_assets
from claude_batch_dagster.core.errors import UsageError

MODEL = "claude-haiku-5-5"
DAILY = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-08")
SUMMARIES = Summarize(name="summaries", column="text", model=MODEL)
LABELS = Moderate(name="labels", column="text", model=MODEL, labels=("ok", "spam"))
SOURCE = ParquetDataset(path="reviews", asset="reviews", key="review_id", partition_column="day")


def define(**arguments):
    @claude_batch_assets(**{"source": SOURCE, "tasks": [SUMMARIES, LABELS], **arguments})
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    return insights


def test_each_task_is_an_asset_with_lineage_code_version_kinds_and_a_check():
    insights = define(group_name="claude", owners=["team:research"], tags={"domain": "reviews"}, partitions_def=DAILY)
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
    assert define(partitions_def=DAILY).backfill_policy == dg.BackfillPolicy.single_run()
    assert define(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.multi_run(7)).backfill_policy == dg.BackfillPolicy.multi_run(7)
    assert define().backfill_policy is None


def test_a_key_prefix_stands_before_the_names():
    assert define(key_prefix=["claude", "v1"]).keys == {dg.AssetKey(["claude", "v1", "summaries"]), dg.AssetKey(["claude", "v1", "labels"])}
    assert dg.AssetKey(["claude", "labels"]) in define(key_prefix="claude").keys


@pytest.mark.parametrize(
    "asset",
    ["reviews", dg.AssetKey("reviews"), dg.AssetSpec("reviews"), dg.asset(name="reviews")(lambda: None), None],
    ids=["name", "key", "spec", "definition", "none"],
)
def test_the_source_asset_may_be_named_in_any_way(asset):
    insights = define(source=ParquetDataset(path="reviews", asset=asset, key="review_id"))
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
            claude_batch_assets(source=SOURCE, tasks=[SUMMARIES])(body)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "no tasks"),
        ({"tasks": [SUMMARIES, SUMMARIES]}, "two tasks named 'summaries'"),
        ({"columns": ["review_id", "label"]}, "'labels' would have two columns named 'label'"),
        ({"columns": ["status"]}, "two columns named 'status'"),
        ({"columns": "text"}, r"columns=\['text'\]"),
        ({"partitions_def": DAILY, "source": ParquetDataset(path="reviews", key="id")}, "no partition_column"),
        ({"partitions_def": dg.MultiPartitionsDefinition({"a": DAILY, "b": dg.StaticPartitionsDefinition(["x"])})}, "one partition column"),
    ],
    ids=["no-tasks", "twins", "task-column", "own-column", "columns", "no-partition-column", "multi"],
)
def test_contradictions_are_refused_when_the_code_location_loads(arguments, message):
    with pytest.raises(UsageError, match=message):
        define(**arguments)


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
