"""verbs/aging.py: batches that nobody collected, before their results go."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason
from claude_batch_dagster.storage.plans import append_submission
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.aging import find_aging, warn_of_aging
from tests.stack import stage_plan, texts

CREATED = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A root whose open run has two batches, one of them collected."""
    store = Store(str(tmp_path / "root"))
    entry = stage_plan(store, texts(2), max_requests=1)
    for shard in range(2):
        append_submission(store, entry.run_id, 1, shard, 1, Accepted(id=f"msgbatch_{shard}", created_at=CREATED.isoformat()))
    append_submission(store, entry.run_id, 1, 1, 2, Closed(reason=CloseReason.COLLECTED))
    return store


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (24.9, None),
        (25.1, "msgbatch_0 is not collected, 25 days after creation. Results can be read for 29 days: that ends in 3 days, on 2026-12-23"),
        (28.5, "that ends in less than a day, on 2026-12-23"),
        (30.0, "it was over on 2026-12-23"),
    ],
)
def test_a_batch_near_its_29_days_is_warned_of(store: Store, days: float, says: str | None) -> None:
    """From the 25th day on, with the day on which its results go; a collected one never."""
    warnings = warn_of_aging(store, CREATED + timedelta(days=days))
    assert len(warnings) == (0 if says is None else 1)
    assert says is None or says in warnings[0]
    assert says is None or warnings[0].endswith(f"claude-batch status r1 --root {store.uri}")


def test_what_ages_is_named_with_its_run(store: Store) -> None:
    """And with when its results go."""
    (one,) = find_aging(store, CREATED + timedelta(days=26))
    assert (one.run, one.batch_id, one.readable_until) == ("r1", "msgbatch_0", CREATED + timedelta(days=29))
