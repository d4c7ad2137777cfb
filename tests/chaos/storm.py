"""What happens to a round, decided by its seed alone: the shape of its work, who is killed when, which faults the vendor has."""

import random
from dataclasses import dataclass, replace

CLIENTS = ("client-1", "client-2", "client-3")
WORKERS = ("worker-1", "worker-2")

LONGEST_HOLD_S = 1.5
"""Of the wire to the vendor. What is held arrives late: two holds, a slow upload and the list's lag end before the settle time does."""

CREATE_FAULTS = (
    "drop-before",
    "accept-then-drop",
    "error-500-before",
    "error-500-after",
    "error-504-after",
    "garbled-after",
    "429",
    "429-bare",
    "529",
    "408",
    "409",
    "307",
)
CALL_FAULTS = ("drop-before", "error-500-before", "429-bare", "529")
CALLS = ("get", "list", "results", "cancel", "any")
REQUEST_FAULTS = (
    "expire",
    "errored-api",
    "errored-overloaded",
    "truncated",
    "refusal",
    "pause",
    "invalid",
    "enum-case",
    "surrogate",
    "unknown-type",
    "missing-result",
    "duplicate-result",
    "foreign-result",
)
POINTS_OF_WORKER = (
    "list:batches.after",
    "put:submissions.before",
    "put:submissions.after",
    "put:submissions.before@2",
    "put:submissions.after@2",
    "put:submissions.before@3",
    "put:submissions.after@5",
    "post.before",
    "post.after",
    "post.before@2",
    "post.after@3",
    "put:responses.before",
    "put:responses.after",
    "put:responses.after@2",
    "put:rounds.before",
    "put:rounds.after",
    "put:done.before",
    "put:done.after",
    "put:workspace.json.after",
)
POINTS_OF_CLIENT = (
    "put:root.json.after",
    "list:log.after",
    "list:done.after",
    "list:responses.before",
    "put:keys.after",
    "put:plans.after",
    "put:plans.after@2",
    "put:log.before",
    "put:log.after",
    "put:part-0.parquet.before",
    "put:part-0.parquet.after",
)

POINTS_OF_DEFERRED = (
    # Before its intent, between it and the start of the workflow, before and after it leaves.
    "put:log.after",
    "put:deferred.before",
    "put:deferred.after",
    "put:deferred.after",
    "put:deferred.before@2",
    "put:deferred.before@2",
    "put:deferred.after@2",
)
POINTS_OF_SENSOR = (
    "list:deferred.after",
    "list:done.after",
    "list:done.after@3",
    "put:part-0.parquet.before",
    "put:part-0.parquet.after",
    "put:deferred.after",
    "put:deferred.before@2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happens.

    Attributes:
        at_s: Seconds after the first client was started.
        kind: See `draw_storm`.
        target: A process, a wire (vendor, temporal), or a fault.
        for_s: How long it lasts, 0 where it has no end of its own.
        number: Bytes of a cut, or a fault's N.
    """

    at_s: float
    kind: str
    target: str = ""
    for_s: float = 0.0
    number: float = 1

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        number = f" ={self.number:g}" if self.number != 1 else ""
        return f"{self.at_s:4.1f} s {self.kind} {self.target}{number}{lasts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """One client's command: rows [first, first + count) of the round's texts.

    Attributes:
        starts_s: When its first process is started.
        traps: Fault points of its first process.
        wait_s: In a deferred round, how long its run waits.
        again: Whether it is started again where it was killed; else the sensor alone sees to what it left, until it is quiet.
    """

    task: str
    first: int
    count: int
    output: str
    starts_s: float
    per_batch: int
    in_flight: int
    traps: str = ""
    wait_s: float = 0.0
    again: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round.

    Attributes:
        embedded: Each root's own stack under a supervisor; else a server and two workers of the program's own.
        worker_traps: Fault points of each worker's first process, none where embedded.
        deferred: Clients are Dagster runs that do not wait; a sensor collects.
        sensor_traps: Fault points of the first process that ticks it.
    """

    number: int
    embedded: bool
    batch_s: float
    jobs: tuple[JobShape, ...]
    events: tuple[Event, ...]
    faults: tuple[str, ...]
    worker_traps: tuple[str, ...]
    deferred: bool = False
    sensor_traps: str = ""


def draw_round(seed: int, number: int, rows: int) -> Round:
    """Return a round: the same for the same seed and number."""
    rng = random.Random(f"chaos {seed} {number}")
    embedded = rng.random() < 0.4
    jobs = _draw_jobs(rng, rows, embedded=embedded)
    end_s = rng.uniform(4.0, 8.0)
    return Round(
        number=number,
        embedded=embedded,
        batch_s=rng.choice((0.3, 1.0, 2.0)),
        jobs=jobs,
        events=draw_storm(rng, end_s, clients=len(jobs), embedded=embedded),
        faults=_draw_standing_faults(rng),
        worker_traps=tuple("" if embedded else _draw_trap(rng, POINTS_OF_WORKER, 0.4) for _ in WORKERS),
    )


def defer_round(drawn: Round, seed: int) -> Round:
    """Return a round of the same faults whose clients are Dagster runs that do not wait."""
    rng = random.Random(f"chaos deferred {seed} {drawn.number}")
    jobs = tuple(
        replace(
            job,
            traps=_draw_trap(rng, POINTS_OF_DEFERRED, 0.6),
            wait_s=rng.choice((0.0, 0.0, 5.0, 15.0)),
            again=rng.random() < 0.4,
        )
        for job in drawn.jobs
    )
    kills = [Event(at_s=rng.uniform(1.0, 8.0), kind="kill", target="sensor") for _ in range(rng.randint(0, 3))]
    events = tuple(sorted((*drawn.events, *kills), key=lambda event: event.at_s))
    return replace(drawn, jobs=jobs, events=events, deferred=True, sensor_traps=_draw_trap(rng, POINTS_OF_SENSOR, 0.6))


def draw_storm(rng: random.Random, end_s: float, *, clients: int, embedded: bool) -> tuple[Event, ...]:
    """Return what happens until `end_s`, in order of time."""
    events: list[Event] = []
    for _ in range(rng.randint(3, 8)):
        events += _draw_event(rng, rng.uniform(0.3, end_s), CLIENTS[:clients], embedded=embedded)
    for _ in range(rng.randint(0, 3)):
        fault = rng.choice(CREATE_FAULTS) if rng.random() < 0.6 else f"{rng.choice(CALL_FAULTS)}@{rng.choice(CALLS)}"
        events.append(Event(at_s=rng.uniform(0.0, end_s), kind="fault", target=fault, number=rng.randint(1, 3)))
    return tuple(sorted(events, key=lambda event: event.at_s))


def _draw_jobs(rng: random.Random, rows: int, *, embedded: bool) -> tuple[JobShape, ...]:
    def draw(task: str, first: int, output: str, starts_s: float) -> JobShape:
        return JobShape(
            task=task,
            first=first,
            count=rows,
            output=output,
            starts_s=starts_s,
            per_batch=rng.choice((rows // 6, rows // 4, rows // 3, rows)),
            in_flight=rng.choice((1, 2, 4)),
            # A supervisor would hand the trap on to its worker, which would end in it for ever.
            traps="" if embedded else _draw_trap(rng, POINTS_OF_CLIENT, 0.25),
        )

    jobs = [draw("summarize", 0, "out-1", 0.0)]
    # The same rows, half of them, or the same command twice over the same output.
    first, output = rng.choice(((0, "out-2"), (rows // 2, "out-2"), (rows // 2, "out-2"), (0, "out-1")))
    jobs.append(draw("summarize", first, output, rng.choice((0.0, 0.05, 0.5, 2.0))))
    if rng.random() < 0.4:
        jobs.append(draw(rng.choice(("moderate", "summarize")), rng.choice((0, rows // 4)), "out-3", rng.uniform(0.0, 3.0)))
    return tuple(jobs)


def _draw_event(rng: random.Random, at_s: float, clients: tuple[str, ...], *, embedded: bool) -> list[Event]:
    workers = ("worker",) if embedded else WORKERS
    kinds = {"kill client": 4, "stop client": 2, "kill worker": 4, "stop worker": 3, "kill temporal": 2, "stop temporal": 1}
    kinds |= {"cut vendor": 2, "hold vendor": 2, "mute vendor": 2, "cut body": 3, "lose reply": 2, "cancel": 2, "plan": 1}
    kinds |= {"kill supervisor": 2, "stop supervisor": 1} if embedded else {"cut temporal": 2, "hold temporal": 1, "terminate": 1}
    kinds |= {"lose temporal": 1, "kill all": 1}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    verb, _, target = kind.partition(" ")
    if target in ("client", "worker"):
        target = rng.choice(clients if target == "client" else workers)
    lasts_s = rng.uniform(0.5, 5.0)
    match verb:
        case "stop":
            # Now and then for longer than a heartbeat's timeout: what wakes up is a zombie.
            return [Event(at_s=at_s, kind="stop", target=target, for_s=33.0 if rng.random() < 0.04 else lasts_s)]
        case "cut" | "hold" | "mute" if target != "body":
            longest_s = LONGEST_HOLD_S if kind == "hold vendor" else lasts_s
            return [Event(at_s=at_s, kind=verb, target=target, for_s=min(lasts_s, longest_s))]
        case "cut":
            return [Event(at_s=at_s, kind="cut body", target="vendor", number=rng.choice((1, 2_000, 100_000, 400_000)))]
        case "lose" if target == "reply":
            return [Event(at_s=at_s, kind="lose reply", target="vendor", number=rng.choice((5_000, 50_000)))]
        case "kill" if target == "all":
            return [Event(at_s=at_s, kind="kill", target=name) for name in (*clients, *workers, "temporal", "supervisor")]
        case "lose" | "terminate":
            # A dead owner's run is drained within seconds, a living one's after a minute.
            return [
                *(Event(at_s=at_s, kind="kill", target=name) for name in clients),
                Event(at_s=at_s + 0.01, kind=verb, target="temporal"),
            ]
        case _:
            return [Event(at_s=at_s, kind=verb, target=target)]


def _draw_standing_faults(rng: random.Random) -> tuple[str, ...]:
    """Return the faults that hold from the round's start, as shares of each batch."""
    faults = []
    for name in REQUEST_FAULTS:
        if rng.random() < 0.15:
            faults.append(f"{name}={rng.choice((0.002, 0.02, 0.2))}")
    if rng.random() < 0.2:
        faults.append(f"list-lag={rng.choice((0.2, 0.5))}")
    if rng.random() < 0.15:
        faults.append(f"slow-upload={rng.choice((0.3, 1.0))}")
    if rng.random() < 0.1:
        faults.append(f"clock-skew={rng.choice((3600, -3600))}")
    if rng.random() < 0.1:
        faults.append("queue-limit=1500")
    if rng.random() < 0.15:
        faults.append(f"cut-results={rng.randint(1, 4)}")
    return tuple(faults)


def _draw_trap(rng: random.Random, points: tuple[str, ...], share: float) -> str:
    point, _, nth = rng.choice(points).partition("@")
    action = rng.choice(("kill", "kill", "stop"))
    return f"{point}={action}@{nth or 1}" if rng.random() < share else ""
