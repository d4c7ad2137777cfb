"""`dev`, `demo`, `worker`, `simulator`: processes on this machine, each ended with its command."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from claude_batch_dagster.cli.interruption import INTERRUPTED, NUMBERS, SAME_PRESS_S, let_go_of
from claude_batch_dagster.cli.options import GroupedCommand, existing_file, option, root_option, simulate_option
from claude_batch_dagster.cli.reach import Place, Reach, find_place
from claude_batch_dagster.cli.wording import SIMULATED, command
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.storage.store import absolute_uri, join_uri
from claude_batch_dagster.verbs.endpoint import DEFAULT_ROOT, has_credentials, is_simulated

PASS_ARGUMENTS_ON = {"ignore_unknown_options": True, "help_option_names": []}
DAGSTER_PORT = 3000
DAGSTER_START_TIMEOUT_S = 90.0
CHILD_GRACE_S = 20.0
DAGSTER_WARNINGS = "ignore:Function `dev_command` is superseded"
_child_groups: list[int] = []
INSTANCE_SETTINGS = "telemetry:\n  enabled: false\nnux:\n  enabled: false\n"


@click.command(short_help="A worker for a Temporal server of your own.", context_settings=PASS_ARGUMENTS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> NoReturn:
    """Run a worker: needs TEMPORAL_ADDRESS and the API key. The embedded stack has its own."""
    _become("temporal_worker", arguments)


@click.command(short_help="A simulator of the Message Batches API.", context_settings=PASS_ARGUMENTS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulator(arguments: tuple[str, ...]) -> NoReturn:
    """Run a simulator of the Message Batches API on this machine, for tests and trials."""
    _become("claude_batch_dagster.simulator", arguments)


@click.command(
    cls=GroupedCommand,
    short_help="Everything with the Dagster UI, until Ctrl-C.",
    examples=(("your own code location", "claude-batch dev --workspace workspace.yaml"),),
)
@root_option
@simulate_option
@option(
    "What",
    "--workspace",
    "-w",
    type=existing_file,
    metavar="FILE",
    help="Dagster's workspace file.  [default: workspace.yaml, else the demo]",
)
@option("How", "--port", type=int, metavar="N", help=f"Port of the Dagster UI.  [default: {DAGSTER_PORT}, else a free one]")
def dev(root: str | None, simulate: bool, workspace: Path | None, port: int | None) -> int:
    """Run everything with the Dagster UI on this machine, until Ctrl-C.

    Starts a Temporal server, a worker and `dagster dev`. Without ANTHROPIC_API_KEY and without ANTHROPIC_BASE_URL the work is simulated.
    """
    if shutil.which("dagster-webserver", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))) is None:
        raise UsageError("The Dagster UI is not installed. Nothing was started. Run `pip install 'claude-batch-dagster[local]'`.")
    place = _find_local_place(root, simulate=simulate)
    port = _free_port(DAGSTER_PORT) if port is None else _check_port(port)
    line = f"Dagster UI  http://127.0.0.1:{port}" + (f"   {SIMULATED}" if place.simulated else "") + "   (Ctrl-C ends everything)"
    with _signals_interrupt():
        try:
            with Reach(place, _say) as connection:
                _announce(place)
                if connection.start is not None:
                    connection.start()
                environ = {"PYTHONWARNINGS": DAGSTER_WARNINGS, **child_environment(place)}
                dagster = [sys.executable, "-m", "dagster", "dev", *_code_location(workspace), "-h", "127.0.0.1", "-p", str(port)]
                with _child(dagster, environ) as process:
                    _announce_when_open(process, port, line)
                    return process.wait()
        except KeyboardInterrupt:
            _say("\n".join(["Everything is ended.", *_open_runs(place)]))
            return 0


@click.command(cls=GroupedCommand, short_help="Summarize and label 300 real reviews, then leave.")
@root_option
@simulate_option
def demo(root: str | None, simulate: bool) -> int:
    """Summarize and label 300 real product reviews of seven days, then leave: answers in Parquet, nothing left running.

    Without ANTHROPIC_API_KEY and without ANTHROPIC_BASE_URL the answers are simulated, and cost nothing.
    """
    place = _find_local_place(root, simulate=simulate)
    with _signals_interrupt(), Reach(place, _say) as connection:
        _announce(place)
        if not place.simulated:
            _say(
                "A key is set, so Claude is asked and paid: about 600 short requests, some cents. For simulated answers: claude-batch demo --simulate"
            )
        if connection.start is not None:
            connection.start()
        with _child([sys.executable, "-m", "claude_batch_dagster.demo"], child_environment(place)) as process:
            code = process.wait()
        if code == 0:
            click.echo("\n".join(demo_hints(place)))
    return code


def demo_hints(place: Place) -> list[str]:
    """Return what to do after the demo."""
    labels = join_uri(place.root, "output", "review_labels")
    code = f"import pandas as pd; print(pd.read_parquet({labels!r}).label.value_counts())"
    interpreter = Path(sys.executable)
    if interpreter.is_relative_to(Path.cwd()):
        interpreter = interpreter.relative_to(Path.cwd())
    lines = ["", "Look at it:       " + f'{interpreter} -c "{code}"', "With the UIs:     claude-batch dev   (or: make dev)"]
    if place.simulated:
        lines.append(f"{SIMULATED}.")
        lines.append("With real answers: export ANTHROPIC_API_KEY=sk-ant-... and the same command again.")
    return lines


def child_environment(place: Place) -> dict[str, str]:
    """Return the environment of a Dagster process that works in this place; it attaches to the stack that this command holds."""
    environ = dict(os.environ)
    environ["CLAUDE_BATCH_ROOT"] = absolute_uri(place.base)
    if place.simulate:
        environ["CLAUDE_BATCH_SIMULATE"] = "1"
    if not environ.get("DAGSTER_HOME"):
        home = Path(absolute_uri(DEFAULT_ROOT) if "://" in place.base else absolute_uri(place.base)) / "dagster"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            (home / "dagster.yaml").write_text(INSTANCE_SETTINGS)
        environ["DAGSTER_HOME"] = str(home)
    return environ


def _find_local_place(root: str | None, *, simulate: bool) -> Place:
    return find_place(root, simulate=simulate or is_simulated(os.environ) or not has_credentials(os.environ), needs_key=True)


def _code_location(workspace: Path | None) -> list[str]:
    if workspace is None and not Path("workspace.yaml").exists():
        return ["-m", "claude_batch_dagster.demo.definitions"]
    return ["-w", str(workspace or "workspace.yaml")]


def _open_runs(place: Place) -> list[str]:
    """Return what becomes of the runs that were going on."""
    from claude_batch_dagster.storage.plans import read_log
    from claude_batch_dagster.storage.store import Store

    labels = [entry.label for entry in read_log(Store(place.root)).open]
    if not labels:
        return []
    where = "at the simulator" if place.simulated else "at Anthropic"
    return [
        f"Not over yet: {', '.join(labels)}. Batches that were sent go on {where}, and nothing is lost: the next command that needs the stack",
        f"goes on with them. How they stand: {command('status', place.root)}",
    ]


def _announce(place: Place) -> None:
    if place.simulated:
        _say(f"{SIMULATED}.")
    _say(f"Root        {place.root}")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _become(module: str, arguments: Sequence[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGTERM, a closed terminal, and a SIGINT that a background shell had ignored, into KeyboardInterrupt, once.

    What ends is then left in peace, but for a second Ctrl-C: it ends this process at once, and with it all that it started.
    """
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]
    came_s: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came_s
        if number == signal.SIGHUP:
            let_go_of(terminals)
        if came_s is None:
            came_s = time.monotonic()
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - came_s >= SAME_PRESS_S:
            for group in _child_groups:
                _signal_group(group, signal.SIGKILL)
            os._exit(INTERRUPTED)

    numbers = [number for number in NUMBERS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _child(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in a session of its own, so that only we signal it; nothing of the session is left afterwards."""
    from claude_batch_dagster.embedded.processes import die_with_parent

    def prepare() -> None:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
        die_with_parent()

    process = subprocess.Popen(command, env=dict(environ), start_new_session=True, preexec_fn=prepare)
    _child_groups.append(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(CHILD_GRACE_S)
        for number, pause_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 0.0)):
            deadline_s = time.monotonic() + pause_s
            while _signal_group(process.pid, number) and time.monotonic() < deadline_s:
                process.poll()
                time.sleep(0.1)
        process.wait()
        _child_groups.remove(process.pid)


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _announce_when_open(process: subprocess.Popen[bytes], port: int, line: str) -> None:
    deadline_s = time.monotonic() + DAGSTER_START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                _say(line)
                return
        time.sleep(0.3)


def _check_port(port: int) -> int:
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"The Dagster UI cannot listen on port {port} of 127.0.0.1: {getattr(error, 'strerror', None) or error}. Nothing was started. "
                "Choose another (--port N), or leave --port out for a free one."
            ) from error
    return port


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(bound.getsockname()[1])
    raise UsageError(
        f"No port of 127.0.0.1 is free, {wanted} included. Nothing was started. End another program, or name a port: --port N."
    )
