"""Several clients over overlapping keys: their plans, the log, the drivers of the runs that they admit, and what kills these.

`plan_job`, `admit_plan`, `Runs`, `Submitter` and `Collector` decide, on a real Parquet source; that a shard is bought once is the other
model's result, so a POST is one step here, and whoever finds somebody else's `send` settles it in one step too.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from claude_batch_dagster.core.request import parse_custom_id
from claude_batch_dagster.core.submission import Mode, Send, decode_record
from claude_batch_dagster.storage.responses import responses_path
from tests.model.replay import Operation, Programs, Task
from tests.model.run_drivers import Run, Work, drive, guarded, keep_up, plan, repeatable, stop
from tests.model.stores import PRIVATE, Contents
from tests.model.world import TASK, read_custom_ids, result_line

RUNNING, GONE = "running", "gone"


class Workflow(NamedTuple):
    """What Temporal says of a run."""

    run: Run
    status: str
    drains: bool


class Driver(NamedTuple):
    """One carrying out of a run; one that timed out, or whose workflow was terminated, may go on."""

    run: Run
    local: int


class Bought(NamedTuple):
    """A batch at the vendor: its requests, and whether they were answered or expired unpaid."""

    custom_ids: tuple[str, ...]
    answered: bool


class State(NamedTuple):
    """Everything."""

    store: int
    clients: tuple[int, ...]
    drivers: tuple[Driver, ...]
    workflows: tuple[Workflow, ...]
    batches: tuple[Bought, ...]
    kills: int
    zombies: int
    cancels: int
    expired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may happen.

    Attributes:
        wants: The rows of each client.
        plans: How often a client plans at most.
        kills: Workflows that are terminated, their driver with them or not.
        zombies: Drivers that time out and go on beside the next one.
        cancels: Runs that are canceled.
        expired: Batches whose requests all expire.
        upkeeps: How often somebody brings the index up to date and joins response files, at any time.
    """

    wants: tuple[str, ...] = ("x", "x")
    plans: int = 2
    kills: int = 0
    zombies: int = 0
    cancels: int = 0
    expired: int = 0
    upkeeps: int = 0


@dataclass(slots=True)
class Admissions:
    """The model of admission."""

    bounds: Bounds
    contents: Contents = field(default_factory=Contents)
    programs: Programs = field(default_factory=Programs)
    drains: bool = True
    dead: int = 0

    def stand_ins(self) -> AbstractContextManager[None]:
        """Return what makes the product repeatable."""
        return repeatable()

    def initial(self) -> State:
        """Clients before their first step, an empty root."""
        b = self.bounds
        if not b.upkeeps:
            self.contents.private = (*PRIVATE, "index/")
        self.dead = self.programs.start(Task(stop, ("dead",)))
        state = State(0, (), (), (), (), b.kills, b.zombies, b.cancels, b.expired)
        clients = [Task(plan, (name, wants, b.plans, (), ())) for name, wants in zip("ABCDEF", b.wants, strict=False)]
        keepers = [Task(keep_up, (name,)) for name in "ABCDEF"[len(clients) : len(clients) + b.upkeeps]]
        for number, task in enumerate((*clients, *keepers)):
            local = self.programs.start(task)
            state = state._replace(clients=(*state.clients, local))
            state = self._run_on(state, ("client", number), local)
        return state

    def successors(self, state: State) -> Iterator[tuple[object, State]]:
        """Every step of a client, of a driver, of Temporal's misfortunes."""
        for number, local in enumerate(state.clients):
            yield from self._operate(state, ("client", number), local)
        for number, driver in enumerate(state.drivers):
            yield from self._operate(state, ("driver", number), driver.local)
        for workflow in state.workflows:
            if workflow.status == RUNNING and not self._is_done(state, workflow.run):
                yield from self._misfortunes(state, workflow.run, drains=workflow.drains)

    def violation(self, state: State) -> str | None:
        """A request answered in two batches; a run done whose answers are not in the store."""
        paid = Counter(_key(custom_id) for batch in state.batches if batch.answered for custom_id in batch.custom_ids)
        if any(count > 1 for count in paid.values()):
            return "paid twice"
        objects = self.contents[state.store]
        for at, batch in enumerate(state.batches):
            if responses_path("simulator", TASK.task_key, f"b{at}") not in objects and any(
                self._is_done(state, workflow.run) for workflow in state.workflows if self._is_of(state, batch, workflow.run)
            ):
                return "done, with an answer that is paid for and not stored"
        return None

    def is_good_end(self, state: State) -> bool:
        """Every client has its answers, or gave up after its plans."""
        return all(self.programs.operations[local] is None for local in state.clients)

    def tell(self, label: object) -> str:
        """Return a step in words."""
        return label if isinstance(label, str) else _tell(*label)

    def _misfortunes(self, state: State, run: Run, *, drains: bool) -> Iterator[tuple[object, State]]:
        alive = [at for at, driver in enumerate(state.drivers) if driver.run == run and self.programs.operations[driver.local] is not None]
        if state.kills:
            gone = _set_workflow(state, run, GONE)._replace(kills=state.kills - 1)
            yield f"r{run.number} is terminated, its driver goes on", gone
            stopped = tuple(d._replace(local=self.dead) if at in alive else d for at, d in enumerate(state.drivers))
            yield f"r{run.number} is terminated", gone._replace(drivers=stopped)
        if state.zombies and alive:
            fresh = self._start(state._replace(zombies=state.zombies - 1), run, drains=drains)
            yield f"the driver of r{run.number} times out and goes on, the next one starts", fresh
        if state.cancels and not drains:
            canceled = self._start(state._replace(cancels=state.cancels - 1), run, drains=True, reason="canceled")
            yield f"r{run.number} is canceled", canceled

    def _operate(self, state: State, who: tuple[str, int], local: int) -> Iterator[tuple[object, State]]:
        operation = self.programs.operations[local]
        match operation:
            case None:
                return
            case "start", run:
                known = any(workflow.run == run for workflow in state.workflows)
                started = state if known else self._start(state, run, drains=False)
                yield (who, operation, None), self._resume(started, who, None)
            case "wait", runs:
                open_runs = [run for run in runs if not self._is_done(state, run)]
                if not open_runs:
                    yield (who, operation, None), self._resume(state, who, None)
                for run in open_runs if self.drains else ():
                    if not self._is_running(state, run):
                        told = f"{_name(who)} finds r{run.number} open and without a workflow, drains it"
                        yield told, self._start(state, run, drains=True)
            case "post", custom_ids:
                for answered in (True, False) if state.expired else (True,):
                    bought = state._replace(batches=(*state.batches, Bought(custom_ids, answered)), expired=state.expired - (not answered))
                    batch_id = f"b{len(state.batches)}"
                    yield (who, operation, answered), self._resume(self._resume(bought, who, None), who, batch_id)
            case "settle", run_id, round_number:
                yield (who, operation, None), self._settle(state, who, run_id, round_number)
            case _:
                answer, store = self.contents.apply(state.store, operation)
                yield (who, operation, answer), self._resume(State(store, *state[1:]), who, answer)

    def _settle(self, state: State, who: tuple[str, int], run_id: str, round_number: int) -> State:
        """Find the batch of the `send` at the tip; where there is none, its sender's time is over."""
        objects = self.contents[state.store]
        records = []
        while (content := objects.get(f"submissions/{run_id}/{round_number}-0/{len(records)}.json")) is not None:
            records.append(decode_record(content))
        if not isinstance(records[-1], Send):
            return self._resume(state, who, (None, None))
        slot = len(records)
        expected = self._custom_ids(state, run_id, round_number)
        made = [f"b{at}" for at, batch in enumerate(state.batches) if set(batch.custom_ids) == expected]
        if made:
            return self._resume(state, who, (slot, made[-1]))
        late = tuple(driver._replace(local=self.dead) if self._is_about_to_send(driver, expected) else driver for driver in state.drivers)
        return self._resume(state._replace(drivers=late), who, (slot, None))

    def _is_about_to_send(self, driver: Driver, custom_ids: set[str]) -> bool:
        operation = self.programs.operations[driver.local]
        return operation is not None and operation[0] == "post" and set(operation[1]) == custom_ids

    def _start(self, state: State, run: Run, *, drains: bool, reason: str = "drained") -> State:
        work = Work(*run, Mode.DRAIN if drains else Mode.RUN, reason, str(len(state.drivers)))
        local = self.programs.start(Task(guarded, (drive, (work,))))
        state = _set_workflow(state, run, RUNNING, drains=drains)._replace(drivers=(*state.drivers, Driver(run, local)))
        return self._run_on(state, ("driver", len(state.drivers) - 1), local)

    def _resume(self, state: State, who: tuple[str, int], answer: object) -> State:
        kind, at = who
        local = self.programs.resume(state.clients[at] if kind == "client" else state.drivers[at].local, answer)
        return self._run_on(state, who, local)

    def _run_on(self, state: State, who: tuple[str, int], local: int) -> State:
        """Put somebody where it comes by itself, having done at once what is no step of its own."""
        kind, at = who
        store = state.store
        while True:
            local, store = self.contents.run_certain(self.programs, local, store)
            operation = self.programs.operations[local]
            if operation is None or operation[0] != "results":
                break
            batch = state.batches[int(operation[1][1:])]
            results = b"".join(result_line(custom_id, answered=batch.answered) for custom_id in batch.custom_ids)
            local = self.programs.resume(local, results)
        # A state is made at every step: `_replace` is three times slower.
        if kind == "client":
            return State(store, _put(state.clients, at, local), *state[2:])
        return State(store, state.clients, _put(state.drivers, at, Driver(state.drivers[at].run, local)), *state[3:])

    def _is_running(self, state: State, run: Run) -> bool:
        if not any(workflow.run == run and workflow.status == RUNNING for workflow in state.workflows):
            return False
        return any(driver.run == run and self.programs.operations[driver.local] is not None for driver in state.drivers)

    def _is_done(self, state: State, run: Run) -> bool:
        return f"done/{run.number}.json" in self.contents[state.store]

    def _is_of(self, state: State, batch: Bought, run: Run) -> bool:
        return any(set(batch.custom_ids) == self._custom_ids(state, run.run_id, round_number) for round_number in (1, 2, 3))

    def _custom_ids(self, state: State, run_id: str, round_number: int) -> set[str]:
        objects = self.contents[state.store]
        bodies = [path for path in objects if path.startswith(f"plans/{run_id}/requests/{round_number}-0-")]
        return set().union(*(_read_ids(objects[path]) for path in bodies))


@cache
def _read_ids(body: bytes) -> frozenset[str]:
    return frozenset(read_custom_ids(body))


@cache
def _key(custom_id: str) -> tuple[str, str]:
    identity = parse_custom_id(custom_id)
    return identity.name, identity.request_key


def _put(values: tuple[object, ...], at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


def _set_workflow(state: State, run: Run, status: str, *, drains: bool = False) -> State:
    others = [workflow for workflow in state.workflows if workflow.run != run]
    return state._replace(workflows=tuple(sorted((*others, Workflow(run, status, drains)))))


def _name(who: tuple[str, int]) -> str:
    kind, at = who
    return "ABCDEF"[at] if kind == "client" else f"driver {at}"


def _tell(who: tuple[str, int], operation: Operation, answer: object) -> str:
    kind, *rest = operation
    what = "" if not rest else ", ".join(custom_id[:40] for custom_id in rest[0]) if kind == "post" else str(rest[0])
    told = {"put_if_absent": "writes" if answer else "cannot write", "get": "reads", "post": "POSTs"}.get(kind, f"{kind}s")
    there = (
        ": nothing there"
        if kind == "get" and answer is None
        else f": {len(answer)}"
        if kind == "list" and isinstance(answer, tuple)
        else ""
    )
    return f"{_name(who)} {told} {what}{there}"
