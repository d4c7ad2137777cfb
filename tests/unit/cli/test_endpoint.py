"""Whose API the work goes to, and the root and the Temporal that belong to it."""

import asyncio
import socket

import pytest

from claude_batch_dagster.core.errors import CredentialsError, TemporalUnavailableError, VendorUnavailableError
from claude_batch_dagster.verbs.connection import Connection, connect, external_connection, lazy_connection
from claude_batch_dagster.verbs.endpoint import name_root, resolve_endpoint, root_for


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.mark.parametrize(
    ("simulate", "environ", "endpoint"),
    [
        (True, {"ANTHROPIC_API_KEY": "k"}, "simulator"),
        (False, {"CLAUDE_BATCH_SIMULATE": "1", "ANTHROPIC_API_KEY": "k"}, "simulator"),
        (False, {"ANTHROPIC_API_KEY": "k"}, "anthropic"),
        (False, {"ANTHROPIC_BASE_URL": "https://api.anthropic.com"}, "anthropic"),
    ],
)
def test_endpoint_is_what_the_environment_says(simulate, environ, endpoint):
    assert resolve_endpoint(simulate=simulate, environ=environ) == endpoint


def test_no_key_is_refused_unless_nothing_is_sent():
    with pytest.raises(CredentialsError, match=r"ANTHROPIC_API_KEY.*--simulate"):
        resolve_endpoint(simulate=False, environ={"ANTHROPIC_API_KEY": " "})
    assert resolve_endpoint(simulate=False, environ={}, needs_key=False) == "anthropic"


def test_silent_server_on_this_machine_is_not_taken_for_a_vendor(closed_port):
    with pytest.raises(VendorUnavailableError, match="Nothing answers"):
        resolve_endpoint(simulate=False, environ={"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{closed_port}"})


def test_simulated_work_has_a_root_of_its_own():
    assert root_for("s3://lake/_claude/", "simulator") == "s3://lake/_claude/simulated"
    assert root_for("s3://lake/_claude/simulated", "simulator") == "s3://lake/_claude/simulated"
    assert root_for("s3://lake/_claude", "anthropic") == "s3://lake/_claude"


def test_external_temporal_is_what_temporals_own_configuration_names():
    assert external_connection({}) is None
    found = external_connection({"TEMPORAL_ADDRESS": "temporal:7233", "TEMPORAL_NAMESPACE": "ns", "CLAUDE_BATCH_TEMPORAL_UI": "http://ui/"})
    assert found == Connection(address="temporal:7233", namespace="ns", ui_url="http://ui", external=True)
    assert found.workflow_url("claude-batch/1") == "http://ui/namespaces/ns/workflows/claude-batch%2F1"


def test_unreachable_temporal_is_an_error_and_never_a_fall_back(closed_port):
    with pytest.raises(TemporalUnavailableError, match=f"127.0.0.1:{closed_port}.*did not answer"):
        asyncio.run(connect(Connection(address=f"127.0.0.1:{closed_port}"), timeout_s=0.1))


def test_lazy_connection_starts_its_server_only_when_it_connects(closed_port):
    started = []
    connection = lazy_connection(lambda: started.append(1) or f"127.0.0.1:{closed_port}", {"CLAUDE_BATCH_TASK_QUEUE": "q"})
    assert (connection.task_queue, started) == ("q", [])
    with pytest.raises(TemporalUnavailableError):
        asyncio.run(connect(connection, timeout_s=0.1))
    assert started == [1]


@pytest.mark.parametrize(
    ("root", "options"),
    [
        ("/data/my root", "--root '/data/my root'"),
        ("s3://lake/root/simulated", "--root s3://lake/root --simulate"),
    ],
)
def test_every_answer_that_a_question_offers_names_the_root(root, options):
    question = (
        "Type one of: `claude-batch answer r12 0 adopt BATCH`, `claude-batch answer r12 0 resend` or `claude-batch answer r12 0 abandon`."
    )
    named = name_root(question, root)
    assert named.count("`") == 6
    assert named == question.replace("BATCH`", f"BATCH {options}`").replace("resend`", f"resend {options}`").replace(
        "abandon`", f"abandon {options}`"
    )
    assert (
        name_root("Mend it; at once with: claude-batch answer r1 resume", root)
        == f"Mend it; at once with: claude-batch answer r1 resume {options}"
    )
