"""Runs the product's own functions up to any of their operations, again and again: a stack cannot be copied, but it can be rebuilt.

A program is a function of the product (or a few lines that call some in the order of the driver). Whatever it asks of the world (a get,
a put, a POST, the clock) goes through `ask`. Given the answers so far it runs to its next operation and stops there; so a process is
nothing but its program and its answers, which can be hashed, compared and resumed with any answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Operation = tuple[Any, ...]
"""The kind and its arguments: ("get", path), ("put", path, content), ("post", body)."""


@dataclass(frozen=True, slots=True)
class Task:
    """A program and its arguments: what a process does until it has done it."""

    program: Callable[..., "Task | str"]
    arguments: tuple[Any, ...]


class _SuspendedError(BaseException):
    """The program's answers are used up. Not an Exception: the product must not catch it."""


class _Run:
    def __init__(self, answers: tuple[Any, ...]) -> None:
        self.answers = answers
        self.used = 0
        self.pending: Operation | None = None


_run = _Run(())


def ask(*operation: Any) -> Any:
    """Return the world's answer to an operation, or stop the program here."""
    # What runs while the stack unwinds has lost its world: it was not reached.
    if _run.pending is not None or _run.used == len(_run.answers):
        _run.pending = _run.pending or operation
        raise _SuspendedError
    _run.used += 1
    return _run.answers[_run.used - 1]


class Programs:
    """Every local state of every process that was reached, as a number.

    Attributes:
        operations: What the process waits for in each local state; None where it is at its end.
        ends: Its last words there.
        runs: How often product code was run.
    """

    def __init__(self) -> None:
        self.operations: list[Operation | None] = []
        self.ends: list[str | None] = []
        self.tasks: list[Task | None] = []
        self.runs = 0
        self._answers: list[tuple[Any, ...]] = []
        self._numbers: dict[tuple[Task | str, tuple[Any, ...]], int] = {}
        self._next: dict[tuple[int, Any], int] = {}

    def start(self, task: Task) -> int:
        """Return the local state of a process that begins with a task."""
        return self._reach(task, ())

    def resume(self, local: int, answer: Any) -> int:
        """Return the local state after an answer."""
        found = self._next.get((local, answer))
        if found is None:
            task = self.tasks[local]
            assert task is not None, "a process at its end asks nothing"
            found = self._next[local, answer] = self._reach(task, (*self._answers[local], answer))
        return found

    def _reach(self, task: Task, answers: tuple[Any, ...]) -> int:
        number = self._numbers.get((task, answers))
        if number is not None:
            return number
        self.runs += 1
        pending, done = _run_to_next_operation(task, answers)
        if isinstance(done, Task):
            number = self._reach(done, ())
        else:
            # However a process came to its end, it is the same one.
            place = (task, answers) if done is None else (done, ())
            number = self._numbers.setdefault(place, len(self.operations))
            if number == len(self.operations):
                self.operations.append(pending)
                self.ends.append(done)
                self.tasks.append(task if done is None else None)
                self._answers.append(answers)
        self._numbers[task, answers] = number
        return number

    def run_again(self) -> list[Operation | None]:
        """Return where every local state stops when its program is run again: at its operation, or the product does not repeat itself."""
        return [
            None if task is None else _run_to_next_operation(task, answers)[0]
            for task, answers in zip(self.tasks, self._answers, strict=True)
        ]


def _run_to_next_operation(task: Task, answers: tuple[Any, ...]) -> tuple[Operation | None, Task | str | None]:
    global _run
    _run = _Run(answers)
    try:
        done = task.program(*task.arguments)
    except _SuspendedError:
        return _run.pending, None
    assert _run.pending is None, "a program must not swallow its suspension"
    return None, done
