"""`--task FILE.yaml`: a ClaudeTask's arguments in a file, or a preset's; mistakes are named with their line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.verbs.task_mapping import TASK_KEYS, TaskMapping, build_task, refusal

if TYPE_CHECKING:
    from claude_batch_dagster.core.task import ClaudeTask


def load_task_file(path: Path, *, default_model: str, preset_names: Mapping[str, str]) -> "ClaudeTask":
    """Return the task that a YAML file describes.

    Args:
        path: `FILE.yaml`; the files that it names are beside it.
        default_model: Of a preset without `model`.
        preset_names: What a preset's task is called without `name`.

    Raises:
        TaskError: Terminal. The file cannot be read, or says something that no task has; with its line.
    """
    return build_task(read_task_file(path), default_model=default_model, preset_names=preset_names)


def read_task_file(path: Path) -> TaskMapping:
    """Read a task file's mapping, with the line of each key."""
    import yaml

    if not path.is_file():
        raise TaskError(f"The task file {path} does not exist. Nothing was sent. Check the path.")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise refusal(str(path), None, f"it is not UTF-8 text: {error}".partition("\n")[0], "Save it as UTF-8.") from error
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise refusal(str(path), None, "it holds no mapping", f"Write `key: value` lines: {', '.join(TASK_KEYS)}, or preset.")
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(loader.construct_object(key_node, deep=True)), key_node.start_mark.line + 1
            if key in values:
                raise refusal(str(path), line, f"{key!r} stands here a second time, first in line {lines[key]}", "Keep one of them.")
            values[key], lines[key] = loader.construct_object(value_node, deep=True), line
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refusal(str(path), mark.line + 1 if mark else None, f"this is no YAML: {error.problem}", "Correct it.") from error
    finally:
        loader.dispose()
    return TaskMapping(values=values, place=str(path), folder=path.parent, lines=lines)
