"""The supervisor: starts a root's Temporal server, worker and simulator, keeps them running, ends them with their last client.

starting ─▶ ready ─▶ ending        failed may follow starting
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import filelock

from claude_batch_dagster.embedded.folder import Folder, Ports, StackRecord, State, stack_folder
from claude_batch_dagster.embedded.processes import Child, identify
from claude_batch_dagster.embedded.server import temporal_command
from claude_batch_dagster.verbs.connection import task_queue_of

TICK_S = 0.25
START_TIMEOUT_S = 90.0
PREDECESSOR_TIMEOUT_S = 60.0
WORKER_GRACE_S = 10.0
SERVER_GRACE_S = 5.0
OPEN_RUNS_EVERY_S = 2.0
OPEN_RUNS_EVERY_REMOTE_S = 30.0
ASK_TEMPORAL_TIMEOUT_S = 3.0
RPC_TIMEOUT = timedelta(seconds=3)
SIMULATED_BATCH_S = 3.0
SIMULATED_POLL_S = 1


class _StartError(Exception):
    """The stack cannot start; the message is for its clients."""


class Supervisor:
    """One root's stack, from its start to its end."""

    def __init__(self, root: str, *, simulate: bool) -> None:
        self._root = root
        self._simulate = simulate
        self._folder = Folder(stack_folder(root))
        self._asked_to_end = False
        self._children: dict[str, Child] = {}
        self._ports = Ports(temporal=0, temporal_ui=0, simulator=0)
        self._open_runs_checked_s = 0.0

    def run(self) -> int:
        """Run the stack until nobody needs it; return an exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_end)
        try:
            with self._folder.supervisor_lock(PREDECESSOR_TIMEOUT_S):
                return self._supervise()
        except filelock.Timeout:
            self._publish(
                State.FAILED,
                error=f"another stack, perhaps of another container or machine, holds {self._folder.path}/supervisor.lock "
                f"for {PREDECESSOR_TIMEOUT_S:g} s",
            )
            return 1

    def _supervise(self) -> int:
        previous = self._folder.read()
        self._end_strays(previous)
        try:
            self._start(previous.ports if previous else None)
            self._publish(State.READY)
            self._say(f"ready: Temporal 127.0.0.1:{self._ports.temporal}, UI http://127.0.0.1:{self._ports.temporal_ui}")
            while not self._asked_to_end and not self._ends_now():
                time.sleep(TICK_S)
                self._revive_children()
        except _StartError as error:
            self._say(f"cannot start: {error}")
            self._publish(State.FAILED, error=str(error))
            return 1
        except BaseException as error:
            self._say(f"failed: {error!r}")
            self._publish(State.FAILED, error=repr(error))
            raise
        else:
            self._publish(State.ENDING)
            return 0
        finally:
            for name, grace_s in (("worker", WORKER_GRACE_S), ("simulator", SERVER_GRACE_S), ("temporal", SERVER_GRACE_S)):
                if child := self._children.get(name):
                    child.end(grace_s)
            self._say("ended")

    def _start(self, former: Ports | None) -> None:
        database = self._folder.path / "temporal.db"
        for attempt in range(3):
            self._ports = _free_ports(former if attempt == 0 else None)
            if attempt == 2:
                # The workflows in it are lost, the runs are not: their records lie in the root, and whoever waits for one drains it.
                aside = database.with_suffix(f".db.{int(time.time())}")
                self._say(f"Temporal does not start on {database}: it is set aside as {aside.name}")
                for suffix in ("", "-wal", "-shm"):
                    if (file := Path(f"{database}{suffix}")).exists():
                        file.replace(f"{aside}{suffix}")
            self._children = self._describe_children(database)
            self._children["temporal"].start()
            if self._simulate:
                self._children["simulator"].start()
            if self._await_ready("temporal"):
                break
            for child in self._children.values():
                child.end(SERVER_GRACE_S)
        else:
            raise self._not_started("temporal")
        # The worker needs both: it starts once they answer.
        for name in ("simulator", "worker") if self._simulate else ("worker",):
            if name == "worker":
                self._children[name].start()
            if not self._await_ready(name):
                raise self._not_started(name)

    def _describe_children(self, database: Path) -> dict[str, Child]:
        ports, folder = self._ports, self._folder
        environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
        worker_environ = worker_environment(environ, ports, simulate=self._simulate)
        python = (sys.executable, "-m")
        simulator = (
            *python,
            "claude_batch_dagster.simulator",
            "--port",
            str(ports.simulator),
            "--books",
            str(folder.path / "books"),
            "--seconds",
            str(SIMULATED_BATCH_S),
            "--exit-with-parent",
        )
        children = [
            Child(
                "temporal",
                lambda: temporal_command(database, port=ports.temporal, ui_port=ports.temporal_ui),
                environ,
                folder.log("temporal"),
                "Temporal Server:",
            ),
            Child(
                "worker", lambda: (*python, "temporal_worker", "--exit-with-parent"), worker_environ, folder.log("worker"), "worker ready"
            ),
        ]
        if self._simulate:
            children.append(Child("simulator", lambda: simulator, environ, folder.log("simulator"), "simulator ready"))
        return {child.name: child for child in children}

    def _await_ready(self, name: str) -> bool:
        child = self._children[name]
        deadline = time.monotonic() + START_TIMEOUT_S
        while not child.ready:
            if child.exit_code is not None or time.monotonic() > deadline:
                return False
            if self._asked_to_end or self._folder.clients() == 0:
                raise _StartError("its last client ended while it was starting")
            time.sleep(0.03)
        self._publish(State.STARTING)
        return True

    def _not_started(self, name: str) -> _StartError:
        child = self._children[name]
        said = [line for line in child.output().splitlines() if line.strip()][-3:]
        how = f"ended with exit code {child.exit_code}" if child.exit_code is not None else f"was not ready within {START_TIMEOUT_S:g} s"
        return _StartError(f"its {name} {how}: {' / '.join(said) or 'it said nothing'} (the whole output: {child.log})")

    def _revive_children(self) -> None:
        for child in self._children.values():
            if line := child.revive():
                self._say(line)
                self._publish(State.READY)

    def _ends_now(self) -> bool:
        if self._folder.clients() or (self._folder.stays and self._has_open_runs()):
            return False
        with self._folder.lock():
            if self._folder.clients():
                return False
            self._folder.set_stay(False)
            self._publish_unlocked(State.ENDING)
        return True

    def _has_open_runs(self) -> bool:
        """Tell whether a run of the root goes on here; one without a workflow would keep the stack for ever, and nobody works on it."""
        every_s = OPEN_RUNS_EVERY_REMOTE_S if "://" in self._root else OPEN_RUNS_EVERY_S
        if time.monotonic() - self._open_runs_checked_s < every_s:
            return True
        from claude_batch_dagster.core.errors import ClaudeBatchError
        from claude_batch_dagster.storage.plans import read_log
        from claude_batch_dagster.storage.store import Store

        try:
            entries = read_log(Store(self._root)).open
            is_open = bool(entries) and asyncio.run(self._is_any_running([entry.run_id for entry in entries]))
        except ClaudeBatchError as error:
            self._say(f"cannot tell whether a run is open: {error}")
            is_open = True
        self._open_runs_checked_s = time.monotonic()
        return is_open

    async def _is_any_running(self, run_ids: Sequence[str]) -> bool:
        from temporalio.client import WorkflowExecutionStatus
        from temporalio.service import RPCError, RPCStatusCode

        from claude_batch_dagster.core.contract import workflow_id
        from claude_batch_dagster.verbs.connection import Connection, connect

        client = await connect(Connection(address=f"127.0.0.1:{self._ports.temporal}"), ASK_TEMPORAL_TIMEOUT_S)
        for run_id in run_ids:
            try:
                found = await client.get_workflow_handle(workflow_id(run_id)).describe(rpc_timeout=RPC_TIMEOUT)
            except RPCError as error:
                if error.status is not RPCStatusCode.NOT_FOUND:
                    return True
                continue
            if found.status is WorkflowExecutionStatus.RUNNING:
                return True
        return False

    def _end_strays(self, previous: StackRecord | None) -> None:
        for name, process in (previous.children if previous else {}).items():
            if process.alive:
                self._say(f"{name} of a former stack still runs (pid {process.pid}): it is ended")
                process.end(SERVER_GRACE_S)

    def _publish(self, state: State, error: str | None = None) -> None:
        with self._folder.lock():
            self._publish_unlocked(state, error)

    def _publish_unlocked(self, state: State, error: str | None = None) -> None:
        running = {name: identity for name, child in self._children.items() if (identity := child.identity)}
        record = StackRecord(
            state=state,
            supervisor=identify(os.getpid()),
            simulate=self._simulate,
            task_queue=task_queue_of(os.environ),
            ports=self._ports,
            children=running,
            error=error,
        )
        self._folder.write(record)

    def _ask_to_end(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_end = True

    def _say(self, text: str) -> None:
        print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", flush=True)


def worker_environment(environ: Mapping[str, str], ports: Ports, *, simulate: bool) -> dict[str, str]:
    """Return the worker's environment: the caller's, without its Temporal settings, and without its key where work is simulated."""
    dropped = ("TEMPORAL_", "ANTHROPIC_") if simulate else ("TEMPORAL_",)
    result = {name: value for name, value in environ.items() if not name.startswith(dropped)}
    result |= {"TEMPORAL_ADDRESS": f"127.0.0.1:{ports.temporal}", "TEMPORAL_NAMESPACE": "default", "TEMPORAL_CONFIG_FILE": os.devnull}
    if simulate:
        result |= {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{ports.simulator}", "ANTHROPIC_API_KEY": "simulated"}
        result.setdefault("CLAUDE_BATCH_POLL_SECONDS", str(SIMULATED_POLL_S))
    return result


def _free_ports(former: Ports | None) -> Ports:
    """Return three free ports: the former ones where they are still free."""
    wanted = (former.temporal, former.temporal_ui, former.simulator) if former else (0, 0, 0)
    sockets = [_bind(port) for port in wanted]
    try:
        temporal, temporal_ui, simulator = (bound.getsockname()[1] for bound in sockets)
    finally:
        for bound in sockets:
            bound.close()
    return Ports(temporal=temporal, temporal_ui=temporal_ui, simulator=simulator)


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.bind(("127.0.0.1", 0))
    return bound


def main(arguments: list[str]) -> int:
    """Run a root's supervisor; return an exit code."""
    *_, root = [argument for argument in arguments if argument != "--simulate"]
    return Supervisor(root, simulate="--simulate" in arguments).run()
