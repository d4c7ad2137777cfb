"""The embedded stack with its real processes: shared, restarted, and gone with its last client."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.embedded import attach, find_stack, stack_folder, stop_stack
from claude_batch_dagster.embedded.folder import Folder, StackRecord
from claude_batch_dagster.storage.store import Store
from tests.stack import stage_plan

CLIENT = """
import sys
from claude_batch_dagster.embedded import attach
with attach(sys.argv[1], simulate=True) as stack:
    print(stack.connection.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    found = str(tmp_path / "root" / "simulated")
    yield found
    stop_stack(found)


def start_client(root: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def end_client(client: subprocess.Popen[str]) -> None:
    client.communicate(timeout=60)


def read_record(root: str) -> StackRecord:
    record = Folder(stack_folder(root)).read()
    assert record is not None
    return record


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.05)


def nothing_runs(record: StackRecord) -> bool:
    assert record.supervisor is not None
    return not any(process.alive for process in (record.supervisor, *record.children.values()))


def test_two_clients_at_the_same_instant_share_one_stack_until_the_last_leaves(root):
    clients = [start_client(root), start_client(root)]
    addresses = {client.stdout.readline() for client in clients}
    assert len(addresses) == 1
    record = read_record(root)
    assert set(record.children) == {"temporal", "worker", "simulator"}
    end_client(clients[0])
    time.sleep(1.0)
    assert find_stack(root) is not None
    end_client(clients[1])
    assert nothing_runs(record)


def test_stack_ends_within_seconds_after_its_client_was_killed(root):
    client = start_client(root)
    client.stdout.readline()
    record = read_record(root)
    client.kill()
    end_client(client)
    wait_until(lambda: nothing_runs(record), 15.0)


@pytest.mark.parametrize("name", ["worker", "temporal", "simulator"])
def test_killed_child_is_started_again_and_the_log_says_so(root, name):
    with attach(root, simulate=True) as stack:
        before = read_record(root)
        os.kill(before.children[name].pid, signal.SIGKILL)
        wait_until(lambda: read_record(root).children.get(name) not in (None, before.children[name]))
        assert read_record(root).ports == before.ports
        assert find_stack(root) == stack
    assert f"{name} was started again" in (stack_folder(root) / "supervisor.log").read_text()


def test_children_end_with_a_killed_supervisor_and_the_next_client_starts_anew(root):
    with attach(root, simulate=True):
        former = read_record(root)
        assert former.supervisor is not None
        os.kill(former.supervisor.pid, signal.SIGKILL)
        wait_until(lambda: nothing_runs(former))
        with attach(root, simulate=True):
            assert read_record(root).supervisor != former.supervisor
    assert nothing_runs(read_record(root))


def test_stop_ends_the_stack_under_its_clients(root):
    with attach(root, simulate=True):
        record = read_record(root)
        assert stop_stack(root) == 1
        assert nothing_runs(record)
        assert find_stack(root) is None


def test_stack_that_may_stay_ends_at_once_where_no_run_is_open(root):
    with attach(root, simulate=True, detach=True):
        record = read_record(root)
    wait_until(lambda: nothing_runs(record), 15.0)


def test_stack_that_may_stay_does_not_wait_for_a_run_without_a_workflow(root):
    stage_plan(Store(root), ["a text"])
    with attach(root, simulate=True, detach=True):
        record = read_record(root)
    wait_until(lambda: nothing_runs(record), 20.0)


def test_database_that_the_server_cannot_read_is_set_aside(root):
    folder = stack_folder(root)
    folder.mkdir(parents=True)
    (folder / "temporal.db").write_bytes(b"not a database" * 1_000)
    with attach(root, simulate=True):
        pass
    assert list(folder.glob("temporal.db.*"))


def test_worker_that_cannot_start_is_an_error_that_quotes_it(root):
    with (
        pytest.raises(TemporalUnavailableError, match=r"its worker ended with exit code 1: .*ANTHROPIC_API_KEY"),
        attach(root, simulate=False),
    ):
        pass
    wait_until(lambda: nothing_runs(read_record(root)))


def test_process_without_stack_leaves_no_thread_and_no_handler(root):
    code = (
        "import sys, signal, threading; before = [signal.getsignal(s) for s in (2, 15)]\n"
        "from claude_batch_dagster.embedded import attach\n"
        "with attach(sys.argv[1], simulate=True): assert threading.active_count() == 1\n"
        "assert [signal.getsignal(s) for s in (2, 15)] == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, root], check=True, timeout=60)
