"""`--task FILE.yaml`: every key, and every mistake with its line."""

import json
from pathlib import Path

import pytest

from claude_batch_dagster.cli.tasks import DEFAULT_MODEL, TaskArguments, build_task
from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.presets import Moderate
from claude_batch_dagster.core.task import ClaudeTask

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"], "additionalProperties": False}
TASK = """\
name: topics
model: claude-haiku-5-5
prompt: "{text}"
max_tokens: 300
"""


def build(folder: Path, content: str) -> ClaudeTask:
    file = folder / "task.yaml"
    file.write_text(content)
    return build_task(TaskArguments(task=str(file), column=None, model=None, labels=None, max_words=None))


def test_every_argument_of_a_task_can_be_said(tmp_path):
    task = build(
        tmp_path,
        TASK
        + f"system: Be brief.\noutput: {json.dumps(SCHEMA)}\neffort: low\nthinking: {{type: disabled}}\nparams: {{metadata: {{user_id: u}}}}\n",
    )
    same = ClaudeTask(
        name="topics",
        model="claude-haiku-5-5",
        prompt="{text}",
        max_tokens=300,
        system="Be brief.",
        output=SCHEMA,
        effort="low",
        thinking={"type": "disabled"},
        params={"metadata": {"user_id": "u"}},
    )
    assert task.task_key == same.task_key


def test_prompt_and_schema_may_stand_in_files_beside_it(tmp_path):
    (tmp_path / "prompt.md").write_text("About {text}\n")
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    task = build(tmp_path, TASK.replace('prompt: "{text}"', "prompt_file: prompt.md") + "output: schema.json\n")
    assert (task.prompt, task.schema) == ("About {text}", SCHEMA)


def test_preset_takes_its_own_arguments_and_the_names_of_the_command_line(tmp_path):
    task = build(tmp_path, "preset: moderate\ncolumn: text\nlabels: [ok, spam]\n")
    assert task.task_key == Moderate(name="x", column="text", model=DEFAULT_MODEL, labels=("ok", "spam")).task_key
    assert task.name == "labels"
    assert build(tmp_path, "preset: summarize\nname: short\ncolumn: text\nmax_words: 9\n").name == "short"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TASK + "max_tokns: 3\n", r"task.yaml line 5: 'max_tokns' is no key of a task.*Did you mean max_tokens\?"),
        (TASK + "zzz: 3\n", "line 5: 'zzz' is no key of a task.*The keys are name, model, prompt"),
        (TASK + "name: again\n", "line 5: 'name' stands here a second time, first in line 1"),
        (TASK.replace("300", '"300"'), "line 4: max_tokens is the text '300', and must be a whole number"),
        (TASK.replace("claude-haiku-5-5", "3.5"), "line 2: model is 3.5, and must be text.*in quotes"),
        (TASK + "output: schema.yaml\n", "line 5: output is the text 'schema.yaml', and must be a JSON Schema"),
        (TASK + "output: none.json\n", "line 5: .*none.json cannot be read: No such file"),
        (TASK + "output: bad.json\n", "line 5: bad.json is not JSON: .* in its line 2"),
        (TASK + "output: {type: array}\n", "line 5: .*not an object with properties"),
        (TASK + "prompt_file: p.md\n", "line 5: it has both prompt and prompt_file"),
        ("name: x\nmodel: m\nmax_tokens: 3\n", "task.yaml: it has neither prompt nor prompt_file"),
        ("model: m\nprompt: '{text}'\n", "task.yaml: it lacks name, max_tokens"),
        (TASK.replace("claude-haiku-5-5", "claude-2"), "task.yaml: Task 'topics' asks claude-2, which is retired"),
        ("preset: translate\n", "line 1: there is no preset 'translate'.*summarize and moderate"),
        ("preset: summarize\ncolumn: text\nlabels: [a, b]\n", "line 3: 'labels' is no key of the preset summarize"),
        (
            "preset: moderate\ncolumn: text\nlabels: [yes, no]\n",
            "line 3: labels is a list with True in it, which YAML does not read as text",
        ),
        ("preset: moderate\ncolumn: text\n", "it lacks labels"),
        ("name: [x\n", "line 2: this is no YAML"),
        ("- a\n", "it holds no mapping"),
        ("", "it holds no mapping"),
    ],
)
def test_mistakes_are_named_with_file_line_and_what_to_do(tmp_path, content, message):
    (tmp_path / "bad.json").write_text("{\n'a': 1}")
    with pytest.raises(TaskError, match=message) as refused:
        build(tmp_path, content)
    assert "Nothing was sent" in str(refused.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(TaskError, match="does not exist"):
        build_task(TaskArguments(task=str(tmp_path / "no.yaml"), column=None, model=None, labels=None, max_words=None))


def test_every_example_of_a_task_has_the_same_identity_in_python_and_in_yaml(tmp_path):
    assert build(tmp_path, TASK).task_key == ClaudeTask(name="n", model="claude-haiku-5-5", prompt="{text}", max_tokens=300).task_key
