"""verbs/doctor.py: what needs no server."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.api.taskqueue.v1 import PollerInfo

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errors import TemporalUnavailableError
from claude_batch_dagster.verbs import doctor
from claude_batch_dagster.verbs.connection import Connection, lazy_connection
from claude_batch_dagster.verbs.doctor import compare_versions, live_pollers

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def look(root: Path, connection: Connection, environ: dict[str, str]) -> dict[str, Finding]:
    return {finding.name: finding for finding in asyncio.run(doctor.examine(str(root), connection, environ=environ))}


def no_stack() -> str:
    raise TemporalUnavailableError("The embedded Temporal stack cannot start: no temporal. Nothing was sent.")


def hang() -> str:
    time.sleep(5)
    return "never"


def test_an_embedded_stack_that_cannot_start_is_a_finding(tmp_path: Path) -> None:
    found = look(tmp_path / "root", lazy_connection(no_stack, {}), {"CLAUDE_BATCH_SIMULATE": "1"})
    assert found["temporal"].status is Health.FAIL
    assert "no temporal" in found["temporal"].detail
    assert "embedded/" in found["temporal"].remedy
    assert found["endpoint"].detail == "Work goes to 'simulator'."
    assert list(tmp_path.iterdir()) == []


def test_an_embedded_stack_that_never_is_ready_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "START_TIMEOUT_S", 0.05)
    found = look(tmp_path / "root", lazy_connection(hang, {}), {"CLAUDE_BATCH_SIMULATE": "1"})
    assert "was not ready" in found["temporal"].detail


def test_a_missing_key_names_both_ways_out_where_the_worker_is_this_machines(tmp_path: Path) -> None:
    found = look(tmp_path / "root", lazy_connection(no_stack, {}), {})
    assert found["endpoint"].status is Health.FAIL
    assert "ANTHROPIC_API_KEY" in found["endpoint"].remedy
    assert "CLAUDE_BATCH_SIMULATE" in found["endpoint"].remedy


def test_a_file_in_place_of_the_root_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    found = look(tmp_path / "root", lazy_connection(no_stack, {}), {"ANTHROPIC_API_KEY": "any"})
    assert found["root"].status is Health.FAIL
    assert found["endpoint"].detail == "Work goes to 'anthropic'."


@pytest.mark.parametrize(("worker", "status"), [("0.1.0", Health.OK), ("0.2.0", Health.WARN), (None, Health.WARN)])
def test_two_releases_are_told_apart(worker: str | None, status: Health) -> None:
    found = compare_versions("0.1.0", worker)
    assert found.status is status
    assert "0.1.0" in found.detail


def test_only_those_that_polled_lately_live() -> None:
    pollers = []
    for name, age_s in [("b", 5), ("a", 80), ("dead", 100), ("b", 1)]:
        poller = PollerInfo(identity=name)
        poller.last_access_time.FromDatetime(NOW - timedelta(seconds=age_s))
        pollers.append(poller)
    assert live_pollers(pollers, NOW) == ["a", "b"]
