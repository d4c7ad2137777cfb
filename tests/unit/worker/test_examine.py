"""temporal_worker/examine.py: what a worker sees and its client does not."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errand_contract import DoctorInput
from claude_batch_dagster.simulator import serve_in_thread
from claude_batch_dagster.storage.probe import PRODUCT, remove_token, write_token
from claude_batch_dagster.storage.store import Store
from temporal_worker.batches import DOCTOR_TIMEOUT, Batches
from temporal_worker.examine import Examiner, describe_model
from temporal_worker.vendor import Model


@pytest.fixture
def examiner() -> Iterator[Examiner]:
    with serve_in_thread() as simulator:
        batches = Batches("any", simulator.url, timeout=DOCTOR_TIMEOUT)
        yield Examiner(open_store=Store, batches=batches, clock=lambda: datetime.now(UTC))
        batches.close()


def look(examiner: Examiner, ask: DoctorInput) -> dict[str, Finding]:
    return {finding.name: finding for finding in examiner.examine(ask).findings}


def test_a_folder_of_the_same_name_on_another_machine_is_told(examiner: Examiner, tmp_path: Path) -> None:
    """What the client wrote is not there."""
    found = look(examiner, DoctorInput(root=str(tmp_path / "root"), token="doctor/of-the-client.json"))
    assert found["worker root"].status is Health.FAIL
    assert "different folders of that name" in found["worker root"].detail
    assert list(tmp_path.iterdir()) == []


def test_the_clients_object_is_seen_and_left_to_it(examiner: Examiner, tmp_path: Path) -> None:
    """And the worker's own is gone."""
    store = Store(str(tmp_path / "root"))
    token = write_token(store)
    report = examiner.examine(DoctorInput(root=store.uri, token=token.path))
    assert {finding.status for finding in report.findings if not finding.name.endswith("disk")} == {Health.OK}
    assert store.list("") == [token.path]
    assert report.versions.keys() == {"python", "anthropic", "temporalio", PRODUCT}
    remove_token(store, token)


def test_a_busy_vendor_is_no_wrong_key() -> None:
    """A 429 leaves open whether the key works."""
    with serve_in_thread(faults=["429@list=all"]) as simulator:
        batches = Batches("any", simulator.url, timeout=DOCTOR_TIMEOUT)
        found = look(Examiner(open_store=Store, batches=batches, clock=lambda: datetime.now(UTC)), DoctorInput(root="/proc/nowhere"))
        batches.close()
    assert found["key"].status is Health.FAIL
    assert "not known" in found["key"].detail
    assert "HTTP 429" in found["key"].detail
    assert found["key"].remedy == "Wait, then look again."


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Model(id="m", lifecycle="active", max_tokens=9_000, max_input_tokens=90_000), "90,000 tokens of input, max_tokens up to 9,000"),
        (Model(id="m", lifecycle="active", capabilities={"structured_outputs": {"supported": False}}), "no structured outputs"),
        (Model(id="m", lifecycle="active"), "the API knows it and tells no limits"),
    ],
)
def test_a_models_limits_in_a_line(model: Model, text: str) -> None:
    """As far as they are told."""
    assert describe_model(model) == text
