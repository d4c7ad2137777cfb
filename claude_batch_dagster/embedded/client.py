"""How a process uses a root's stack: attach, find, stop."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.embedded.folder import Folder, StackRecord, State, stack_folder
from claude_batch_dagster.embedded.processes import identify
from claude_batch_dagster.embedded.server import find_temporal
from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.verbs.connection import Connection

READY_TIMEOUT_S = 150.0
END_TIMEOUT_S = 30.0

_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running stack.

    Attributes:
        connection: How to reach its Temporal server.
        temporal_ui_url: Of Temporal's own UI.
        simulator_url: None where the work is real.
    """

    connection: Connection
    temporal_ui_url: str
    simulator_url: str | None
    _folder: Folder = field(repr=False, compare=False)

    def stay(self) -> None:
        """Let the stack outlive its clients, until no run of the root is open."""
        self._folder.set_stay(True)


@contextmanager
def attach(root: str, *, simulate: bool, detach: bool = False) -> Iterator[Stack]:
    """Give the root's running stack, which stays at least as long as the block.

    Whoever leaves last waits until the stack has ended, so that nothing runs afterwards.

    Args:
        root: The root that the work is in: for simulated work the simulated one (`root_for`).
        simulate: Whether the worker talks to a simulator instead of Anthropic.
        detach: The stack stays after a block that raised nothing, until no run of the root is open.

    Raises:
        TemporalUnavailableError: Transient. The stack cannot start; the message quotes its log.
    """
    find_temporal()
    root = absolute_uri(root)
    folder = Folder(stack_folder(root))
    folder.create()
    token = _enter(folder, root, simulate=simulate)
    try:
        stack = _await_ready(folder, root)
        yield stack
        if detach:
            stack.stay()
    finally:
        _leave(folder, token)


def find_stack(root: str) -> Stack | None:
    """Return the root's stack if it is ready, without starting or attaching anything."""
    folder = Folder(stack_folder(root))
    record = folder.read()
    return _describe(folder, root, record) if record and record.running and record.state is State.READY else None


def has_ended(root: str) -> bool:
    """Tell whether the root had a stack on this machine, and has none now."""
    record = Folder(stack_folder(root)).read()
    return record is not None and not record.running


def stop_stack(root: str) -> int | None:
    """End the root's stack whoever uses it; return how many clients it had, None where none ran."""
    folder = Folder(stack_folder(root))
    record = folder.read()
    if record is None or record.supervisor is None or not record.supervisor.alive:
        return None
    clients = folder.clients()
    folder.set_stay(False)
    record.supervisor.end(END_TIMEOUT_S)
    for process in record.children.values():
        process.end(1.0)
    _reap()
    return clients


def _enter(folder: Folder, root: str, *, simulate: bool) -> str:
    with folder.lock():
        token = folder.add_client()
        record = folder.read()
        if record is None or not record.running:
            _start_supervisor(folder, root, record, simulate=simulate)
    return token


def _start_supervisor(folder: Folder, root: str, former: StackRecord | None, *, simulate: bool) -> None:
    command = [sys.executable, "-m", "claude_batch_dagster.embedded", root, *(["--simulate"] if simulate else [])]
    with folder.log("supervisor").open("ab") as log:
        # A session of its own: Ctrl-C at the client's terminal is the client's alone.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    _started.append(process)
    folder.write(
        StackRecord(
            state=State.STARTING,
            supervisor=identify(process.pid),
            simulate=simulate,
            ports=former.ports if former else None,
            children=former.children if former else {},
        )
    )


def _await_ready(folder: Folder, root: str) -> Stack:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        record = folder.read()
        reason = None
        if record is None:
            reason = f"{folder.path}/stack.json was removed"
        elif record.state is State.READY and record.running:
            return _describe(folder, root, record)
        elif record.state is State.FAILED:
            reason = record.error
        elif not record.running:
            reason = "its supervisor ended while it was starting"
        elif time.monotonic() > deadline:
            reason = f"it was not ready within {READY_TIMEOUT_S:g} s"
        if reason is not None:
            raise TemporalUnavailableError(
                f"The embedded Temporal stack of {root} cannot start: {reason}. Nothing was sent. "
                f"Look into {folder.path}/*.log, or set TEMPORAL_ADDRESS to a server of your own.",
                folder=str(folder.path),
            )
        time.sleep(0.03)


def _describe(folder: Folder, root: str, record: StackRecord) -> Stack:
    assert record.ports is not None, "a ready stack has ports"
    ui_url = f"http://127.0.0.1:{record.ports.temporal_ui}"
    connection = Connection(
        address=f"127.0.0.1:{record.ports.temporal}",
        namespace="default",
        task_queue=record.task_queue,
        ui_url=ui_url,
        revive=partial(_revive, folder, root),
    )
    simulator_url = f"http://127.0.0.1:{record.ports.simulator}" if record.simulate else None
    return Stack(connection=connection, temporal_ui_url=ui_url, simulator_url=simulator_url, _folder=folder)


def _revive(folder: Folder, root: str) -> None:
    """Start a stack again whose supervisor was killed; one that was told to end stays ended."""
    with folder.lock():
        record = folder.read()
        if record is None or record.running or record.state not in (State.STARTING, State.READY):
            return
        _start_supervisor(folder, root, record, simulate=record.simulate)
    _await_ready(folder, root)


def _leave(folder: Folder, token: str) -> None:
    with folder.lock():
        folder.remove_client(token)
        record = folder.read()
        is_last = folder.clients() == 0 and not folder.stays
    if is_last and record and record.supervisor:
        record.supervisor.await_end(END_TIMEOUT_S)
    _reap()


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]
