from pathlib import Path

import pytest

from claude_batch_dagster.core.contract import Health
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.plans import pin_root
from claude_batch_dagster.storage.responses import responses_path
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs import upkeep
from claude_batch_dagster.verbs.upkeep import examine_indexes, keep_up_answers
from tests.unit.storage.responses_of import ALWAYS, NEVER_JOINED, answer, key, write
from tests.unit.verbs.conftest import Lake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    pin_root(store, RootRecord(root_id="r", endpoint="simulator", temporal_namespace="default"))
    write(store, "b0", [answer(i) for i in range(5)])
    write(store, "b1", [Response(request_key=key(4), outcome="expired", error="expired: x")])
    return store


def test_without_an_index_or_a_root_nothing_is_found(store: Store, tmp_path: Path) -> None:
    assert examine_indexes(store.uri) == ()
    assert examine_indexes(str(tmp_path / "none")) == ()


def test_a_right_index_is_told(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    (finding,) = examine_indexes(store.uri)
    assert (finding.name, finding.status) == ("index", Health.OK)
    assert finding.detail == "It agrees with 6 responses to 5 requests."


def test_a_damaged_index_is_told_once_and_made_again(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    store.put("index/simulator/t/00000001.json", b"{")
    (finding,) = examine_indexes(store.uri)
    assert finding.status == Health.WARN
    assert finding.detail == "It said something else than the responses of 5 requests, and was made again."
    (finding,) = examine_indexes(store.uri)
    assert finding.status == Health.OK


def test_response_files_that_are_gone_fail_the_check(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=NEVER_JOINED)
    store.delete(responses_path("simulator", "t", "b0"))
    (finding,) = examine_indexes(store.uri)
    assert finding.status == Health.FAIL
    assert "b0.parquet" in finding.detail


def test_an_index_that_cannot_be_kept_up_is_told_to_the_log_only(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = lake.job()
    task_key = job.targets[0].task.task_key
    write(lake.store, "b0", [answer(1)], task_key=task_key)
    monkeypatch.setattr(upkeep, "maintain_responses", lambda *arguments: maintain_responses(*arguments, limits=NEVER_JOINED))
    keep_up_answers(job)
    assert len(lake.store.list("index")) == 2
    lake.store.delete(responses_path("simulator", task_key, "b0"))
    keep_up_answers(job)
    assert "The index of the answers was not brought up to date: 1 file is missing" in caplog.text
