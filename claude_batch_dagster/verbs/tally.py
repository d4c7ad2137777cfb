"""Rows and requests, counted as a plan comes upon them."""

from collections.abc import Iterable
from dataclasses import dataclass

from claude_batch_dagster.storage.keys import LARGE, SKIPPED, Reasons


@dataclass(slots=True, kw_only=True)
class Tally:
    """Rows and distinct requests of one output's partition, as planned.

    Attributes:
        rows: Source rows.
        skipped: Rows with nothing to ask about.
        too_large: Rows whose request exceeds a batch on its own.
        asked: Requests that this plan owns.
        already_answered: Requests with a final answer in the store.
        in_flight: Requests that another open run owns.
    """

    rows: int = 0
    skipped: int = 0
    too_large: int = 0
    asked: int = 0
    already_answered: int = 0
    in_flight: int = 0

    def count_rows(self, reasons: Reasons) -> None:
        """Count rows, and those that are not asked about by their reason."""
        self.rows += len(reasons)
        self.skipped += int((reasons == SKIPPED).sum())
        self.too_large += int((reasons == LARGE).sum())


def sum_tallies(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    total = Tally()
    for tally in tallies:
        for name in ("rows", "skipped", "too_large", "asked", "already_answered", "in_flight"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    return total
