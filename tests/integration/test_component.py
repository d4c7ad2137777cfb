"""The component: what its YAML says, what a subclass changes, and that it asks."""

import inspect
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from claude_batch_dagster import (
    ClaudeBatchComponent,
    ClaudeBatchResource,
    ClaudeTask,
    Moderate,
    ParquetDataset,
    Summarize,
    build_claude_batch_asset_specs,
    build_claude_batch_checks,
    build_claude_batch_sensor,
    claude_batch_assets,
    claude_batch_resources,
)
from claude_batch_dagster.assets.asked import asked_assets
from claude_batch_dagster.component.models import ChecksModel, SensorModel, SourceModel, TaskModel, resolve_duration
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.storage.dataset import TableSnapshot
from tests.dagster_house import write_reviews
from tests.stack import MODEL

# What Dagster 1.13.27 says of itself about every component: it reads defs.yaml with Pydantic 1's function, links it
# with classes in beta, and makes sensors and checks again with arguments in beta.
DAGSTERS_OWN = (
    "`parse_obj_as` is deprecated",
    "Class `LocalFileCodeReference` is currently in beta",
    "Class `CodeReferencesMetadataValue` is currently in beta",
    "Parameter `owners` of initializer `SensorDefinition.__init__` is currently in beta",
    "Parameter `execution_type` of function `AssetsDefinition.__init__` is currently in beta",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{message}") for message in DAGSTERS_OWN]
SCHEMA = {"type": "object", "properties": {"topic": {"type": "string", "description": "What it is about."}}, "required": ["topic"]}
DAILY = dg.DailyPartitionsDefinition("2026-11-01", end_date="2026-11-08")
SUMMARIES = f"{{preset: summarize, name: summaries, column: text, model: {MODEL}}}"
LEAST = f"""\
source: {{path: reviews, key: review_id}}
tasks: [{SUMMARIES}]
"""
FULL = f"""\
source: {{path: "{{{{ env('LAKE', '/lake') }}}}/reviews", key: [shop, review_id], asset: raw/reviews, partition_column: day}}
tasks:
  - {{preset: summarize, name: short, column: text, model: "{{{{ env('MODEL', '{MODEL}') }}}}", max_words: 20}}
  - {{preset: moderate, name: labels, column: text, model: {MODEL}, labels: ["1", "2", "no"]}}
  - name: topics
    model: {MODEL}
    prompt: "{{{{literal}}}} {{text}} by {{author}}"
    system: "Be {{{{brief}}}}."
    schema_file: topics.json
    max_tokens: 300
    effort: low
    thinking: {{type: disabled}}
    params: {{metadata: {{user_id: u}}}}
  - {{name: typed, model: {MODEL}, prompt_function: .code.ask, version: 2, prompt_columns: [text], output: .code.Topics, max_tokens: 300}}
  - {{name: filed, model: {MODEL}, prompt_file: prompt.md, output: topics.json, max_tokens: 300}}
  - "{{{{ extra_task }}}}"
columns: [review_id, stars]
fail_above: 0.1
wait_for: 15m
partitions_def: {{type: daily, start_date: "2026-11-01", end_date: "2026-11-08"}}
backfill_policy: {{type: multi_run, max_partitions_per_run: 3}}
name: full_insights
key_prefix: [claude, v1]
group_name: claude
owners: ["team:research"]
tags: {{domain: reviews}}
op_tags: {{"dagster/priority": "3"}}
pool: claude
retry_policy: {{max_retries: 2, delay: 1.5, backoff: exponential, jitter: full}}
automation_condition: "{{{{ dg.AutomationCondition.eager() }}}}"
freshness_policy: "{{{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=36)) }}}}"
"""
CODE = """
import dagster as dg
from pydantic import BaseModel, Field
from claude_batch_dagster import ClaudeTask

class Topics(BaseModel):
    topic: str = Field(description="What it is about.")

def ask(row):
    return str(row["text"])

def load(partition_key):
    raise NotImplementedError

@dg.template_var
def extra_task():
    return ClaudeTask(name="extra", model="%s", prompt="{text}", max_tokens=5)
"""


@contextmanager
def loaded(
    attributes: str, *, kind: str = "claude_batch_dagster.ClaudeBatchComponent", **files: str
) -> Iterator[tuple[Any, dg.Definitions]]:
    """A component of a project, from its defs.yaml."""
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.defs_folder_path / "reviews"
        folder.mkdir()
        content = {"prompt.md": "About {text}\n", "topics.json": json.dumps(SCHEMA), "code.py": CODE % MODEL, **files}
        for name, text in content.items():
            (folder / name).write_text(text)
        body = "".join(f"  {line}\n" for line in attributes.splitlines())
        (folder / "defs.yaml").write_text(f"type: {kind}\nattributes:\n{body}template_vars_module: .code\n")
        with sandbox.load_component_and_build_defs(folder) as (component, defs):
            yield component, defs


def the_assets(defs: dg.Definitions) -> dg.AssetsDefinition:
    (assets,) = [one for one in defs.assets or [] if isinstance(one, dg.AssetsDefinition)]
    return assets


def test_everything_that_the_decorator_can_say_yaml_can_say():
    """Each of its arguments is an attribute of the same name, and a translator is `translation` or a subclass."""
    arguments = set(inspect.signature(claude_batch_assets).parameters)
    assert arguments - {"translator"} <= {field.name for field in fields(ClaudeBatchComponent)}
    assert set(inspect.signature(build_claude_batch_checks).parameters) - {"assets", "resource_key"} == set(ChecksModel.model_fields)
    assert set(inspect.signature(build_claude_batch_sensor).parameters) - {"definitions", "resource_key"} == set(SensorModel.model_fields)
    assert {field.name for source in (ParquetDataset, TableSnapshot) for field in fields(source)} == set(SourceModel.model_fields)
    presets = {"preset", "column", *(name for preset in (Summarize, Moderate) for name in inspect.signature(preset).parameters)}
    files = {"prompt_file", "prompt_function", "schema_file"}
    assert {field.name for field in fields(ClaudeTask)} | presets | files == {"kind", *TaskModel.model_fields}


def test_yaml_defines_what_the_decorator_defines():
    with loaded(FULL) as (_, defs):
        assets = the_assets(defs)
        asked = {one.task.name: one for one in asked_assets(assets).values()}
        typed = asked["typed"].task

        @claude_batch_assets(
            source=ParquetDataset(
                path="/lake/reviews", key=["shop", "review_id"], asset=dg.AssetKey(["raw", "reviews"]), partition_column="day"
            ),
            tasks=[
                Summarize(name="short", column="text", model=MODEL, max_words=20),
                Moderate(name="labels", column="text", model=MODEL, labels=["1", "2", "no"]),
                ClaudeTask(
                    name="topics",
                    model=MODEL,
                    prompt="{{literal}} {text} by {author}",
                    system="Be {{brief}}.",
                    output=SCHEMA,
                    max_tokens=300,
                    effort="low",
                    thinking={"type": "disabled"},
                    params={"metadata": {"user_id": "u"}},
                ),
                ClaudeTask(
                    name="typed", model=MODEL, prompt=typed.prompt, version=2, prompt_columns=["text"], output=typed.output, max_tokens=300
                ),
                ClaudeTask(name="filed", model=MODEL, prompt="About {text}", output=SCHEMA, max_tokens=300),
                ClaudeTask(name="extra", model=MODEL, prompt="{text}", max_tokens=5),
            ],
            columns=["review_id", "stars"],
            fail_above=0.1,
            wait_for=timedelta(minutes=15),
            partitions_def=DAILY,
            backfill_policy=dg.BackfillPolicy.multi_run(3),
            name="full_insights",
            key_prefix=["claude", "v1"],
            group_name="claude",
            owners=["team:research"],
            tags={"domain": "reviews"},
            op_tags={"dagster/priority": "3"},
            pool="claude",
            retry_policy=dg.RetryPolicy(max_retries=2, delay=1.5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL),
            automation_condition=dg.AutomationCondition.eager(),
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36)),
        )
        def full_insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
            yield from claude_batch.run(context)

        assert typed.prompt({"text": "a"}) == "a"
        assert typed.output.__name__ == "Topics"
        for key, spec in full_insights.specs_by_key.items():
            same = assets.specs_by_key[key]
            for attribute in (
                "deps",
                "description",
                "group_name",
                "owners",
                "tags",
                "code_version",
                "automation_condition",
                "freshness_policy",
            ):
                assert getattr(same, attribute) == getattr(spec, attribute), attribute
            assert (same.partitions_def, same.skippable, same.kinds) == (spec.partitions_def, spec.skippable, spec.kinds)
            for entry in ("dagster/column_schema", "dagster/column_lineage", "dagster/io_manager_key"):
                assert same.metadata[entry] == spec.metadata[entry], entry
            assert asked_assets(assets)[key] == asked_assets(full_insights)[key]
        for attribute in ("name", "tags", "pool", "retry_policy"):
            assert getattr(assets.op, attribute) == getattr(full_insights.op, attribute), attribute
        assert assets.backfill_policy == full_insights.backfill_policy
        assert set(assets.op.config_schema.config_type.fields) == set(full_insights.op.config_schema.config_type.fields)


def test_no_warning_is_ours_when_a_component_or_a_decorator_is_loaded():
    """What is left is Dagster's own, of any component; a decorator draws none at all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with loaded(FULL + "checks: {min_coverage: 1.0}\nresource: {max_cost_usd: 1}\n") as (_, defs):
            dg.Definitions.validate_loadable(defs)
    strange = [str(one.message) for one in caught if not str(one.message).startswith(DAGSTERS_OWN)]
    assert strange == []
    assert not [one for one in caught if "claude_batch_dagster" in one.filename]
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @claude_batch_assets(
            source=ParquetDataset(path="reviews", key="review_id", partition_column="day"),
            tasks=[Summarize(name="summaries", column="text", model=MODEL)],
            partitions_def=DAILY,
            backfill_policy=dg.BackfillPolicy.multi_run(3),
            wait_for=timedelta(0),
            pool="claude",
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36)),
        )
        def insights(context: dg.AssetExecutionContext, claude_batch: ClaudeBatchResource):
            yield from claude_batch.run(context)

        defs = dg.Definitions(
            assets=[insights],
            asset_checks=build_claude_batch_checks(insights, min_coverage=1),
            sensors=[build_claude_batch_sensor(insights)],
            resources=claude_batch_resources(),
        )
        dg.Definitions.validate_loadable(defs)


def test_specs_name_prompt_schema_and_yaml_as_their_code():
    with loaded(FULL) as (_, defs):
        places = {
            key.path[-1]: [(Path(one.file_path).name, one.line_number) for one in spec.metadata["dagster/code_references"].code_references]
            for key, spec in the_assets(defs).specs_by_key.items()
        }
    yaml = ("defs.yaml", 1)
    assert places["filed"] == [("prompt.md", 1), ("topics.json", 1), yaml]
    assert places["topics"] == [("topics.json", 1), yaml]
    assert places["typed"] == [("code.py", 1 + CODE.splitlines().index("def ask(row):")), yaml]
    assert places["short"] == places["extra"] == [yaml]


def test_a_relative_path_is_the_projects():
    with loaded(LEAST) as (component, defs):
        (asked,) = asked_assets(the_assets(defs)).values()
        assert Path(asked.source.path).is_absolute()
        assert asked.source.path.endswith("/reviews")
        assert component.source.path == "reviews"
        (spec,) = the_assets(defs).specs
        assert "each row of `reviews`" in spec.description


@pytest.mark.parametrize(
    ("text", "partitions"),
    [
        ('{type: hourly, start_date: "2026-11-01-00:00"}', dg.HourlyPartitionsDefinition("2026-11-01-00:00")),
        ('{type: weekly, start_date: "2026-11-01"}', dg.WeeklyPartitionsDefinition("2026-11-01")),
        ("{type: static, partition_keys: [a, b]}", dg.StaticPartitionsDefinition(["a", "b"])),
        ("{type: dynamic, name: drops}", dg.DynamicPartitionsDefinition(name="drops")),
        ("\"{{ dg.MonthlyPartitionsDefinition(start_date='2026-01-01') }}\"", dg.MonthlyPartitionsDefinition("2026-01-01")),
    ],
    ids=["hourly", "weekly", "static", "dynamic", "template"],
)
def test_partitions_are_dagsters_dynamic_ones_or_a_template(text, partitions):
    with loaded(LEAST.replace("key: review_id", "key: review_id, partition_column: part") + f"partitions_def: {text}\n") as (_, defs):
        assert the_assets(defs).partitions_def == partitions


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(0, 0), (900, 900), (1.5, 1.5), ("15m", 900), ("1h30m", 5_400), ("1 h 30 m", 5_400), ("2d", 172_800), ("PT15M", 900), (None, None)],
)
def test_durations_are_seconds_short_or_iso(value, seconds):
    duration = resolve_duration(dg.ResolutionContext.default(), value)
    assert (None if duration is None else duration.total_seconds()) == seconds


@pytest.mark.parametrize("value", ["15 parsecs", "soon", "-5m", -1, ""])
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(UsageError, match=r"is no duration\. Write seconds"):
        resolve_duration(dg.ResolutionContext.default(), value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (LEAST.replace("max_words", "x") + "tags: {a: b}\nsoure: x\n", "soure"),
        (LEAST.replace(f"model: {MODEL}", f"model: {MODEL}, max_wrds: 3"), "max_wrds"),
        (
            LEAST.replace(f"model: {MODEL}", f"model: {MODEL}, max_words: 3"),
            "the task 'summaries' of .*defs.yaml: .*max_words=3; 5 to 2,000",
        ),
        (LEAST.replace("column: text, ", ""), "the task 'summaries' of .*: it lacks column"),
        (LEAST.replace(SUMMARIES, f"{{name: t, model: {MODEL}, max_tokens: 3, prompt_file: no.md}}"), "no.md cannot be read"),
        (LEAST.replace(SUMMARIES, f"{{name: t, model: {MODEL}, max_tokens: 3}}"), "neither prompt nor prompt_file nor prompt_function"),
        (
            LEAST.replace(SUMMARIES, f"{{name: t, model: {MODEL}, max_tokens: 3, prompt: '{{x}}', output: .code.No}}"),
            r"\.code\.No cannot be imported",
        ),
        (
            LEAST.replace(SUMMARIES, f"{{name: t, model: {MODEL}, max_tokens: 3, prompt: '{{x}}', output: .lacks.No}}"),
            "The module is there, and imports nowhere_to_be_found, which is not: install it",
        ),
        (LEAST.replace("path: reviews", "load: .nope.f"), r"The source's load \.nope\.f cannot be imported: .*Write package\.module\.name"),
        (LEAST + "partitions_def: \"{{ env('X', 'daily') }}\"\n", "partitions_def is the text 'daily'"),
        (LEAST + "translation: {partitions_def: {type: static, partition_keys: [a]}}\n", "another partitions_def"),
        (LEAST + "wait_for: soon\n", "'soon' is no duration"),
        (LEAST + "columns: text\n", r"columns=\['text'\]"),
    ],
    ids=[
        "attribute",
        "key",
        "range",
        "lacks",
        "file",
        "prompt",
        "import",
        "lacks-module",
        "load",
        "partitions",
        "translation",
        "wait",
        "columns",
    ],
)
def test_mistakes_are_named_when_the_code_location_loads(attributes, message):
    with pytest.raises(Exception) as refused, loaded(attributes, **{"lacks.py": "import nowhere_to_be_found"}):  # noqa: PT011 - Dagster wraps it, and says it below
        pass
    causes = [refused.value]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    assert re.search(message, "\n".join(map(str, causes)), re.DOTALL)


def test_translation_changes_the_specs_and_has_the_task_in_its_templates():
    translation = """\
translation:
  key_prefix: more
  description: "About {{ task.name }} by {{ data.task.model }}"
  tags: {kind: "{{ task.kind }}"}
  metadata: {owner_id: 7}
"""
    with loaded(LEAST + translation) as (_, defs):
        (spec,) = the_assets(defs).specs
    assert spec.key == dg.AssetKey(["more", "summaries"])
    assert (spec.description, spec.tags["kind"], spec.metadata["owner_id"]) == (f"About summaries by {MODEL}", "summarize", 7)


SUBCLASS = """
from claude_batch_dagster import ClaudeBatchComponent

class Mine(ClaudeBatchComponent):
    def get_asset_spec(self, data):
        return super().get_asset_spec(data).merge_attributes(tags={"mine": data.task.name})

    def execute(self, context, claude_batch):
        context.log.info(f"mine: {claude_batch.max_cost_usd}")
        yield from super().execute(context, claude_batch)
"""


def test_checks_sensor_and_resource_are_the_components_own():
    own = """\
checks: {min_coverage: 1.0, max_failure_rate: 0.05, severity: WARN, blocking: [coverage]}
sensor: {minimum_interval_seconds: 30, default_status: stopped}
resource: {root: "{{ env('ROOT', 'roots') }}", max_cost_usd: 5, max_in_flight_batches: 3}
"""
    with loaded(LEAST + own) as (_, defs):
        resource = defs.resources["claude_batch__reviews"]
        assert (Path(resource.root).name, resource.max_cost_usd, resource.max_in_flight_batches) == ("roots", 5, 3)
        assert Path(resource.root).is_absolute()
        assert defs.resources["claude_batch_io_manager__reviews"].root == resource.root
        (spec,) = the_assets(defs).specs
        assert spec.metadata["dagster/io_manager_key"] == "claude_batch_io_manager__reviews"
        (sensor,) = defs.sensors
        assert (sensor.name, sensor.minimum_interval_seconds) == ("reviews_sensor", 30)
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
        assert {key.name for checks in defs.asset_checks for key in checks.check_keys} == {"coverage", "failure_rate"}
        dg.Definitions.validate_loadable(defs)


def test_the_default_root_is_the_projects_wherever_it_is_started(tmp_path, monkeypatch):
    """Started in another folder the same launch would find no answers, and pay for all of them again."""
    monkeypatch.chdir(tmp_path)
    with loaded(LEAST + "resource: {max_cost_usd: 5}\n") as (_, defs):
        root = Path(defs.resources["claude_batch__reviews"].root)
        assert root.name == ".claude_batch"
        assert not root.is_relative_to(tmp_path)
        (asked,) = asked_assets(the_assets(defs)).values()
        assert Path(asked.source.path).parent == root.parent
        assert defs.resources["claude_batch_io_manager__reviews"].root == str(root)
    monkeypatch.setenv("CLAUDE_BATCH_ROOT", str(tmp_path / "elsewhere"))
    with loaded(LEAST + "resource: {max_cost_usd: 5}\n") as (_, defs):
        assert defs.resources["claude_batch__reviews"].root is None


def test_a_sensor_comes_with_wait_for_unless_it_is_not_wanted():
    with loaded(LEAST + "wait_for: 0\n") as (_, defs):
        assert [sensor.name for sensor in defs.sensors] == ["reviews_sensor"]
    with loaded(LEAST + "wait_for: 0\nsensor: false\n") as (_, defs):
        assert not defs.sensors
    with loaded(LEAST) as (_, defs):
        assert not defs.sensors


def test_without_a_resource_of_its_own_it_uses_the_locations():
    with loaded(LEAST) as (_, defs):
        assert not defs.resources
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="'claude_batch' required by op 'reviews'"):
            dg.Definitions.validate_loadable(defs)
        dg.Definitions.validate_loadable(dg.Definitions.merge(defs, dg.Definitions(resources=claude_batch_resources())))


def test_several_components_of_one_file_have_names_and_resources_of_their_own():
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.defs_folder_path / "shop" / "all reviews"
        folder.mkdir(parents=True)
        documents = [
            f"type: claude_batch_dagster.ClaudeBatchComponent\nattributes:\n  source: {{path: reviews, key: review_id}}\n"
            f"  tasks: [{{preset: summarize, name: {name}, column: text, model: {MODEL}}}]\n  resource: {{max_cost_usd: {cost}}}\n"
            for name, cost in (("short", 1), ("long", 2))
        ]
        (folder / "defs.yaml").write_text("---\n".join(documents))
        with sandbox.build_all_defs() as defs:
            assert {name: resource.max_cost_usd for name, resource in defs.resources.items() if hasattr(resource, "max_cost_usd")} == {
                "claude_batch__shop__all_reviews": 1,
                "claude_batch__shop__all_reviews__1": 2,
            }
            assert sorted(one.op.name for one in defs.assets) == ["shop__all_reviews", "shop__all_reviews__1"]
            dg.Definitions.validate_loadable(defs)


def test_it_is_made_in_python_too():
    component = ClaudeBatchComponent(
        source=ParquetDataset(path="reviews", key="review_id"), tasks=[Summarize(name="summaries", column="text", model=MODEL)]
    )
    defs = dg.component_defs(component=component, resources=claude_batch_resources())
    assert the_assets(defs).keys == {dg.AssetKey("summaries")}
    dg.Definitions.validate_loadable(defs)


def test_a_component_asks_publishes_and_checks_and_downstream_loads_it(place, capfd):
    """A subclass in the project, a schema in a file, a resource of its own, and an asset that reads the output by annotation."""
    write_reviews(place)
    attributes = f"""\
source: {{path: {place}/reviews, key: review_id, asset: reviews}}
tasks: [{{name: topics, model: {MODEL}, prompt: "Review: {{text}}", schema_file: topics.json, max_tokens: 200}}]
columns: all
checks: {{min_coverage: 1.0}}
resource: {{root: {place}/root, output: {place}/out, max_cost_usd: 3}}
"""

    @dg.asset
    def counted(topics: pd.DataFrame) -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"rows": len(topics)})

    with loaded(attributes, kind=".code.Mine", **{"code.py": CODE % MODEL + SUBCLASS}) as (_, defs):
        job = dg.Definitions.merge(defs, dg.Definitions(assets=[counted])).resolve_implicit_global_asset_job_def()
        with dg.DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(instance=instance)
            assert result.success
            (topics,) = result.asset_materializations_for_node("reviews")
            (count,) = result.asset_materializations_for_node("counted")
    assert "mine: 3.0" in capfd.readouterr().err
    assert count.metadata["rows"].value == 4
    assert {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()} == {
        "coverage": True,
        "rows_answered": True,
    }
    written = pq.read_schema(place / "out" / "topics" / "part-0.parquet").names
    lineage = topics.metadata["dagster/column_lineage"].value.deps_by_column
    assert {name: [dep.column_name for dep in deps] for name, deps in lineage.items()} == {
        "review_id": ["review_id"],
        "text": ["text"],
        "stars": ["stars"],
        "topic": ["text"],
    }
    assert set(lineage) < set(written)


def test_the_scaffolder_writes_a_component_that_loads(tmp_path):
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=ClaudeBatchComponent,
            defs_path="reviews",
            scaffold_params={"source": "data/reviews.parquet", "key": "shop, review_id", "column": "text", "model": MODEL},
        )
        with sandbox.load_component_and_build_defs(folder) as (_, defs):
            (asked,) = asked_assets(the_assets(defs)).values()
            dg.Definitions.validate_loadable(defs)
    assert asked.source.path.endswith("/data/reviews.parquet")
    assert asked.source.key_columns == ("shop", "review_id")
    assert asked.task.prompt.count("{text}") == 1
    same = build_claude_batch_asset_specs(source=asked.source, tasks=[asked.task])
    assert [spec.key for spec in same] == [dg.AssetKey("summaries")]


def test_yaml_says_what_the_readme_of_a_task_file_says(tmp_path):
    """One task, in a file of the command line and in a component, is one identity: nothing is asked twice."""
    from claude_batch_dagster.cli.task_file import load_task_file

    keys = dedent(f"""\
        name: topics
        model: {MODEL}
        prompt_file: prompt.md
        output: topics.json
        max_tokens: 300
    """)
    (tmp_path / "task.yaml").write_text(keys)
    (tmp_path / "prompt.md").write_text("About {text}\n")
    (tmp_path / "topics.json").write_text(json.dumps(SCHEMA))
    same = load_task_file(tmp_path / "task.yaml", default_model=MODEL, preset_names={})
    task = keys.replace("\n", "\n    ").strip()
    with loaded(f"source: {{path: reviews, key: review_id}}\ntasks:\n  - {task}\n") as (_, defs):
        (asked,) = asked_assets(the_assets(defs)).values()
    assert asked.task.task_key == same.task_key
