"""Why requests are asked: new rows, changed rows, a changed task, an earlier failure, or because somebody said so.

Told from the output as it is now: a row that is not in it is new; one that was written by another task_key has a changed task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.presets import preset_arguments
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import Keys, Mask
from claude_batch_dagster.storage.output import output_path
from claude_batch_dagster.storage.plans import read_task
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.select import FileRows, first_rows
from claude_batch_dagster.verbs.subtract import Subtraction

SHOWN_VALUE_CHARS = 40
PART_NAMES = {"schema": "output"}
"""Parts of a task's document that a person knows under another name."""


class Reason(StrEnum):
    """Why a request is asked."""

    NEW = "new"
    CHANGED = "changed"
    TASK_CHANGED = "task_changed"
    FAILED_BEFORE = "failed_before"
    ASKED_AGAIN = "asked_again"


REASON_WORDS = {
    Reason.NEW: "new",
    Reason.CHANGED: "changed",
    Reason.TASK_CHANGED: "because the task changed",
    Reason.FAILED_BEFORE: "failed before",
    Reason.ASKED_AGAIN: "asked again on purpose",
}
"""After a number of requests, on every face."""


def explain_reasons(reasons: Mapping[str, int], changed_parts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return why requests are asked, then what changed in each task, in a phrase each.

    >>> explain_reasons({"new": 2, "task_changed": 1}, {"summaries": ("max_words: 40 -> 15",)})
    ['2 new, 1 because the task changed', 'what changed in summaries: max_words: 40 -> 15']
    """
    counted = ", ".join(f"{reasons[reason]:,} {words}" for reason, words in REASON_WORDS.items() if reasons.get(reason))
    return [*filter(None, [counted]), *(f"what changed in {name}: {', '.join(parts)}" for name, parts in changed_parts.items())]


@dataclass(slots=True, kw_only=True)
class ReasonCounter:
    """Counts the reasons of one output's requests.

    Attributes:
        counts: Distinct requests by reason.
        former_task_keys: Of rows that another version of the task wrote.
    """

    job: Job
    target: Target
    source: Source
    counts: Counter[str] = field(default_factory=Counter)
    former_task_keys: set[str] = field(default_factory=set)

    def count(self, keys: Keys, asked: Mask, known: Subtraction) -> Mask:
        """Count the requests that are asked again; return which of the rows are asked for another reason.

        Args:
            keys: Of some rows.
            asked: Which of them the plan will own.
            known: What they were compared with.
        """
        rows = np.flatnonzero(asked)
        again = known.again.contains(keys[rows])
        failed = (known.answers.find(keys[rows]) >= 0) & ~again
        self.counts[Reason.ASKED_AGAIN] += int(again.sum())
        self.counts[Reason.FAILED_BEFORE] += int(failed.sum())
        rest = np.zeros(len(keys), np.bool_)
        rest[rows[~again & ~failed]] = True
        return rest

    def compare(self, partition: str | None, part: FileRows, rows: npt.NDArray[np.int64]) -> None:
        """Count the other reasons of a file's rows, told from the output as it is now.

        Args:
            partition: The file's.
            part: The rows that were planned.
            rows: Places among them.
        """
        if not len(rows):
            return
        former = self._read_former(partition)
        if former is None:
            self.counts[Reason.NEW] += len(rows)
        else:
            self._compare(part, rows, former)

    def describe_changes(self, store: Store) -> tuple[str, ...]:
        """Return which parts of the task differ from the versions that wrote the output."""
        changes: dict[str, None] = {}
        for task_key in sorted(self.former_task_keys):
            try:
                before = read_task(store, task_key)
            except RootError:
                changes["another version, which this root does not know"] = None
                continue
            changes |= dict.fromkeys(describe_task_changes(before, self.target.task))
        return tuple(changes)

    def _read_former(self, partition: str | None) -> pa.Table | None:
        output = Store(self.target.output)
        path = output_path(self.job.source.partition_column, partition)
        if not output.exists(path):
            return None
        columns = [column for column in self.job.source.key_columns if column != self.job.source.partition_column]
        names = pq.read_schema(output.open(path)).names
        if not columns or any(column not in names for column in (*columns, "task_key")):
            return None
        return pq.read_table(output.open(path), columns=[*columns, "task_key"], partitioning=None)

    def _compare(self, part: FileRows, rows: np.ndarray[tuple[int], np.dtype[np.int64]], former: pa.Table) -> None:
        columns = [column for column in former.column_names if column != "task_key"]
        batches = list(first_rows(self.source.pieces(part.file, columns), part.rows))
        asked = pa.Table.from_batches(batches).take(pa.array(rows))
        former = former.set_column(former.num_columns - 1, "task_key", former["task_key"].cast(pa.string()))
        joined = _as_text(asked, columns).join(_as_text(former, columns), keys=columns, join_type="left outer")
        task_keys = joined["task_key"]
        mine = int(pc.sum(pc.equal(task_keys, self.target.task.task_key)).as_py() or 0)
        absent = task_keys.null_count
        self.counts[Reason.NEW] += absent
        self.counts[Reason.CHANGED] += mine
        self.counts[Reason.TASK_CHANGED] += joined.num_rows - absent - mine
        self.former_task_keys |= set(task_keys.unique().drop_null().to_pylist()) - {self.target.task.task_key}


def describe_task_changes(before: dict[str, object], task: ClaudeTask) -> list[str]:
    """Return the arguments of a task that differ from an earlier document, short values with both.

    Of a preset these are its own (`max_words`, `labels`), not the prompt, the schema and the limits that follow from them.

    >>> from claude_batch_dagster.core.presets import Summarize
    >>> former, task = (Summarize(name="s", column="text", model="claude-haiku-5-5", max_words=words) for words in (40, 15))
    >>> describe_task_changes(former.document(), task)
    ['max_words: 40 -> 15']
    """
    now: dict[str, object] = msgspec.json.decode(task.encode_document())
    was_preset, is_preset = preset_arguments(before), preset_arguments(now)
    if was_preset and is_preset and was_preset.keys() == is_preset.keys() and (changes := _compare_parts(was_preset, is_preset)):
        return changes
    return _compare_parts(before, now)


def _compare_parts(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    changes = []
    for part in sorted({*before, *now}):
        old, new = before.get(part), now.get(part)
        if old == new:
            continue
        name, shown = PART_NAMES.get(part, part), [_short(value) for value in (old, new)]
        changes.append(name if None in shown else f"{name}: {shown[0]} -> {shown[1]}")
    return changes


def _short(value: object) -> str | None:
    """Return a value as people read it in a line, None where it is too long for that."""
    items = value if isinstance(value, list) else [value]
    if not all(item is None or isinstance(item, (str, int, float)) for item in items):
        return None
    text = ", ".join("none" if item is None else str(item) for item in items)
    return text if len(text) <= SHOWN_VALUE_CHARS and "\n" not in text else None


def _as_text(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Give key columns a type that both sides of a join share."""
    others = [name for name in table.column_names if name not in columns]
    return pa.table([*(_text_of(table[name]) for name in columns), *(table[name] for name in others)], names=[*columns, *others])


def _text_of(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
