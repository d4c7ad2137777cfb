"""Plays a round: builds its house, lets the storm happen, then waits in quiet until every command has ended well."""

import asyncio
import heapq
import itertools
import json
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError

from claude_batch_dagster.core.contract import PROGRESS_QUERY, Progress, workflow_id
from claude_batch_dagster.core.errors import ClaudeBatchError
from claude_batch_dagster.embedded.folder import Folder, State
from claude_batch_dagster.simulator.server import Simulator, serve_in_thread
from claude_batch_dagster.storage.deferrals import list_deferrals
from claude_batch_dagster.storage.plans import read_done, read_entries
from claude_batch_dagster.storage.store import Store
from tests.chaos.books import Expected, Verdict, find_unnamed, judge_round
from tests.chaos.house import TEMPORAL, House, Member, clean_environment, end_marked, python_module, send_signal, temporal_server
from tests.chaos.proxy import Proxy
from tests.chaos.storm import WORKERS, Event, JobShape, Round
from tests.stack import free_port

TICK_S = 0.05
RPC_TIMEOUT = timedelta(seconds=1)
LONGEST_START_S = 90.0
USUAL_START_S = 3.0
SLOWEST_PACE = 8.0
DEFERRED_PACE = 2.0
"""A machine on which all takes longer gets a storm that takes longer."""
LONGEST_QUIET_S = 600.0
QUIET_TRIES = 8
LOOK_EVERY_S = 5.0
TASK_NAMES = {"summarize": "summaries", "moderate": "labels"}
# What the vendor and the network may delay a body must stay below the settle time (PROTOCOL, A1): see LONGEST_HOLD_S in storm.py.
SETTINGS = {"CLAUDE_BATCH_POLL_SECONDS": "0.2", "CLAUDE_BATCH_SETTLE_SECONDS": "5", "CLAUDE_BATCH_SEND_SECONDS": "2"}
BLAMELESS_EXITS = frozenset({0, 3})


@dataclass(slots=True, kw_only=True)
class Job:
    """A client's command, which is typed again until it ends well."""

    shape: JobShape
    member: Member
    expected: Expected
    settled: bool = False
    quiet_tries: int = 0
    quiet_since_start: int | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a round came to.

    Attributes:
        kills: Signals that took a process away, by what they were.
        asked: Questions that this program answered in a person's place.
        refusals: Exit codes of commands that failed in quiet.
        deferred: Dagster runs whose answers the sensor alone saw published.
        given_up: Ends that were left to a person.
    """

    verdict: Verdict
    kills: Counter[str]
    faults: Counter[str]
    starts: int
    asked: int
    refusals: list[str]
    took_s: float
    deferred: int = 0
    given_up: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.verdict.good


class InterruptedRoundError(RuntimeError):
    """The program was told to end."""


class _Player:
    """One round on the way."""

    def __init__(
        self, drawn: Round, folder: Path, simulator: Simulator, vendor: Proxy, exits: ExitStack, mark: str, stop: threading.Event
    ) -> None:
        self.drawn = drawn
        self.folder = folder
        self.simulator = simulator
        self.wires = {"vendor": vendor}
        self.root = folder / "root" / "simulated"
        self.house = House()
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter(name.partition("=")[0] for name in drawn.faults)
        self.log: list[str] = []
        self.asked = 0
        self.refusals: list[str] = []
        self.deferred = self.given_up = 0
        self.lost: list[str] = []
        self._stop = stop
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._asked_since_s: dict[tuple[str, int | None], float] = {}
        self._looked_at_s = 0.0
        self._asides: list[Member] = []
        self._began_s = time.monotonic()
        self._environ = {
            **clean_environment(mark),
            **SETTINGS,
            "CLAUDE_BATCH_ROOT": str(folder / "root"),
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{vendor.port}",
            "ANTHROPIC_API_KEY": "any",
        }
        if drawn.embedded:
            self.house.stack_folder = self.root / "embedded"
        else:
            self._build_house(exits)
        self.jobs = [self._make_job(number, shape) for number, shape in enumerate(drawn.jobs, 1)]
        if drawn.deferred:
            self._add_sensor()

    def play(self) -> None:
        self._write_sources()
        self.house.tend(self._began_s, [0.0])
        if not self.drawn.embedded:
            self._wait_for_worker()
        begins_s = self._now_s()
        for job in self.jobs:
            self._at(begins_s + job.shape.starts_s, job.member.start)
        if self.drawn.embedded:
            self._wait_for_worker()
        pace = min(SLOWEST_PACE, max(1.0, self._now_s() / USUAL_START_S))
        if self.drawn.deferred:
            # A Dagster run takes longer to load than to ask.
            self._wait_for_first_run()
            pace = min(pace, DEFERRED_PACE)
        begins_s = self._now_s()
        for event in self.drawn.events:
            self._at(begins_s + pace * event.at_s, lambda event=event: self._happen(event, pace))
        while self._due:
            self._tick()
            for job in self.jobs:
                self._restart_in_storm(job)
        self._calm()
        if self.drawn.deferred:
            self._wait_for_sensor()
        self._wait_in_quiet()

    def _wait_for_worker(self) -> None:
        """Let the storm begin when there is something to hit."""
        while self._now_s() < LONGEST_START_S and not self._is_ready():
            self._tick()

    def _wait_for_first_run(self) -> None:
        deadline_s = self._now_s() + LONGEST_START_S
        store = Store(str(self.root))
        while self._now_s() < deadline_s and not store.list("plans") and any(job.member.exit_code is None for job in self.jobs):
            self._tick()

    def _is_ready(self) -> bool:
        if self.house.stack_folder is None:
            return b"worker ready" in self.house.members[WORKERS[0]].log.read_bytes()
        record = Folder(self.house.stack_folder).read()
        return record is not None and record.state is State.READY

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    def _build_house(self, exits: ExitStack) -> None:
        port = free_port()
        wire = exits.enter_context(Proxy(port))
        self.wires["temporal"] = wire
        self._environ |= {"TEMPORAL_ADDRESS": f"127.0.0.1:{wire.port}", "CHAOS_TEMPORAL_ADDRESS": f"127.0.0.1:{port}"}
        place = self.folder / "temporal"
        place.mkdir()
        self._add_member("temporal", temporal_server(port, place / "temporal.db"), cwd=place)
        for name, traps in zip(WORKERS, self.drawn.worker_traps, strict=True):
            self._add_member(name, python_module("temporal_worker"), traps=traps)

    def _add_member(self, name: str, command: list[str], *, cwd: Path | None = None, traps: str = "") -> None:
        self.house.members[name] = Member(
            name=name,
            command=command,
            environ=self._environ,
            log=self.folder / f"{name}.log",
            cwd=cwd or self.folder,
            traps=traps,
        )

    def _make_job(self, number: int, shape: JobShape) -> Job:
        source = f"source-{shape.first}.parquet"
        command = python_module(
            "claude_batch_dagster.cli", "run", "--source", source, "--task", shape.task, "--column", "text", "--key", "id"
        )
        command += ["--output", shape.output, "--max-requests-per-batch", str(shape.per_batch)]
        command += ["--max-in-flight-batches", str(shape.in_flight), "--max-cost-usd", "1000"]
        command += ["--labels", "ok,spam,hate"] if shape.task == "moderate" else []
        if self.drawn.deferred:
            command = python_module("tests.chaos.deferring", "ask", str(number - 1))
        name = f"client-{number}"
        member = Member(
            name=name, command=command, environ=self._environ, log=self.folder / f"{name}.log", cwd=self.folder, traps=shape.traps
        )
        ids = tuple(range(shape.first, shape.first + shape.count))
        expected = Expected(
            task=TASK_NAMES[shape.task],
            output=self.folder / shape.output / (TASK_NAMES[shape.task] if self.drawn.deferred else ""),
            ids=ids,
            texts=tuple(self._text(number) for number in ids),
        )
        return Job(shape=shape, member=member, expected=expected)

    def _add_sensor(self) -> None:
        home = self.folder / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        self._environ["DAGSTER_HOME"] = str(home)
        jobs = [
            {
                "task": job.shape.task,
                "source": f"source-{job.shape.first}.parquet",
                "output": job.shape.output,
                "wait_s": job.shape.wait_s,
                "per_batch": job.shape.per_batch,
                "in_flight": job.shape.in_flight,
            }
            for job in self.jobs
        ]
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        prepare = python_module("tests.chaos.deferring", "prepare")
        subprocess.run(prepare, cwd=self.folder, env=self._environ, check=True, capture_output=True)
        self._add_member("sensor", python_module("tests.chaos.deferring", "watch"), traps=self.drawn.sensor_traps)

    def _wait_for_sensor(self) -> None:
        """Let the sensor alone see to all that was deferred, and check that it is published."""
        store = Store(str(self.root))
        deadline = time.monotonic() + LONGEST_QUIET_S
        calm_at_s = time.time()
        while any(job.member.pid is not None for job in self.jobs) or (list_deferrals(store) and not self._has_given_up(calm_at_s)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{list_deferrals(store)} is deferred after {LONGEST_QUIET_S:g} s of quiet")
            self._tick()
            self._answer_questions()
        self.given_up = len(list_deferrals(store))
        self._say(f"all was collected but {self.given_up}")
        for entry in read_entries(store):
            done = read_done(store, entry.number)
            for job in self.jobs:
                member = job.member
                if member.popen is None or member.popen.pid != entry.owner.pid or member.exit_code not in (0, -signal.SIGKILL):
                    continue
                if done is not None and done.batches and done.outcome != "failed" and not self.given_up:
                    self.deferred += 1
                    if not (job.expected.output / "part-0.parquet").exists():
                        self.lost.append(f"{entry.label} of {member.name} was paid for, and no sensor collected it")
        for job in self.jobs:
            job.member.command = [*job.member.command, "--wait"]

    def _has_given_up(self, since_s: float) -> bool:
        file = self.folder / "tick.json"
        if not file.exists():
            return False
        tick = json.loads(file.read_text())
        return tick["at_s"] > since_s and not tick["requests"] and "no further one is requested" in (tick["told"] or "")

    def _text(self, number: int) -> str:
        return f"Row {number} of round {self.drawn.number}: the tent kept us dry for a week of rain."

    def _write_sources(self) -> None:
        for job in self.jobs:
            table = pa.table({"id": list(job.expected.ids), "text": list(job.expected.texts)})
            pq.write_table(table, self.folder / f"source-{job.shape.first}.parquet")

    def _at(self, at_s: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self._began_s + at_s, next(self._order), work))

    def _after(self, pause_s: float, work: Callable[[], None]) -> None:
        self._at(self._now_s() + pause_s, work)

    def _tick(self) -> None:
        if self._stop.is_set():
            raise InterruptedRoundError
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            heapq.heappop(self._due)[2]()
        self.house.tend(now_s, [0.2, 0.5, 1.5])
        for member in (*(job.member for job in self.jobs), *self._asides):
            member.resume_where_trapped(now_s)
        time.sleep(TICK_S)

    def _say(self, text: str) -> None:
        self.log.append(f"{self._now_s():6.2f} s {text}")

    def _find_pid(self, name: str) -> int | None:
        for job in self.jobs:
            if job.member.name == name:
                return job.member.pid
        return self.house.find_pid(name)

    def _happen(self, event: Event, pace: float) -> None:
        match event.kind:
            case "kill":
                self._kill(event.target)
            case "stop":
                pid = self._find_pid(event.target)
                if send_signal(pid, signal.SIGSTOP):
                    self.kills[f"stop {event.target.partition('-')[0]}"] += 1
                    self._say(f"stop {event.target} ({pid}) for {pace * event.for_s:.1f} s")
                    self._after(pace * event.for_s, lambda: send_signal(pid, signal.SIGCONT) and None)
            case "cut" | "hold" | "mute":
                self.kills[f"{event.kind} {event.target}"] += 1
                self._say(str(event))
                wire = self.wires[event.target]
                getattr(wire, event.kind)()
                self._after(event.for_s, wire.open)
            case "cut body" | "lose reply":
                self.kills[event.kind] += 1
                self._say(str(event))
                wire = self.wires["vendor"]
                (wire.cut_after if event.kind == "cut body" else wire.lose_reply_after)(int(event.number))
            case "fault":
                self.faults[event.target.partition("@")[0]] += 1
                self._say(str(event))
                self.simulator.faults.switch_on(f"{event.target}={event.number:g}")
            case "lose":
                self._kill("temporal")
                self.kills["lose temporal"] += 1
                self.house.lose_temporal()
            case "plan":
                if not self.drawn.deferred:
                    self._start_aside("plan", [*self.jobs[0].member.command[:3], "plan", *self.jobs[0].member.command[4:-2]])
            case "cancel" | "terminate":
                self._end_newest_run(event.kind)
            case kind:
                raise AssertionError(kind)

    def _kill(self, target: str) -> None:
        pid = self._find_pid(target)
        if send_signal(pid, signal.SIGKILL):
            self.kills[f"kill {target.partition('-')[0]}"] += 1
            self._say(f"kill {target} ({pid})")

    def _end_newest_run(self, how: str) -> None:
        store = Store(str(self.root))
        open_runs = [entry for entry in read_entries(store) if read_done(store, entry.number) is None]
        address = self.house.temporal_address()
        if not open_runs or address is None:
            return
        newest = max(open_runs, key=lambda entry: entry.number)
        self.kills[how] += 1
        self._say(f"{how} {newest.label}")
        if how == "cancel":
            self._start_aside("cancel", python_module("claude_batch_dagster.cli", "cancel", newest.label))
        else:
            command = [str(TEMPORAL), "workflow", "terminate", "--workflow-id", workflow_id(newest.run_id), "--address", address]
            self._start_aside("terminate", command)

    def _start_aside(self, name: str, command: list[str]) -> None:
        member = Member(
            name=name,
            command=command,
            environ=self._environ,
            log=self.folder / f"{name}-{len(self._asides)}.log",
            cwd=self.folder,
        )
        member.start()
        self._asides.append(member)

    def _restart_in_storm(self, job: Job) -> None:
        """Type a killed command again; one that ended by itself is typed again in quiet."""
        code = job.member.exit_code
        if not job.shape.again:
            return
        if code == -signal.SIGKILL and job.member.restart_at_s is None:
            job.member.restart_at_s = time.monotonic() + (0.3, 1.0, 2.0)[job.member.starts % 3]
        if job.member.restart_at_s is not None and time.monotonic() >= job.member.restart_at_s:
            job.member.start()

    def _calm(self) -> None:
        self._say("quiet")
        for wire in self.wires.values():
            wire.open()
        for name in self.simulator.faults.active():
            # A vendor's clock does not jump.
            if name != "clock-skew":
                self.simulator.faults.clear(name)
        for name in ("temporal", "supervisor", "worker", "sensor", *WORKERS, *(job.member.name for job in self.jobs)):
            send_signal(self._find_pid(name), signal.SIGCONT)

    def _wait_in_quiet(self) -> None:
        deadline = time.monotonic() + LONGEST_QUIET_S
        while not all(job.settled for job in self.jobs):
            if time.monotonic() > deadline:
                waiting = [job.member.name for job in self.jobs if not job.settled]
                raise TimeoutError(f"{', '.join(waiting)} did not end within {LONGEST_QUIET_S:g} s of quiet")
            self._tick()
            for job in self.jobs:
                self._tend_in_quiet(job)
            self._answer_questions()
        while any(member.pid is not None for member in self._asides):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[member.name for member in self._asides if member.pid]} did not end in quiet")
            self._tick()

    def _tend_in_quiet(self, job: Job) -> None:
        member = job.member
        if job.settled or member.pid is not None:
            return
        code = member.exit_code
        # What ended before the quiet began says nothing: the command is typed once more.
        if job.quiet_tries and code == 0:
            job.settled = True
            return
        if job.quiet_tries and code == 3 and not _has_open_rows(job.expected.output):
            job.settled = True
            return
        if job.quiet_tries and code is not None and code not in BLAMELESS_EXITS:
            self.refusals.append(f"{member.name} exit {code}: {_last_line(member.log)}")
        if job.quiet_tries >= QUIET_TRIES:
            raise TimeoutError(f"{member.name} was typed {QUIET_TRIES} times in quiet and ended with {code}: {_last_line(member.log)}")
        job.quiet_tries += 1
        self._say(f"{member.name} again (exit {code})")
        member.start()

    def _answer_questions(self) -> None:
        """Do what a person would, once a run has asked for a while: look into the vendor's books, and answer."""
        now_s = time.monotonic()
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        address = self.house.temporal_address()
        if address is None or any(member.pid is not None and member.name == "answer" for member in self._asides):
            return
        asked = asyncio.run(_find_questions(address, Store(str(self.root))))
        self._asked_since_s = {question: self._asked_since_s.get(question, now_s) for question in asked}
        for question, since_s in self._asked_since_s.items():
            if now_s - since_s >= LOOK_EVERY_S:
                self._answer(*question)
                self._asked_since_s = {}
                return

    def _answer(self, label: str, shard: int | None) -> None:
        self.asked += 1
        words = [label, "resume"] if shard is None else [label, str(shard), "resend"]
        unnamed = find_unnamed(self.simulator.books, Store(str(self.root)))
        if shard is not None and unnamed:
            # It may be the shard's: then it is taken, or proved to be another's.
            words = [label, str(shard), "adopt", unnamed[self.asked % len(unnamed)]]
        self._say(f"answer {' '.join(words)}")
        self._start_aside("answer", python_module("claude_batch_dagster.cli", "answer", *words))


async def _find_questions(address: str, store: Store) -> list[tuple[str, int | None]]:
    """Return what open runs ask a person: about a shard, or (None) about the run."""
    asked: list[tuple[str, int | None]] = []
    try:
        client = await Client.connect(address)
        for entry in read_entries(store):
            if read_done(store, entry.number) is None:
                handle = client.get_workflow_handle(workflow_id(entry.run_id))
                told = await handle.query(PROGRESS_QUERY, result_type=Progress, rpc_timeout=RPC_TIMEOUT)
                asked += [(entry.label, parked.shard) for parked in told.parked]
                asked += [(entry.label, None)] if told.question else []
    except (RPCError, RuntimeError, WorkflowQueryFailedError, ClaudeBatchError):
        return []
    return asked


def _has_open_rows(output: Path) -> bool:
    """Tell whether some rows are left for the next run."""
    statuses = pq.read_table(output / "part-0.parquet", columns=["status"])["status"].to_pylist()
    return bool({"errored", "expired", "canceled", "pending"} & set(statuses))


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def play_round(drawn: Round, folder: Path, stop: threading.Event, *, keep: bool) -> Outcome:
    """Play a round in a folder of its own, which is left where the round is bad; nothing that it started runs afterwards."""
    began_s = time.monotonic()
    mark = f"{folder}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    with ExitStack() as exits:
        simulator = exits.enter_context(serve_in_thread(books=folder / "books", seconds=drawn.batch_s, faults=drawn.faults))
        vendor = exits.enter_context(Proxy(simulator.port))
        exits.callback(end_marked, mark)
        player = _Player(drawn, folder, simulator, vendor, exits, mark, stop)
        failure = None
        try:
            player.play()
        except (TimeoutError, ClaudeBatchError) as error:
            failure = str(error)
        end_marked(mark)
        verdict = judge_round(simulator.books, player.root, [job.expected for job in player.jobs])
        verdict.errors += player.lost
        if failure is not None:
            verdict.errors.insert(0, failure)
        members = [*player.house.members.values(), *(job.member for job in player.jobs)]
        for member in members:
            if member.popen is not None:
                member.popen.wait(5)
    outcome = Outcome(
        verdict=verdict,
        kills=player.kills,
        faults=player.faults,
        starts=sum(member.starts for member in members),
        asked=player.asked,
        refusals=player.refusals,
        deferred=player.deferred,
        given_up=player.given_up,
        took_s=time.monotonic() - began_s,
        log=player.log,
    )
    if outcome.good and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "events.log").write_text("\n".join(player.log) + "\n")
    return outcome
