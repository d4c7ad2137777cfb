"""Whether a prompt function still asks what it asked when its rows' keys were kept: of its code a task's identity knows nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.prompt_function import name_function
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.render import KeyedRows, RenderedPiece, iter_kept_keys, render_rows
from claude_batch_dagster.verbs.select import FileRows, row_key

CHECKED_ROWS = 64
"""Of each file whose keys were kept, also where nothing of it is asked."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Compares what a file's rows ask now with their kept keys. A template is part of its task's key, and cannot drift."""

    store: Store
    source: Source
    part: FileRows
    task: ClaudeTask

    def check_first(self) -> None:
        """Compare the file's first rows.

        Raises:
            TaskError: Terminal. The function asks something else about a row.
        """
        if callable(self.task.prompt):
            first = replace(self.part, rows=min(CHECKED_ROWS, self.part.rows), whole=False)
            for _ in self.check(render_rows(self.source, first, self.task, rows=CHECKED_ROWS)):
                pass

    def check(self, pieces: Iterable[RenderedPiece]) -> Iterator[RenderedPiece]:
        """Yield the file's rendered rows, each piece compared before it is yielded.

        Args:
            pieces: From the file's first row on.

        Raises:
            TaskError: Terminal. The function asks something else about a row.
        """
        if not callable(self.task.prompt):
            yield from pieces
            return
        kept = iter(iter_kept_keys(self.store, self.source, self.part, self.task) or ())
        held = KeyedRows(keys=np.empty((0, 2), np.uint64), reasons=np.empty(0, np.int8))
        start = 0
        for piece in pieces:
            count = len(piece.lines)
            while len(held.keys) < count and (more := next(kept, None)) is not None:
                held = KeyedRows(keys=np.concatenate([held.keys, more.keys]), reasons=np.concatenate([held.reasons, more.reasons]))
            same = (piece.rows.keys == held.keys[:count]).all(axis=1) & (piece.rows.reasons == held.reasons[:count])
            if not same.all():
                self._refuse(start + int(np.argmin(same)))
            held = KeyedRows(keys=held.keys[count:], reasons=held.reasons[count:])
            yield piece
            start += count

    def _refuse(self, row: int) -> None:
        function, version = name_function(self.task.prompt) if callable(self.task.prompt) else "", self.task.version
        raise TaskError(
            f"{self.source.name(self.part.file)}: the prompt function {function} of task {self.task.name!r} now asks something else about "
            f"the row with key {row_key(self.source, self.part, row)} than when version={version} was planned. Nothing was sent. Give it another version; "
            "if it did not change, it must return the same for the same row."
        )
