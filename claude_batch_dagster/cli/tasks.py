"""`--task`: a preset by its name, a task in a YAML file, or a ClaudeTask in a Python file."""

import difflib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from claude_batch_dagster.core.errors import TaskError

if TYPE_CHECKING:
    from claude_batch_dagster.core.task import ClaudeTask

DEFAULT_MODEL = "claude-haiku-5-5"
DEFAULT_MAX_WORDS = 40
PRESET_NAMES = {"summarize": "summaries", "moderate": "labels"}
"""What a preset's task is called: in the records, and in every custom_id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskArguments:
    """The options that describe the task, None where they were not given."""

    task: str
    column: str | None
    model: str | None
    labels: str | None
    max_words: int | None


def build_task(arguments: TaskArguments) -> "ClaudeTask":
    """Return the task that the options describe.

    Raises:
        click.UsageError: An option is missing, or means nothing for this task.
        TaskError: Terminal. The file holds no such task, or fails.
    """
    if arguments.task in PRESET_NAMES:
        return _build_preset(arguments)
    said_in_file = ("column", "model", "labels", "max_words")
    if arguments.task.endswith((".yaml", ".yml")):
        from claude_batch_dagster.cli.task_file import load_task_file

        _refuse(arguments, said_in_file, "the file says so itself")
        return load_task_file(Path(arguments.task), default_model=DEFAULT_MODEL, preset_names=PRESET_NAMES)
    file, colon, name = arguments.task.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise click.UsageError(_explain_unknown(arguments.task))
    _refuse(arguments, said_in_file, "the file says so itself")
    return load_task(Path(file), name)


def load_task(file: Path, name: str) -> "ClaudeTask":
    """Return a file's task by the name of its variable."""
    from claude_batch_dagster.core.task import ClaudeTask

    if not file.is_file():
        raise TaskError(f"The task file {file} does not exist. Nothing was sent. Check the path.")
    module_name = f"claude_batch_task_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    # Pydantic looks a model's module up by name; and the file may import its neighbours.
    sys.modules[module_name] = module
    sys.path.insert(0, str(file.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except TaskError:
        raise
    except Exception as error:  # the file is a person's program: whatever it raises is told with its file
        raise TaskError(
            f"The task file {file} failed: {type(error).__name__}: {error}. Nothing was sent. Run it with Python alone."
        ) from error
    finally:
        sys.path.remove(str(file.parent.absolute()))
    found = getattr(module, name, None)
    if not isinstance(found, ClaudeTask):
        there = sorted(key for key, value in vars(module).items() if isinstance(value, ClaudeTask))
        known = f"Its tasks are {', '.join(there)}." if there else "It has no ClaudeTask."
        raise TaskError(f"{file} has no ClaudeTask named {name!r}. Nothing was sent. {known}")
    return found


def _explain_unknown(task: str) -> str:
    text = f"--task {task!r} is neither summarize, moderate, FILE.yaml nor FILE.py:NAME. Nothing was sent."
    if task.endswith(".py"):
        return f"{text} Name the variable too: --task {task}:NAME."
    near = difflib.get_close_matches(task.lower(), PRESET_NAMES, n=1)
    return f"{text} Did you mean {near[0]}?" if near else text


def parse_labels(text: str) -> Sequence[str]:
    """Return the labels of a comma-separated list."""
    return tuple(label for label in (part.strip() for part in text.split(",")) if label)


def _build_preset(arguments: TaskArguments) -> "ClaudeTask":
    from claude_batch_dagster.core.presets import Moderate, Summarize

    if arguments.column is None:
        raise click.UsageError(f"--task {arguments.task} needs --column: the text column.")
    name, model = PRESET_NAMES[arguments.task], arguments.model or DEFAULT_MODEL
    if arguments.task == "summarize":
        _refuse(arguments, ("labels",), "only --task moderate has labels")
        return Summarize(name=name, column=arguments.column, model=model, max_words=arguments.max_words or DEFAULT_MAX_WORDS)
    _refuse(arguments, ("max_words",), "only --task summarize has a length")
    if arguments.labels is None:
        raise click.UsageError("--task moderate needs --labels, for instance --labels ok,spam,hate.")
    labels = parse_labels(arguments.labels)
    if len(labels) < 2:
        raise click.UsageError(
            f"--labels {arguments.labels!r} names {len(labels)}; at least two are needed, for instance --labels ok,spam,hate."
        )
    return Moderate(name=name, column=arguments.column, model=model, labels=labels)


def _refuse(arguments: TaskArguments, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} cannot be used with --task {arguments.task}: {why}.")
