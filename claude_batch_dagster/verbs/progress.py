"""What a face shows while a job runs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a job stands; sent whenever something changed, and every few seconds while it waits.

    Attributes:
        phase: plan | wait | publish.
        rows_planned: Source rows planned, over all outputs.
        requests_asked: Distinct requests that this job's own run asks.
        requests_already_answered: Distinct requests with an answer in the store.
        requests_in_flight: Distinct requests that another open run asks.
        batches_total: Batches that the run makes, at least.
        batches_ended: Batches collected.
        cost_usd: Of what was collected so far.
        elapsed_s: Seconds since the job began.
        run: `r42`, None before admission and where nothing is asked.
        workflow_id: Of the run.
        message: A new line worth printing, None for none.
        question: What the run asks a person, None for nothing.
    """

    phase: str
    rows_planned: int = 0
    requests_asked: int = 0
    requests_already_answered: int = 0
    requests_in_flight: int = 0
    batches_total: int = 0
    batches_submitted: int = 0
    batches_in_progress: int = 0
    batches_ended: int = 0
    cost_usd: float = 0.0
    elapsed_s: float = 0.0
    run: str | None = None
    workflow_id: str | None = None
    message: str | None = None
    question: str | None = None


OnProgress = Callable[[JobProgress], None]
