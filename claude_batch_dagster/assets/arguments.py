"""Arguments of another kind than they are meant to be, refused where they are written and not where they would fail."""

import re
from collections.abc import Sequence
from datetime import timedelta

from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset, TableSnapshot

_BRACED = re.compile(r"\{[^{}]+\}")


def refuse_strange_kinds(source: object, tasks: object, fail_above: object, wait_for: object) -> None:
    """Refuse arguments of `claude_batch_assets` that are of no kind it takes, and prompts that no source could have a slot for.

    Raises:
        UsageError: Terminal. With what was given, and what to write.
    """
    if not isinstance(source, (ParquetDataset, TableSnapshot)):
        what = f"path={source!r}" if isinstance(source, str) else "path=..."
        raise UsageError(f'claude_batch_assets has source={source!r}, which is no source. Write source=ParquetDataset({what}, key="...").')
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise UsageError(f"claude_batch_assets has a {type(tasks).__name__} for its tasks. Write a list of them: tasks=[...].")
    for task in tasks:
        if not isinstance(task, ClaudeTask):
            raise UsageError(
                f"claude_batch_assets has the task {task!r}, which is none. Give it what ClaudeTask, Summarize or Moderate returned."
            )
        if isinstance(task.prompt, str) and not _BRACED.search(task.prompt.replace("{{", "")):
            raise UsageError(
                f"The prompt of {task.name!r} has no slot, so every row would ask the same. Put a column in braces into it, for instance {{text}}."
            )
    if fail_above is not None and (isinstance(fail_above, bool) or not isinstance(fail_above, (int, float))):
        raise UsageError(f"claude_batch_assets has fail_above={fail_above!r}; it is a share of the rows, 0 to 1. For 5 %: fail_above=0.05.")
    if wait_for is not None and not isinstance(wait_for, timedelta):
        said = f"seconds={wait_for}" if isinstance(wait_for, (int, float)) else "minutes=15"
        raise UsageError(f"claude_batch_assets has wait_for={wait_for!r}, which is no timedelta. Write wait_for=timedelta({said}).")
