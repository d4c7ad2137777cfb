"""`--task`: presets and tasks of a file."""

from pathlib import Path

import click
import pytest

from claude_batch_dagster.cli.tasks import DEFAULT_MODEL, TaskArguments, build_task
from claude_batch_dagster.core.errors import TaskError

TASK_FILE = """
from pydantic import BaseModel
from claude_batch_dagster import ClaudeTask
from neighbour import MODEL

class Topics(BaseModel):
    topics: "list[Topic]"

class Topic(BaseModel):
    name: str

topics = ClaudeTask(name="topics", model=MODEL, prompt="{text}", max_tokens=300, output=Topics)
other = 1
"""


def arguments(task: str, **given: object) -> TaskArguments:
    return TaskArguments(**{"task": task, "column": None, "model": None, "labels": None, "max_words": None, **given})  # type: ignore[arg-type]


def test_presets_have_fixed_names_and_the_default_model():
    summaries = build_task(arguments("summarize", column="text", max_words=20))
    labels = build_task(arguments("moderate", column="text", labels="ok, spam,,hate", model="claude-sonnet-5-5"))
    assert (summaries.name, summaries.model, labels.name, labels.model) == ("summaries", DEFAULT_MODEL, "labels", "claude-sonnet-5-5")
    assert "ok, spam, hate" in str(labels.system)


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("summarize", {}, "needs --column"),
        ("moderate", {"column": "text"}, "needs --labels"),
        ("summarize", {"column": "text", "labels": "a,b"}, "--labels cannot be used"),
        ("moderate", {"column": "text", "labels": "a,b", "max_words": 9}, "--max-words cannot be used"),
        ("tasks.py:topics", {"model": "m"}, "--model cannot be used"),
        ("translate", {}, "neither summarize, moderate, FILE.yaml nor FILE.py:NAME"),
        ("sumarize", {}, r"Did you mean summarize\?"),
        ("tasks.py", {}, "--task tasks.py:NAME"),
        ("moderate", {"column": "text", "labels": "ok,"}, "names 1; at least two are needed"),
        ("task.yaml", {"column": "text"}, "--column cannot be used"),
    ],
)
def test_options_that_do_not_fit_are_refused(task, given, message):
    with pytest.raises(click.UsageError, match=message):
        build_task(arguments(task, **given))


def test_task_of_a_file_may_import_its_neighbours_and_refer_to_later_models(tmp_path: Path):
    (tmp_path / "neighbour.py").write_text('MODEL = "claude-haiku-5-5"\n')
    (tmp_path / "tasks.py").write_text(TASK_FILE)
    task = build_task(arguments(f"{tmp_path}/tasks.py:topics"))
    assert task.name == "topics"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [("x = 1", "x", "has no ClaudeTask"), ("raise ValueError('broken')", "x", "ValueError: broken"), (None, "x", "does not exist")],
)
def test_file_without_the_task_is_refused(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / "broken.py").write_text(content)
    with pytest.raises(TaskError, match=message):
        build_task(arguments(f"{tmp_path}/broken.py:{name}"))
