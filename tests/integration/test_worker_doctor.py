"""claude-batch doctor: each thing that a run needs, broken once; nothing is sent, started, or left behind."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from temporalio.client import Client

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errand_contract import DOCTOR_ID_PREFIX
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.storage.plans import pin_root, pin_workspace
from claude_batch_dagster.verbs import doctor
from claude_batch_dagster.verbs.connection import Connection
from tests.stack import MODEL, Bench, RunningSimulator, free_port

StartSimulator = Callable[..., RunningSimulator]


def look(
    bench: Bench,
    simulator: RunningSimulator | None = None,
    models: Sequence[str] = (),
    root: str | None = None,
    environ: dict[str, str] | None = None,
    **connection: Any,
) -> dict[str, Finding]:
    """Examine as a client of the bench would, within the time that was promised."""
    place = Connection(**{"address": bench.address, "task_queue": bench.task_queue, "external": True, **connection})
    named = {"ANTHROPIC_BASE_URL": simulator.url} if simulator else {"ANTHROPIC_API_KEY": "any"}
    began_s = time.monotonic()
    found = asyncio.run(doctor.examine(root or bench.store.uri, place, models, environ=named if environ is None else environ))
    assert time.monotonic() - began_s < 40
    assert len({finding.name for finding in found if finding.name not in ("disk", "worker disk")}) >= len(found) - 4
    for finding in found:
        assert bool(finding.remedy) == (finding.status is not Health.OK), finding
    return {finding.name: finding for finding in found}


def broken(found: dict[str, Finding]) -> set[str]:
    # The machine that runs the tests may be short of space.
    return {name for name, finding in found.items() if finding.status is not Health.OK and not name.endswith("disk")}


def pin(bench: Bench, endpoint: str = "simulator", namespace: str = "default") -> None:
    pin_root(bench.store, RootRecord(root_id="root", endpoint=endpoint, temporal_namespace=namespace))


def test_where_all_is_well_every_finding_is_ok(bench: Bench, start_simulator: StartSimulator) -> None:
    """It looks only: no message, no batch, no object, no pin, one workflow of its own."""
    simulator = start_simulator()
    worker = bench.start_worker(simulator)

    found = look(bench, simulator, [MODEL])

    assert broken(found) == set()
    names = ["client", "endpoint", "root", "disk", "temporal", "workers", "worker", "api", "key", "workspace", "clock", f"model {MODEL}"]
    assert list(found) == [*names, "worker root", "worker disk", "versions"]
    assert "1,000,000 tokens of input, max_tokens up to 128,000" in found[f"model {MODEL}"].detail
    assert f"claude-batch worker {worker.popen.pid}@{socket.gethostname()}" in found["workers"].detail
    assert "anthropic " in found["worker"].detail
    assert "the first run pins it" in found["workspace"].detail
    assert simulator.books()["calls"].keys() <= {"list", "models"}
    assert bench.store.folder is not None
    assert not bench.store.folder.exists()

    async def workflows() -> list[str]:
        client = await Client.connect(bench.address)
        return [run.id async for run in client.list_workflows(f"TaskQueue = '{bench.task_queue}'")]

    assert all(name.startswith(DOCTOR_ID_PREFIX) for name in asyncio.run(workflows()))


def test_a_root_in_use_is_looked_at_and_left_alone(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its pins agree with this environment."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    pin(bench)
    pin_workspace(bench.store, "wrkspc_simulated")

    found = look(bench, simulator)

    assert broken(found) == set()
    assert "'simulator'" in found["pin"].detail
    assert "as pinned in the root" in found["workspace"].detail
    assert bench.store.list("") == ["root.json", "workspace.json"]


def test_a_wrong_key(bench: Bench, start_simulator: StartSimulator) -> None:
    """The worker's, and the finding does not show it."""
    simulator = start_simulator()
    bench.start_worker(simulator, key="wrong")

    found = look(bench, simulator, [MODEL])

    assert broken(found) == {"key"}
    assert found["key"].status is Health.FAIL
    assert "HTTP 401" in found["key"].detail
    assert "ANTHROPIC_API_KEY" in found["key"].detail
    assert "restart the worker" in found["key"].remedy
    assert "workspace" not in found


def test_a_key_of_another_workspace(bench: Bench, start_simulator: StartSimulator) -> None:
    """Its batches would not be found again."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    pin(bench)
    pin_workspace(bench.store, "wrkspc_other")

    found = look(bench, simulator)

    assert broken(found) == {"workspace"}
    assert found["workspace"].status is Health.FAIL
    assert "wrkspc_other" in found["workspace"].detail
    assert "wrkspc_simulated" in found["workspace"].detail


def test_models_that_cannot_be_asked_or_not_for_long(bench: Bench, start_simulator: StartSimulator) -> None:
    """Unknown, retired, deprecated."""
    simulator = start_simulator()
    bench.start_worker(simulator)

    found = look(bench, simulator, ["claude-nonesuch-9", "claude-sonnet-4-20250514", "claude-opus-4-5", MODEL])

    statuses = {name: finding.status for name, finding in found.items() if name.startswith("model ")}
    assert statuses == {
        "model claude-nonesuch-9": Health.FAIL,
        "model claude-sonnet-4-20250514": Health.FAIL,
        "model claude-opus-4-5": Health.WARN,
        f"model {MODEL}": Health.OK,
    }
    assert "retires 2026-11-24" in found["model claude-opus-4-5"].detail


@pytest.mark.parametrize(("skew_s", "status"), [(-45, Health.WARN), (45, Health.WARN), (20, Health.OK)])
def test_a_clock_that_is_wrong(bench: Bench, start_simulator: StartSimulator, skew_s: int, status: Health) -> None:
    """By the vendor's Date."""
    simulator = start_simulator(f"clock-skew={skew_s}")
    bench.start_worker(simulator)

    found = look(bench, simulator)

    assert found["clock"].status is status
    assert "the limit is 30 s" in found["clock"].detail
    assert ("behind" if skew_s > 0 else "ahead of") in found["clock"].detail


def test_a_vendor_that_is_down(bench: Bench, start_simulator: StartSimulator) -> None:
    """The client says so by itself, the worker what it sees."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    simulator.process.stop()

    found = look(bench, simulator)

    assert broken(found) == {"endpoint", "api"}
    assert simulator.url in found["endpoint"].detail


def test_a_vendor_that_takes_calls_and_never_answers(bench: Bench, start_simulator: StartSimulator) -> None:
    """Whoever waits for it is told in time."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    look(bench, simulator)

    simulator.process.popen.send_signal(signal.SIGSTOP)
    found = look(bench, simulator)

    assert broken(found) == {"endpoint", "key"}
    assert "ReadTimeout" in found["key"].detail


def test_no_worker(bench: Bench, start_simulator: StartSimulator) -> None:
    """Nothing is started to find that out."""
    found = look(bench, start_simulator())

    assert broken(found) == {"workers"}
    assert bench.task_queue in found["workers"].detail
    assert "claude-batch worker" in found["workers"].remedy


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_worker_that_is_listed_and_does_not_answer(
    bench: Bench, start_simulator: StartSimulator, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Temporal lists the dead for minutes; the doctor's workflow ends by itself."""
    monkeypatch.setattr(doctor, "REPORT_TIMEOUT_S", 4.0)
    simulator = start_simulator()
    worker = bench.start_worker(simulator)
    look(bench, simulator)
    os.kill(worker.popen.pid, number)

    found = look(bench, simulator)

    assert broken(found) == {"worker"}
    assert "No worker answered within 4 s" in found["worker"].detail
    assert bench.store.folder is not None
    assert not bench.store.folder.exists()


def test_no_temporal_server(bench: Bench, start_simulator: StartSimulator) -> None:
    """The root and the endpoint are looked at all the same."""
    found = look(bench, start_simulator(), address=f"127.0.0.1:{free_port()}")

    assert broken(found) == {"temporal"}
    assert found["temporal"].detail.endswith("within 5 s: Connection refused.")
    assert "TEMPORAL_ADDRESS" in found["temporal"].remedy
    assert {"root", "endpoint"} <= found.keys()


def test_a_temporal_server_that_never_answers(bench: Bench, start_simulator: StartSimulator) -> None:
    """A port that takes connections is no server."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = look(bench, start_simulator(), address=f"127.0.0.1:{silent.getsockname()[1]}")

    assert broken(found) == {"temporal"}


def test_a_namespace_that_is_not_there(bench: Bench, start_simulator: StartSimulator) -> None:
    """And the root's pin says which one it should be."""
    pin(bench)
    found = look(bench, start_simulator(), namespace="nowhere")

    assert broken(found) == {"pin", "workers"}
    assert "There is no namespace 'nowhere'" in found["workers"].detail
    assert "TEMPORAL_NAMESPACE" in found["pin"].remedy


def test_a_root_of_another_endpoint(bench: Bench, start_simulator: StartSimulator) -> None:
    """Both sides say so."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    pin(bench, endpoint="anthropic")

    found = look(bench, simulator)

    assert broken(found) == {"pin", "api"}
    assert "holds answers of 'anthropic'" in found["api"].detail


def test_a_worker_of_another_endpoint_than_this_client(bench: Bench, start_simulator: StartSimulator) -> None:
    """A run would pin the root to the one, and the worker refuse it."""
    bench.start_worker(start_simulator())

    found = look(bench)

    assert broken(found) == {"api"}
    assert "this client plans for 'anthropic'" in found["api"].detail


@pytest.mark.parametrize("place", ["/proc/nowhere/root", "{root}/root.json"])
def test_a_root_that_cannot_be_written(bench: Bench, start_simulator: StartSimulator, place: str) -> None:
    """Neither by the client nor by the worker."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    pin(bench)

    found = look(bench, simulator, root=place.format(root=bench.store.uri))

    assert broken(found) == {"root", "worker root"}
    assert found["root"].status is Health.FAIL
    assert "CLAUDE_BATCH_ROOT" in found["root"].remedy


def test_a_record_that_is_no_json(bench: Bench, start_simulator: StartSimulator) -> None:
    """Said, with the file's name."""
    simulator = start_simulator()
    bench.start_worker(simulator)
    bench.store.put("root.json", b"{")

    found = look(bench, simulator)

    assert broken(found) == {"root", "worker root"}
    assert "root.json" in found["root"].detail


def test_findings_are_json(bench: Bench, start_simulator: StartSimulator) -> None:
    """For `doctor --json`."""
    (first, *_) = look(bench, start_simulator()).values()
    assert msgspec.json.decode(msgspec.json.encode(first)).keys() == {"name", "status", "detail", "remedy"}
