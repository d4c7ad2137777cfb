"""A ClaudeTask as YAML says it, in a file of its own or in a component's: the same keys, the same words about a mistake."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_batch_dagster.core.errors import TaskError

if TYPE_CHECKING:
    from claude_batch_dagster.core.task import ClaudeTask

TASK_KEYS = ("name", "model", "prompt", "prompt_file", "system", "output", "schema_file", "max_tokens", "effort", "thinking", "params")
CODE_KEYS = ("prompt_function", "version", "prompt_columns")
"""What only a place that imports code can say."""
PRESET_KEYS = {"summarize": ("preset", "name", "model", "column", "max_words"), "moderate": ("preset", "name", "model", "column", "labels")}
REQUIRED = {"task": ("name", "model", "max_tokens"), "summarize": ("column",), "moderate": ("column", "labels")}
WANTED = {
    **dict.fromkeys(
        ("preset", "name", "model", "prompt", "prompt_file", "prompt_function", "system", "schema_file", "effort", "column"), "text"
    ),
    **dict.fromkeys(("max_tokens", "max_words", "version"), "a whole number"),
    **dict.fromkeys(("thinking", "params"), "a mapping"),
    **dict.fromkeys(("labels", "prompt_columns"), "a list of texts"),
    "output": "a JSON Schema (a mapping), or the name of a .json file",
}
PROMPTS = ("prompt", "prompt_file", "prompt_function")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMapping:
    """A task as it was read.

    Attributes:
        values: By key.
        place: Where it stands, for messages.
        folder: Of the files that it names.
        lines: Where each key stands, from 1; nothing where that is not known.
        import_name: Returns what a dotted name stands for; None where nothing is imported.
    """

    values: Mapping[str, Any]
    place: str
    folder: Path
    lines: Mapping[str, int] = field(default_factory=dict)
    import_name: Callable[[str], object] | None = None

    def refuse(self, key: str | None, what: str, remedy: str) -> TaskError:
        """Return the error about a key, or about the task as a whole."""
        return refusal(self.place, None if key is None else self.lines.get(key), what, remedy)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a task is made of, beside the one in which it stands."""
        names = [self.values.get("prompt_file"), self.values.get("schema_file"), self.values.get("output")]
        return tuple(self.folder / name for name in names if isinstance(name, str) and (name != names[2] or name.endswith(".json")))


def refusal(place: str, line: int | None, what: str, remedy: str) -> TaskError:
    """Return the error about a place, and a line of it where it is known."""
    return TaskError(f"{place}{'' if line is None else f' line {line}'}: {what}. Nothing was sent. {remedy}")


def build_task(mapping: TaskMapping, *, default_model: str | None = None, preset_names: "Mapping[str, str] | None" = None) -> "ClaudeTask":
    """Return the task that a mapping describes.

    Args:
        mapping: As it was read.
        default_model: Of a preset without `model`; None where it must be said.
        preset_names: What a preset's task is called without `name`; None where it must be said.

    Raises:
        TaskError: Terminal. It says something that no task has, or names a file that cannot be read; with its line.
    """
    from claude_batch_dagster.core.task import ClaudeTask

    if "preset" in mapping.values:
        return _build_preset(mapping, default_model, preset_names)
    allowed = TASK_KEYS if mapping.import_name is None else TASK_KEYS + CODE_KEYS
    _check_keys(mapping, allowed, "a task", REQUIRED["task"])
    arguments = _task_arguments(mapping)
    with _naming(mapping):
        return ClaudeTask(**arguments)


def _build_preset(mapping: TaskMapping, default_model: str | None, preset_names: "Mapping[str, str] | None") -> "ClaudeTask":
    from claude_batch_dagster.core.presets import Moderate, Summarize

    preset = mapping.values["preset"]
    if not isinstance(preset, str) or preset not in PRESET_KEYS:
        raise mapping.refuse("preset", f"there is no preset {preset!r}", f"The presets are {' and '.join(PRESET_KEYS)}.")
    arguments: dict[str, Any] = {
        **({} if preset_names is None else {"name": preset_names[preset]}),
        **({} if default_model is None else {"model": default_model}),
    }
    required = tuple(key for key in ("name", "model") if key not in arguments) + REQUIRED[preset]
    _check_keys(mapping, PRESET_KEYS[preset], f"the preset {preset}", required)
    arguments |= mapping.values
    del arguments["preset"]
    with _naming(mapping):
        return Summarize(**arguments) if preset == "summarize" else Moderate(**arguments)


@contextmanager
def _naming(mapping: TaskMapping, key: str | None = None) -> Iterator[None]:
    """Put the place, and a key's line, before what is said of the task."""
    try:
        yield
    except TaskError as error:
        line = None if key is None else mapping.lines.get(key)
        raise TaskError(f"{mapping.place}{'' if line is None else f' line {line}'}: {error}", **error.context) from error


def _check_keys(mapping: TaskMapping, allowed: tuple[str, ...], what: str, required: tuple[str, ...]) -> None:
    for key, value in mapping.values.items():
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            raise mapping.refuse(
                key, f"{key!r} is no key of {what}", f"Did you mean {near[0]}?" if near else f"The keys are {', '.join(allowed)}."
            )
        if not _fits(mapping, key, value):
            quote = " Write it in quotes." if isinstance(value, (bool, int, float)) and WANTED[key] == "text" else ""
            raise mapping.refuse(key, f"{key} is {_describe(value)}, and must be {_wanted(mapping, key)}", f"Correct it.{quote}")
    if missing := [key for key in required if key not in mapping.values]:
        raise mapping.refuse(None, f"it lacks {', '.join(missing)}", f"The keys of {what} are {', '.join(allowed)}.")


def _fits(mapping: TaskMapping, key: str, value: object) -> bool:
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
            dotted = mapping.import_name is not None and isinstance(value, str) and "." in value
            return dotted or isinstance(value, dict) or (isinstance(value, str) and value.endswith(".json"))


def _wanted(mapping: TaskMapping, key: str) -> str:
    if key == "output" and mapping.import_name is not None:
        return "a JSON Schema (a mapping), the name of a .json file, or a Pydantic model as package.module.Model"
    return WANTED[key]


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


def _task_arguments(mapping: TaskMapping) -> dict[str, Any]:
    arguments = dict(mapping.values)
    _refuse_twins(mapping)
    if "prompt_file" in arguments:
        # Editors end a file with a line break; a prompt that changed by it would ask everything again.
        arguments["prompt"] = _read_beside(mapping, "prompt_file").removesuffix("\n")
        del arguments["prompt_file"]
    if "prompt_function" in arguments:
        arguments["prompt"] = _import(mapping, "prompt_function")
        del arguments["prompt_function"]
    for key in ("schema_file", "output"):
        if isinstance(arguments.get(key), str):
            is_file = key == "schema_file" or arguments[key].endswith(".json")
            arguments["output"] = _read_schema(mapping, key) if is_file else _import(mapping, key)
    arguments.pop("schema_file", None)
    if "output" in arguments:
        _check_schema(mapping, arguments)
    return arguments


def _refuse_twins(mapping: TaskMapping) -> None:
    prompts = [key for key in PROMPTS if key in mapping.values and (mapping.import_name is not None or key != "prompt_function")]
    if len(prompts) != 1:
        possible = PROMPTS if mapping.import_name is not None else PROMPTS[:2]
        what = f"it has both {' and '.join(prompts)}" if prompts else f"it has neither {' nor '.join(possible)}"
        raise mapping.refuse(prompts[-1] if prompts else None, what, "Give one of them.")
    if "output" in mapping.values and "schema_file" in mapping.values:
        raise mapping.refuse("schema_file", "it has both output and schema_file", "Give one of them.")


def _check_schema(mapping: TaskMapping, arguments: Mapping[str, Any]) -> None:
    from claude_batch_dagster.core.schema import canonical_schema

    with _naming(mapping, "output" if "output" in mapping.values else "schema_file"):
        canonical_schema(str(arguments["name"]), arguments["output"])


def _read_schema(mapping: TaskMapping, key: str) -> object:
    name = mapping.values[key]
    try:
        schema: object = json.loads(_read_beside(mapping, key))
    except json.JSONDecodeError as error:
        raise mapping.refuse(key, f"{name} is not JSON: {error.msg} in its line {error.lineno}", "Correct it.") from error
    if not isinstance(schema, dict):
        raise mapping.refuse(key, f"{name} holds no JSON object", "Write a JSON Schema of an object into it.")
    return schema


def _read_beside(mapping: TaskMapping, key: str) -> str:
    path: Path = mapping.folder / mapping.values[key]
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise mapping.refuse(key, f"{path} cannot be read: {reason}", "Paths are relative to this file.") from error


def _import(mapping: TaskMapping, key: str) -> object:
    name: str = mapping.values[key]
    assert mapping.import_name is not None, "without it the key was refused"
    try:
        return mapping.import_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise mapping.refuse(key, f"{name} cannot be imported: {error}", import_remedy(name, error)) from error


def import_remedy(name: str, error: Exception) -> str:
    """Return what to do about a dotted name that cannot be imported: the module may be there, and lack one of its own."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and missing.rpartition(".")[2] not in name.split("."):
        return f"The module is there, and imports {missing}, which is not: install it."
    return "Write package.module.name, or .module.name for a module beside this file."
