"""`--task FILE.yaml`: a ClaudeTask's arguments in a file, or a preset's; mistakes are named with their line."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_batch_dagster.core.errors import TaskError

if TYPE_CHECKING:
    from claude_batch_dagster.core.task import ClaudeTask

TASK_KEYS = ("name", "model", "prompt", "prompt_file", "system", "output", "max_tokens", "effort", "thinking", "params")
PRESET_KEYS = {"summarize": ("preset", "name", "model", "column", "max_words"), "moderate": ("preset", "name", "model", "column", "labels")}
REQUIRED = {"task": ("name", "model", "max_tokens"), "summarize": ("column",), "moderate": ("column", "labels")}
WANTED = {
    **dict.fromkeys(("preset", "name", "model", "prompt", "prompt_file", "system", "effort", "column"), "text"),
    **dict.fromkeys(("max_tokens", "max_words"), "a whole number"),
    **dict.fromkeys(("thinking", "params"), "a mapping"),
    "output": "a JSON Schema (a mapping), or the name of a .json file",
    "labels": "a list of texts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """A task file as it was read.

    Attributes:
        values: By key.
        lines: Where each key stands, from 1.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    def refuse(self, key: str | None, what: str, remedy: str) -> TaskError:
        """Return the error about a key of the file, or about the file as a whole."""
        return _error(self.path, None if key is None else self.lines.get(key), what, remedy)


def load_task_file(path: Path, *, default_model: str, preset_names: Mapping[str, str]) -> "ClaudeTask":
    """Return the task that a YAML file describes.

    Args:
        path: `FILE.yaml`; the files that it names are beside it.
        default_model: Of a preset without `model`.
        preset_names: What a preset's task is called without `name`.

    Raises:
        TaskError: Terminal. The file cannot be read, or says something that no task has; with its line.
    """
    from claude_batch_dagster.core.task import ClaudeTask

    file = read_task_file(path)
    if "preset" in file.values:
        return _build_preset(file, default_model, preset_names)
    _check_keys(file, TASK_KEYS, "a task", REQUIRED["task"])
    arguments = _task_arguments(file)
    with _naming(file):
        return ClaudeTask(**arguments)


def read_task_file(path: Path) -> TaskFile:
    """Read a task file's mapping, with the line of each key."""
    import yaml

    if not path.is_file():
        raise TaskError(f"The task file {path} does not exist. Nothing was sent. Check the path.")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise _error(path, None, f"it is not UTF-8 text: {error}".partition("\n")[0], "Save it as UTF-8.") from error
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise _error(path, None, "it holds no mapping", f"Write `key: value` lines: {', '.join(TASK_KEYS)}, or preset.")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in values:
                raise _error(path, line, f"{key!r} stands here a second time, first in line {lines[key]}", "Keep one of them.")
            values[key], lines[key] = loader.construct_object(value_node, deep=True), line
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(path, mark.line + 1 if mark else None, f"this is no YAML: {error.problem}", "Correct it.") from error
    finally:
        loader.dispose()
    return TaskFile(path=path, values=values, lines=lines)


def _build_preset(file: TaskFile, default_model: str, preset_names: Mapping[str, str]) -> "ClaudeTask":
    from claude_batch_dagster.core.presets import Moderate, Summarize

    preset = file.values["preset"]
    if not isinstance(preset, str) or preset not in PRESET_KEYS:
        raise file.refuse("preset", f"there is no preset {preset!r}", f"The presets are {' and '.join(PRESET_KEYS)}.")
    _check_keys(file, PRESET_KEYS[preset], f"the preset {preset}", REQUIRED[preset])
    arguments = {"name": preset_names[preset], "model": default_model, **file.values}
    del arguments["preset"]
    with _naming(file):
        return Summarize(**arguments) if preset == "summarize" else Moderate(**arguments)


@contextmanager
def _naming(file: TaskFile, key: str | None = None) -> Iterator[None]:
    """Put the file, and a key's line, before what is said of the task."""
    try:
        yield
    except TaskError as error:
        place = str(file.path) if key is None else f"{file.path} line {file.lines[key]}"
        raise TaskError(f"{place}: {error}", **error.context) from error


def _check_keys(file: TaskFile, allowed: tuple[str, ...], what: str, required: tuple[str, ...]) -> None:
    for key, value in file.values.items():
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            raise file.refuse(
                key, f"{key!r} is no key of {what}", f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(allowed)}."
            )
        if not _fits(key, value):
            quote = " Write it in quotes." if isinstance(value, (bool, int, float)) and WANTED[key] == "text" else ""
            raise file.refuse(key, f"{key} is {_describe(value)}, and must be {WANTED[key]}", f"Correct it.{quote}")
    if missing := [key for key in required if key not in file.values]:
        raise file.refuse(None, f"it lacks {', '.join(missing)}", f"The keys of {what} are {', '.join(allowed)}.")


def _fits(key: str, value: object) -> bool:
    match WANTED[key]:
        case "text":
            return isinstance(value, str)
        case "a whole number":
            return isinstance(value, int) and not isinstance(value, bool)
        case "a mapping":
            return isinstance(value, dict)
        case "a list of texts":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case _:
            return isinstance(value, dict) or (isinstance(value, str) and value.endswith(".json"))


def _describe(value: object) -> str:
    match value:
        case None:
            return "empty"
        case list():
            odd = next((item for item in value if not isinstance(item, str)), None)
            return "a list" if odd is None else f"a list with {odd!r} in it, which YAML does not read as text (write it in quotes)"
        case dict():
            return "a mapping"
        case str():
            return f"the text {value!r}"
        case _:
            return repr(value)


def _task_arguments(file: TaskFile) -> dict[str, Any]:
    arguments = dict(file.values)
    if ("prompt" in arguments) == ("prompt_file" in arguments):
        what = "it has both prompt and prompt_file" if "prompt" in arguments else "it has neither prompt nor prompt_file"
        raise file.refuse("prompt_file" if "prompt" in arguments else None, what, "Give one of them.")
    if "prompt_file" in arguments:
        # Editors end a file with a line break; a prompt that changed by it would ask everything again.
        arguments["prompt"] = _read_beside(file, "prompt_file").removesuffix("\n")
        del arguments["prompt_file"]
    if isinstance(arguments.get("output"), str):
        arguments["output"] = _read_schema(file)
    if "output" in arguments:
        _check_schema(file, arguments)
    return arguments


def _check_schema(file: TaskFile, arguments: Mapping[str, Any]) -> None:
    from claude_batch_dagster.core.schema import canonical_schema

    with _naming(file, "output"):
        canonical_schema(str(arguments["name"]), arguments["output"])


def _read_schema(file: TaskFile) -> object:
    name = file.values["output"]
    try:
        schema: object = json.loads(_read_beside(file, "output"))
    except json.JSONDecodeError as error:
        raise file.refuse("output", f"{name} is not JSON: {error.msg} in its line {error.lineno}", "Correct it.") from error
    if not isinstance(schema, dict):
        raise file.refuse("output", f"{name} holds no JSON object", "Write a JSON Schema of an object into it.")
    return schema


def _read_beside(file: TaskFile, key: str) -> str:
    path: Path = file.path.parent / file.values[key]
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise file.refuse(key, f"{path} cannot be read: {reason}", "Paths are relative to this file.") from error


def _error(path: Path, line: int | None, what: str, remedy: str) -> TaskError:
    return TaskError(f"{path}{'' if line is None else f' line {line}'}: {what}. Nothing was sent. {remedy}")
