"""temporal_worker/activities.py: the pause between two looks at a batch."""

from datetime import UTC, datetime

import pytest

from temporal_worker.activities import pause_before_next_look
from temporal_worker.vendor import Batch


def batch(age_s: float, retry_after_s: float | None = None, status: str = "in_progress") -> Batch:
    created_at = datetime(2026, 11, 23, tzinfo=UTC)
    return Batch(
        id="msgbatch_1",
        processing_status=status,
        requests=3,
        created_at=created_at,
        ended_at=None,
        archived=False,
        age_s=age_s,
        retry_after_s=retry_after_s,
    )


@pytest.mark.parametrize(
    ("age_s", "retry_after_s", "status", "pause_s"),
    [
        (0, None, "in_progress", 30),
        (200, None, "in_progress", 30),
        (600, None, "in_progress", 60),
        (3_600, None, "in_progress", 300),
        (80_000, None, "in_progress", 300),
        (0, 10, "in_progress", 30),
        (0, 45, "in_progress", 45),
        (0, None, "canceling", 5),
        (600, None, "canceling", 60),
    ],
)
def test_the_pause_grows_with_age_within_bounds(age_s: float, retry_after_s: float | None, status: str, pause_s: float) -> None:
    """A tenth of the age, 30 s to 300 s; longer where the vendor asks so; short after a cancel."""
    assert pause_before_next_look(batch(age_s, retry_after_s, status), 30.0, 0.5) == pytest.approx(pause_s)


def test_pauses_are_spread() -> None:
    """Many batches of one age are not looked at in the same second."""
    pauses = [pause_before_next_look(batch(1_000), 30.0, chance) for chance in (0.0, 0.5, 0.999)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(90)
    assert pauses[-1] == pytest.approx(110, rel=0.01)
