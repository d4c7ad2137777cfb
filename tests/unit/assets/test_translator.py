"""What a task becomes in Dagster, what is known of its columns before they are written, and what a translator may change."""

from datetime import timedelta
from typing import Literal

import dagster as dg
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from claude_batch_dagster import (
    ClaudeBatchResource,
    ClaudeBatchTranslator,
    ClaudeBatchTranslatorData,
    ClaudeTask,
    Moderate,
    ParquetDataset,
    Summarize,
    build_claude_batch_asset_specs,
    claude_batch_assets,
)
from claude_batch_dagster.assets.asked import TASK_METADATA_KEY, asked_assets
from claude_batch_dagster.assets.columns import UNKNOWN_TYPE, column_lineage, prompt_columns, tell_origins, written_lineage
from claude_batch_dagster.assets.decorator import define_assets
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.storage.output import output_schema

MODEL = "claude-haiku-5-5"
SOURCE = ParquetDataset(path="reviews", asset="raw/reviews", key=("shop", "review_id"))
SUMMARIES = Summarize(name="summaries", column="text", model=MODEL)
LABELS = Moderate(name="labels", column="text", model=MODEL, labels=("ok", "spam"))


class Part(BaseModel):
    name: str
    score: float | None


class Topics(BaseModel):
    """What a person wrote about."""

    topic: Literal["price", "quality"] = Field(description="What it is mostly about.")
    sure: bool
    stars: int = Field(description="1 to 5.")
    parts: list[Part]
    tags: list[str]


TOPICS = ClaudeTask(
    name="topics", model=MODEL, prompt="By {author}, {{not a slot}}, in {shop name}: {text} {text}", output=Topics, max_tokens=9
)


def specs(*tasks, **arguments):
    return build_claude_batch_asset_specs(**{"source": SOURCE, "tasks": tasks or (SUMMARIES, LABELS), **arguments})


def schema(spec):
    return {column.name: column for column in spec.metadata["dagster/column_schema"].columns}


def lineage(spec):
    found = spec.metadata["dagster/column_lineage"].deps_by_column
    return {name: [(dep.asset_key.to_user_string(), dep.column_name) for dep in deps] for name, deps in found.items()}


def test_columns_have_the_descriptions_of_the_pydantic_fields_and_the_types_of_the_file():
    (spec,) = specs(TOPICS, columns=["review_id", "author"])
    columns = schema(spec)
    assert columns["topic"].description.startswith("What it is mostly about. ")
    assert columns["stars"].description.startswith("1 to 5. ")
    assert columns["status"].description.startswith("What became of the row")
    written = output_schema(TOPICS, ("review_id", "author"), pa.schema([("review_id", pa.int64()), ("author", pa.string())]))
    assert list(columns) == written.names
    known = {name: (column.type, column.constraints.nullable) for name, column in columns.items() if column.type != UNKNOWN_TYPE}
    assert known == {field.name: (str(field.type), field.nullable) for field in written if field.name not in ("review_id", "author")}


def test_carried_columns_have_the_types_that_the_sources_asset_names():
    raw = dg.AssetSpec(
        "raw",
        metadata={
            "dagster/column_schema": dg.TableSchema([dg.TableColumn("review_id", type="int64"), dg.TableColumn("odd name!", type="string")])
        },
    )
    source = ParquetDataset(path="reviews", asset=raw, key="review_id", partition_column=None)
    task = ClaudeTask(name="t", model=MODEL, prompt="{odd name!} of {review_id}", max_tokens=9)
    (spec,) = specs(task, source=source, columns="all")
    assert [(column.name, column.type) for column in list(schema(spec).values())[:3]] == [
        ("review_id", "int64"),
        ("odd name!", "string"),
        ("answer", "string"),
    ]
    assert lineage(spec)["answer"] == [("raw", "odd name!"), ("raw", "review_id")]


def test_lineage_goes_from_each_field_to_the_columns_that_the_prompt_shows_and_from_carried_columns_to_themselves():
    (spec,) = specs(TOPICS)
    slots = [("raw/reviews", "author"), ("raw/reviews", "shop name"), ("raw/reviews", "text")]
    assert lineage(spec) == {
        "shop": [("raw/reviews", "shop")],
        "review_id": [("raw/reviews", "review_id")],
        **dict.fromkeys(("topic", "sure", "stars", "parts", "tags"), slots),
    }
    (preset,) = specs(SUMMARIES, columns=["review_id"])
    assert lineage(preset) == {"review_id": [("raw/reviews", "review_id")], "summary": [("raw/reviews", "text")]}


def test_a_columns_description_says_where_it_comes_from():
    (spec,) = specs(TOPICS, columns=["review_id", "author"])
    columns = schema(spec)
    assert columns["topic"].description == "What it is mostly about. From `author`, `shop name`, `text` of `raw/reviews`."
    assert columns["author"].description == "As in `raw/reviews`."
    assert not columns["status"].description.endswith("`.")
    (alone,) = specs(SUMMARIES, source=ParquetDataset(path="reviews", key="review_id"))
    assert schema(alone)["summary"].description.endswith(" From `text` of the source.")
    assert schema(alone)["review_id"].description == "As in the source."
    task = ClaudeTask(name="t", model=MODEL, prompt=lambda row: str(row), version=1, max_tokens=9)
    assert schema(specs(task)[0])["answer"].description.endswith("From a whole row of `raw/reviews`.")


def test_a_translators_lineage_is_what_the_descriptions_say():
    (spec,) = specs(SUMMARIES)
    own = dg.TableColumnLineage({"summary": [dg.TableColumnDep("elsewhere", "body")]})
    columns = dg.TableSchema([dg.TableColumn("summary", description="Short."), dg.TableColumn("review_id", tags={"pii": ""})])
    told = tell_origins(columns, spec.metadata[TASK_METADATA_KEY].asked, own).columns
    assert [column.description for column in told] == ["Short. From `body` of `elsewhere`.", None]
    assert told[1].tags == {"pii": ""}


def test_a_source_without_an_asset_has_no_lineage():
    (spec,) = specs(SUMMARIES, source=ParquetDataset(path="reviews", key="review_id"))
    assert "dagster/column_lineage" not in spec.metadata
    assert not list(spec.deps)


def test_prompt_columns_of_functions_are_those_that_they_name():
    def ask(row):
        return str(row["text"])

    task = ClaudeTask(name="t", model=MODEL, prompt=ask, version=1, prompt_columns=("text", "title"), max_tokens=9)
    assert prompt_columns(task) == ("text", "title")


def test_the_written_columns_decide_unless_a_translator_made_a_lineage_of_its_own():
    (spec,) = specs(SUMMARIES, columns="all")
    asked = spec.metadata[TASK_METADATA_KEY].asked
    written = written_lineage(asked, column_lineage(asked), ["shop", "review_id", "text", "stars", "summary", "status"])
    assert set(written.deps_by_column) == {"shop", "review_id", "text", "stars", "summary"}
    own = dg.TableColumnLineage({"summary": [dg.TableColumnDep("elsewhere", "body")]})
    assert written_lineage(asked, own, ["summary"]) is own


def test_specs_say_what_the_decorator_was_given():
    condition, policy = (
        dg.AutomationCondition.eager(),
        dg.FreshnessPolicy.cron(deadline_cron="0 6 * * *", lower_bound_delta=timedelta(hours=2)),
    )
    for spec in specs(
        key_prefix=["claude", "v1"],
        group_name="claude",
        owners=["team:research"],
        tags={"domain": "reviews"},
        automation_condition=condition,
        freshness_policy=policy,
    ):
        assert spec.key.path[:2] == ["claude", "v1"]
        assert (spec.group_name, spec.owners, spec.tags["domain"]) == ("claude", ["team:research"], "reviews")
        assert (spec.automation_condition, spec.freshness_policy) == (condition, policy)
        assert spec.kinds == {"claude", "parquet"}
        assert spec.code_version == spec.metadata[TASK_METADATA_KEY].asked.task.task_key


def test_another_task_is_another_code_version_and_another_name_is_not():
    def version(task):
        (spec,) = specs(task)
        return spec.code_version

    assert version(Summarize(name="other", column="text", model=MODEL)) == version(SUMMARIES)
    assert version(Summarize(name="summaries", column="text", model=MODEL, max_words=9)) != version(SUMMARIES)


class ByModel(ClaudeBatchTranslator):
    def get_asset_spec(self, data: ClaudeBatchTranslatorData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(
            key=dg.AssetKey(["by_model", data.task.model, data.task.name]), group_name="models", owners=["team:models"], deps=["elsewhere"]
        ).merge_attributes(tags={"model": data.task.model}, metadata={"words": data.task.kind})


def test_a_translator_changes_keys_groups_deps_tags_and_metadata_and_the_body_still_knows_what_to_ask():
    @claude_batch_assets(source=SOURCE, tasks=[SUMMARIES, LABELS], group_name="claude", translator=ByModel())
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    keys = {dg.AssetKey(["by_model", MODEL, name]) for name in ("summaries", "labels")}
    assert insights.keys == keys == set(asked_assets(insights))
    spec = insights.specs_by_key[dg.AssetKey(["by_model", MODEL, "labels"])]
    assert (spec.group_name, spec.owners, spec.tags["model"], spec.metadata["words"]) == ("models", ["team:models"], MODEL, "moderate")
    assert [dep.asset_key.to_user_string() for dep in spec.deps] == ["elsewhere"]
    assert {check.asset_key for check in insights.check_keys} == keys


def translator_that(change):
    class Changed(ClaudeBatchTranslator):
        def get_asset_spec(self, data):
            return change(super().get_asset_spec(data), data)

    return Changed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec, data: dg.AssetSpec(data.task.name),
            r"without the metadata claude_batch/task.*super\(\).get_asset_spec.*merge_attributes",
        ),
        (lambda spec, data: spec.replace_attributes(metadata={"mine": 1}), "without the metadata claude_batch/task"),
        (lambda spec, data: None, "returned nothing, and not an AssetSpec"),
        (lambda spec, data: spec.replace_attributes(skippable=False), "not skippable"),
        (
            lambda spec, data: spec.replace_attributes(partitions_def=dg.DailyPartitionsDefinition("2026-11-01")),
            "another partitions_def.*claude_batch_assets instead",
        ),
        (lambda spec, data: spec.replace_attributes(key="same"), "two tasks the asset key 'same'"),
    ],
    ids=["new", "replaced-metadata", "none", "not-skippable", "partitions", "twins"],
)
def test_a_translator_that_drops_what_the_body_needs_is_refused_and_told_what_to_do(change, message):
    with pytest.raises(UsageError, match=message):
        specs(translator=translator_that(change))


def test_a_translator_that_mixes_tasks_up_is_refused():
    first = specs(SUMMARIES)[0]
    with pytest.raises(UsageError, match=r"the spec of another task, 'summaries'"):
        specs(LABELS, translator=translator_that(lambda spec, data: first))


def test_the_code_reference_is_the_body():
    @claude_batch_assets(source=SOURCE, tasks=[SUMMARIES])
    def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
        yield from claude_batch.run(context)

    (spec,) = insights.specs
    (place,) = spec.metadata["dagster/code_references"].code_references
    assert place.file_path == __file__
    with open(__file__) as file:
        assert file.readlines()[place.line_number - 1].strip().startswith("@claude_batch_assets(")


def test_specs_serve_a_multi_asset_with_a_body_of_ones_own():
    def body(context: dg.AssetExecutionContext):
        yield dg.MaterializeResult(asset_key="summaries")

    insights = define_assets(body, specs(SUMMARIES))
    result = dg.materialize([insights], resources={"claude_batch_io_manager": dg.mem_io_manager})
    assert result.success
