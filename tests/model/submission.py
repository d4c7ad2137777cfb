"""One shard: drivers that overlap, die and wake too late, a vendor that is slow, silent or full of twins. `Submitter` and `Settler` decide.

Time is a step like any other: everybody's clock ticks once, unless the vendor's promise (a batch is created within `takes` ticks of its
last byte, and listed within `lags` ticks of that) would be broken by it.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple
from unittest.mock import patch

import temporal_worker.submit
from claude_batch_dagster.core.submission import Accepted, Closed, Mode, Send, decode_record
from tests.model import shard_drivers
from tests.model.replay import Operation, Programs, Task
from tests.model.shard_drivers import Names, planned_root, stop, submit
from tests.model.stores import Contents
from tests.model.world import read_custom_ids, result_line

NEVER = -1


class Process(NamedTuple):
    """A driver: where it is, what its clock says since it began to send, how long it still sleeps or may pause."""

    local: int
    age: int = NEVER
    left: int = NEVER


class Flight(NamedTuple):
    """A body whose last byte left."""

    sender: int
    age: int
    heard: bool


class Bought(NamedTuple):
    """A batch at the vendor. Whether it is listed, or ended, is decided when somebody looks: until then it makes no difference."""

    ours: bool
    age: int
    listed: bool = False
    ended: bool = False


class State(NamedTuple):
    """Everything."""

    store: int
    processes: tuple[Process, ...]
    flights: tuple[Flight, ...]
    batches: tuple[Bought, ...]
    lost: int
    refused: int
    foreign: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much may happen.

    Attributes:
        modes: Of each driver; all of them may overlap.
        deaths: Whether any driver but the last may die anywhere. For what is bought this is the same as never moving again.
        sends: POSTs of the shard.
        lost: Replies that are lost, whether or not the batch was created.
        refused: Replies that say that nothing was created.
        foreign: Batches of somebody else, of the same size, at the same time.
        send_s: Seconds that a sender has; a tick is a second.
        takes: Ticks from the last byte until the batch is created, at most.
        lags: Ticks from then until it is listed, at most.
        pause: Ticks between a sender's last look at its clock and its last byte, at most; None for any.
    """

    modes: tuple[Mode, ...] = (Mode.RUN, Mode.RUN)
    deaths: bool = False
    sends: int = 2
    lost: int = 1
    refused: int = 0
    foreign: int = 0
    send_s: float = 0.9
    takes: int = 1
    lags: int = 1
    pause: int | None = 0


@dataclass(slots=True)
class OneShard:
    """The model of one shard."""

    bounds: Bounds
    contents: Contents = field(default_factory=Contents)
    programs: Programs = field(default_factory=Programs)
    custom_ids: tuple[str, ...] = ()
    dead: int = 0
    beyond: int = 0
    _read: dict[int, list[object]] = field(default_factory=dict)

    def stand_ins(self) -> AbstractContextManager[object]:
        """Return what makes the product repeatable."""
        stack = ExitStack()
        stack.enter_context(patch.object(temporal_worker.submit, "uuid", Names()))
        stack.enter_context(patch.object(shard_drivers, "SUBMITTER", replace(shard_drivers.SUBMITTER, send_s=self.bounds.send_s)))
        return stack

    def initial(self) -> State:
        """An empty log, and every driver before its first step."""
        objects, _ = planned_root()
        body = next(content for path, content in objects.items() if "/requests/" in path)
        self.custom_ids = read_custom_ids(body)
        self.dead = self.programs.start(Task(stop, ("dead",)))
        self.beyond = self.programs.start(Task(stop, ("beyond the bounds",)))
        store = 0
        for path, content in objects.items():
            _, store = self.contents.apply(store, ("put", path, content))
        # A driver that starts later is one that stays at its first step until then.
        drivers = tuple(self._begin(number) for number in range(len(self.bounds.modes)))
        state = State(store, drivers, (), (), self.bounds.lost, self.bounds.refused, self.bounds.foreign)
        for number in range(len(drivers)):
            state = self._run_on(state, number)
        return state

    def successors(self, state: State) -> Iterator[tuple[object, State]]:
        """Every step of a driver, of the vendor, of death, of time."""
        alive = sum(process.local != self.dead for process in state.processes)
        for number, process in enumerate(state.processes):
            operation = self.programs.operations[process.local]
            if operation is None:
                continue
            if self.bounds.deaths and alive > 1:
                flights = tuple(flight._replace(heard=flight.heard and flight.sender != number) for flight in state.flights)
                yield f"{_name(number)} dies", _put(state._replace(flights=flights), number, Process(self.dead))
            yield from self._operate(state, number, process, operation)
        yield from self._vendor_steps(state)
        later = self._tick(state)
        if later is not None and later != state:
            yield "a tick", later

    def violation(self, state: State) -> str | None:
        """Two batches of one shard, somebody else's batch taken, or one that nobody will ever know of."""
        if sum(batch.ours for batch in state.batches) > 1:
            return "paid twice"
        records = self._records(state)
        taken = [record.id for record in records if isinstance(record, Accepted)]
        if any(not state.batches[int(batch_id[1:])].ours for batch_id in taken):
            return "somebody else's batch taken"
        if not taken and isinstance(records[-1] if records else None, Closed) and any(batch.ours for batch in state.batches):
            return "closed, with a batch that is paid for"
        return None

    def is_good_end(self, state: State) -> bool:
        """Every driver is at its end, and the last record says what became of the shard, or a person is asked."""
        if any(self.programs.operations[process.local] is not None for process in state.processes):
            return False
        records = self._records(state)
        ends = {self.programs.ends[process.local] for process in state.processes}
        return isinstance(records[-1] if records else None, Accepted | Closed) or bool(ends & {"a question", "beyond the bounds"})

    def tell(self, label: object) -> str:
        """Return a step in words."""
        return label if isinstance(label, str) else _tell(*label)

    def _begin(self, number: int) -> Process:
        return Process(self.programs.start(Task(submit, (_name(number), self.bounds.modes[number]))))

    def _run_on(self, state: State, number: int) -> State:
        """Do at once what is no step of its own."""
        while True:
            process = state.processes[number]
            local, store = self.contents.run_certain(self.programs, process.local, state.store)
            if local != process.local:
                process = Process(local, process.age, process.left)
                state = _put(state, number, process, store)
            operation = self.programs.operations[local]
            match operation:
                case None:
                    return _put(state, number, Process(local))
                case ("begin",):
                    process = Process(self.programs.resume(process.local, 0.0), age=0)
                case ("post", _) if self.bounds.pause == 0:
                    return self._post(state, number)
                case ("post", _):
                    return _put(state, number, process._replace(left=NEVER if self.bounds.pause is None else self.bounds.pause))
                case ("sleep", wait_s):
                    return _put(state, number, Process(process.local, left=math.ceil(wait_s)))
                case ("await", _) | ("list", "strays" | "done" | "log"):
                    # The pause makes no difference, and these folders never change here.
                    answer = None if operation[0] == "await" else self.contents.apply(state.store, operation)[0]
                    process = process._replace(local=self.programs.resume(process.local, answer))
                case _:
                    return state
            state = _put(state, number, process)

    def _operate(self, state: State, number: int, process: Process, operation: Operation) -> Iterator[tuple[object, State]]:
        answer: object
        store = state.store
        match operation:
            case ("look at the clock",):
                answer = float(process.age)
            case ("post", _):
                yield f"{_name(number)}'s last byte leaves, after a pause", self._post(state, number)
                return
            case ("list_batches",):
                for seen in self._listings(state):
                    answer = tuple((f"b{at}", 1) for at, batch in enumerate(seen.batches) if batch.listed)
                    yield (number, operation, answer), self._resume(seen, number, answer)
                return
            case "batch", batch_id:
                at = int(batch_id[1:])
                if not state.batches[at].ended:
                    yield (number, operation, (1, False)), self._resume(state, number, (1, False))
                state = _change(state, at, state.batches[at]._replace(ended=True))
                answer = (1, True)
            case "results", batch_id:
                ids = self.custom_ids if state.batches[int(batch_id[1:])].ours else ("somebody-elses",)
                answer = b"".join(result_line(custom_id, answered=True) for custom_id in ids)
            case ("reply" | "sleep", *_):
                return
            case "put_if_absent", path, content if self._is_beyond(path, content):
                yield f"{_name(number)} is beyond the bounds", _put(state, number, Process(self.beyond))
                return
            case _:
                answer, store = self.contents.apply(store, operation)
        yield (number, operation, answer), self._resume(_put(state, number, process, store), number, answer)

    def _resume(self, state: State, number: int, answer: object) -> State:
        local, age, left = state.processes[number]
        return self._run_on(_put(state, number, Process(self.programs.resume(local, answer), age, left)), number)

    def _listings(self, state: State) -> Iterator[State]:
        """Every list that the vendor may show now: a batch whose time to be listed is not over may be in it or not."""
        unlisted = [at for at, batch in enumerate(state.batches) if not batch.listed]
        for chosen in product((False, True), repeat=len(unlisted)):
            seen = state
            for at, listed in zip(unlisted, chosen, strict=True):
                if listed:
                    seen = _change(seen, at, seen.batches[at]._replace(age=0, listed=True))
            yield seen

    def _post(self, state: State, number: int) -> State:
        process = state.processes[number]
        waiting = Process(self.programs.resume(process.local, None))
        flights = tuple(sorted((*state.flights, Flight(number, 0, heard=True))))
        return self._run_on(_put(state._replace(flights=flights), number, waiting), number)

    def _vendor_steps(self, state: State) -> Iterator[tuple[object, State]]:
        batch_id = f"b{len(state.batches)}"
        created = (*state.batches, Bought(ours=True, age=0))
        for at, flight in enumerate(state.flights):
            rest = state.flights[:at] + state.flights[at + 1 :]
            who = _name(flight.sender)
            if not flight.heard:
                yield f"the vendor creates {batch_id} of {who}, nobody hears", state._replace(flights=rest, batches=created)
                yield f"{who}'s body never arrives", state._replace(flights=rest)
                continue
            yield f"the vendor creates {batch_id} of {who}", self._reply(state._replace(flights=rest, batches=created), flight, batch_id)
            if state.refused:
                yield f"the vendor refuses {who}", self._reply(state._replace(flights=rest, refused=state.refused - 1), flight, "refused")
            if state.lost:
                unheard = tuple(sorted((*rest, flight._replace(heard=False))))
                yield f"{who} loses its connection", self._reply(state._replace(flights=unheard, lost=state.lost - 1), flight, "lost")
        if state.foreign:
            twin = Bought(ours=False, age=0, listed=True)
            yield f"somebody else's {batch_id}", state._replace(foreign=state.foreign - 1, batches=(*state.batches, twin))

    def _reply(self, state: State, flight: Flight, reply: str) -> State:
        process = state.processes[flight.sender]
        heard = Process(self.programs.resume(process.local, reply))
        return self._run_on(_put(state, flight.sender, heard), flight.sender)

    def _tick(self, state: State) -> State | None:
        promised = any(flight.age >= self.bounds.takes for flight in state.flights)
        if promised or any(process.left == 0 for process in state.processes):
            return None
        oldest = math.ceil(self.bounds.send_s * 2 ** (self.bounds.sends - 1))
        later = state._replace(
            processes=tuple(
                Process(p.local, p.age if p.age == NEVER else min(p.age + 1, oldest), p.left if p.left == NEVER else p.left - 1)
                for p in state.processes
            ),
            flights=tuple(flight._replace(age=flight.age + 1) for flight in state.flights),
            batches=tuple(self._grow_old(batch) for batch in state.batches),
        )
        for number, process in enumerate(later.processes):
            if process.left == 0 and self._is_at(process, "sleep"):
                woken = Process(self.programs.resume(process.local, None))
                later = self._run_on(_put(later, number, woken), number)
        return later

    def _grow_old(self, batch: Bought) -> Bought:
        if batch.listed:
            return batch
        return batch._replace(age=0, listed=True) if batch.age == self.bounds.lags else batch._replace(age=batch.age + 1)

    def _is_at(self, process: Process, kind: str) -> bool:
        operation = self.programs.operations[process.local]
        return operation is not None and operation[0] == kind

    def _is_beyond(self, path: str, content: bytes) -> bool:
        slot = path.rpartition("/")[2].removesuffix(".json")
        return path.startswith("submissions/") and int(slot) >= 2 * self.bounds.sends and isinstance(decode_record(content), Send)

    def _records(self, state: State) -> list[object]:
        known = self._read.get(state.store)
        if known is None:
            known = self._read[state.store] = self._read_records(state.store)
        return known

    def _read_records(self, store: int) -> list[object]:
        objects = self.contents[store]
        _, run_id = planned_root()
        records: list[object] = []
        while (content := objects.get(f"submissions/{run_id}/1-0/{len(records)}.json")) is not None:
            records.append(decode_record(content))
        return records


def _name(number: int) -> str:
    return "ABCDEFGH"[number]


def _put(state: State, number: int, process: Process, store: int | None = None) -> State:
    # A state is made at every step: `_replace` is three times slower.
    processes = (*state.processes[:number], process, *state.processes[number + 1 :])
    return State(state.store if store is None else store, processes, *state[2:])


def _change(state: State, at: int, batch: Bought) -> State:
    return state._replace(batches=(*state.batches[:at], batch, *state.batches[at + 1 :]))


def _tell(number: int, operation: Operation, answer: object) -> str:
    kind, *rest = operation
    path = "/".join(str(rest[0]).split("/")[-2:]) if rest else ""
    match kind:
        case "put_if_absent" | "put":
            record = type(decode_record(rest[1])).__name__ if str(rest[0]).startswith("submissions/") else ""
            return f"{_name(number)} {'writes' if answer else 'cannot write'} {record} at {path}"
        case "get":
            return f"{_name(number)} reads {path}: {'there' if answer is not None else 'nothing there'}"
        case "look at the clock":
            return f"{_name(number)} looks at its clock: {answer}"
        case "list_batches":
            return f"{_name(number)} lists the vendor's batches: {', '.join(batch_id for batch_id, _ in answer) or 'none'}"
        case "list":
            return f"{_name(number)} lists {rest[0]}"
        case _:
            return f"{_name(number)} {kind} {path}".rstrip()
