"""Breadth-first search over every interleaving: the first bad state is the shortest way to it."""

import logging
import time
from array import array
from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Model(Protocol):
    """What can be searched."""

    def stand_ins(self) -> AbstractContextManager[object]:
        """Return what stands in for names, times and stores of the product during a search."""

    def initial(self) -> Hashable:
        """Return where it begins."""

    def successors(self, state: Hashable) -> Iterable[tuple[object, Hashable]]:
        """Yield every step that is possible in a state, with its label and where it leads."""

    def violation(self, state: Hashable) -> str | None:
        """Say what is wrong with a state, None where nothing is."""

    def is_good_end(self, state: Hashable) -> bool:
        """Tell whether nothing is left to wish for."""

    def tell(self, label: object) -> str:
        """Return a step in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
        states: Distinct ones.
        steps: Between them.
        whole: Whether every reachable state was seen.
        violation: What the first bad state violates, None where there is none.
        stuck: States from which no good end can be reached.
        trace: The shortest way to the violation, or to a stuck state.
    """

    states: int
    steps: int
    seconds: float
    whole: bool
    violation: str | None
    stuck: int
    trace: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is bought twice and nobody is blocked, as far as was searched."""
        return self.violation is None and not self.stuck

    def describe(self) -> str:
        """Return the result in a line."""
        what = self.violation or (f"stuck ({self.stuck:,} states)" if self.stuck else "holds" if self.whole else "holds so far")
        after = f" after {len(self.trace)} steps" if self.trace else ""
        return f"{what}{after}; {self.states:,} states, {self.steps:,} steps, {self.seconds:.1f} s"


def search(model: Model, *, most_states: int = 5_000_000) -> Found:
    """Search every state within the model's bounds; stop at the first violation, or at `most_states`."""
    logging.disable(logging.WARNING)
    try:
        with model.stand_ins():
            return _search(model, most_states)
    finally:
        logging.disable(logging.NOTSET)


def _search(model: Model, most_states: int) -> Found:
    began_s = time.perf_counter()
    first = model.initial()
    numbers: dict[Hashable, int] = {first: 0}
    ways: list[tuple[int, object]] = [(0, None)]
    good = array("I")
    sources, targets = array("I"), array("I")
    todo = deque([first])

    def conclude(*, whole: bool, violation: str | None = None, stuck: int = 0, at: int | None = None) -> Found:
        return Found(
            states=len(numbers),
            steps=len(sources),
            seconds=time.perf_counter() - began_s,
            whole=whole,
            violation=violation,
            stuck=stuck,
            trace=() if at is None else _trace(model, ways, at),
        )

    while todo:
        state = todo.popleft()
        number = numbers[state]
        wrong = model.violation(state)
        if wrong is not None:
            return conclude(whole=False, violation=wrong, at=number)
        if model.is_good_end(state):
            good.append(number)
        for label, follower in model.successors(state):
            known = numbers.setdefault(follower, len(ways))
            if known == len(ways):
                ways.append((number, label))
                todo.append(follower)
            sources.append(number)
            targets.append(known)
        if len(numbers) > most_states:
            return conclude(whole=False)
    stuck = _find_stuck(len(numbers), np.asarray(sources), np.asarray(targets), np.asarray(good))
    return conclude(whole=True, stuck=len(stuck), at=int(stuck[0]) if len(stuck) else None)


def _find_stuck(count: int, sources: "np.ndarray", targets: "np.ndarray", good: "np.ndarray") -> "np.ndarray":
    """Return the states from which no good end can be reached, in the order in which they were found."""
    live = np.zeros(count, np.bool_)
    live[good] = True
    while True:
        more = live[targets] & ~live[sources]
        if not more.any():
            return np.flatnonzero(~live)
        live[sources[more]] = True


def _trace(model: Model, ways: list[tuple[int, object]], at: int) -> tuple[str, ...]:
    told = []
    while at:
        at, label = ways[at]
        told.append(model.tell(label))
    return tuple(reversed(told))
