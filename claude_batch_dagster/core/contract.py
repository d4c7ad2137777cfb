"""What crosses Temporal: names, inputs and results. References and counts only, never a row, a prompt or an answer.

Both sides import this file; a new field gets a default, so that a workflow started by an older version goes on.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from claude_batch_dagster.core.submission import Mode

WORKFLOW_TYPE = "BatchRunWorkflow"
PROGRESS_QUERY = "progress"
QUESTION_MEMO = "question"
"""Memo of a run's workflow: what a person has to decide, empty for nothing."""
DEFAULT_TASK_QUEUE = "claude-batch"
WORKFLOW_ID_PREFIX = "claude-batch/"
LOOK_AGAIN_SIGNAL = "look_again"
"""A person answered: what is parked or paused is looked at again at once."""


def workflow_id(run_id: str) -> str:
    """Return the id under which a run's workflow is started, once per run."""
    return f"{WORKFLOW_ID_PREFIX}{run_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveShard:
    """A shard whose batch is known and not yet collected."""

    shard: int
    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A batch that came after its shard was settled without it."""

    batch_id: str
    round: int
    shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedShard:
    """A shard that waits for a person.

    Attributes:
        undecided: Whether a person says what became of it; else what stopped it is to be mended, and it goes on by itself.
    """

    shard: int
    question: str
    undecided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of requests, and what they used.

    Attributes:
        by_outcome: Requests by outcome (succeeded, refused, ...).
        input_tokens: Total input less cache reads and writes.
        cost_nano_usd: Of the answers whose model has a price.
        unpriced: Answers whose model has none: their cost is unknown, not zero.
    """

    by_outcome: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_nano_usd: int = 0
    unpriced: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum."""
        outcomes = {name: self.by_outcome.get(name, 0) + other.by_outcome.get(name, 0) for name in (*self.by_outcome, *other.by_outcome)}
        return Counts(
            by_outcome=outcomes,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost_nano_usd=self.cost_nano_usd + other.cost_nano_usd,
            unpriced=self.unpriced + other.unpriced,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands, as continue-as-new hands it on.

    Attributes:
        round: The round that is being worked on, from 1.
        next_shard: The first shard of it that was not given to `submit` yet.
        shards: How many shards the round has.
        live: Shards whose batch is known and not collected.
        parked: Shards that wait for a person.
        submitted: Batches known so far, over all rounds.
        collected: Batches collected so far, over all rounds.
        counts: Of what was collected.
        strays: Not collected yet.
        failure: Why nothing more is sent, None while all is well.
        max_in_flight_batches: How many shards may be submitted and not collected at once.
    """

    round: int = 1
    next_shard: int = 0
    shards: int = 0
    live: tuple[LiveShard, ...] = ()
    parked: tuple[ParkedShard, ...] = ()
    submitted: int = 0
    collected: int = 0
    counts: Counts = Counts()
    strays: tuple[Stray, ...] = ()
    failure: str | None = None
    max_in_flight_batches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """Input of the workflow.

    Attributes:
        root: URI of the root.
        number: The run's number in the plan log ("batch run r42").
        run_id: UUIDv7, the plan's own.
        mode: `drain` buys nothing: it settles what is open and finishes the run.
        state: Set by continue-as-new only.
        events_before_continue: History events after which the run continues as new.
    """

    root: str
    number: int
    run_id: str
    mode: Mode = Mode.RUN
    state: RunState | None = None
    events_before_continue: int = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Result of the workflow; `done/{n}.json` says the same at more length.

    Attributes:
        outcome: finished | canceled | failed.
    """

    outcome: str
    counts: Counts = Counts()
    batches: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Answer of the `progress` query.

    Attributes:
        round: The current round, from 1.
        shards: Shards of this round.
        submitted: Batches known, over all rounds.
        collected: Batches collected, over all rounds.
        in_progress: Batches submitted and not collected.
        counts: Of what was collected.
        parked: Shards that wait for a person.
        question: What the run as a whole waits for: a key, room on the disk, its records.
        note: One sentence on what the run does now.
    """

    round: int = 1
    shards: int = 0
    submitted: int = 0
    collected: int = 0
    in_progress: int = 0
    counts: Counts = Counts()
    parked: tuple[ParkedShard, ...] = ()
    question: str | None = None
    note: str = ""

    @property
    def questions(self) -> tuple[str, ...]:
        """What a person has to decide or mend, each once."""
        told = [parked.question for parked in self.parked] + ([self.question] if self.question else [])
        return tuple(dict.fromkeys(told))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenInput:
    """Input of `open_run`."""

    root: str
    number: int
    run_id: str
    mode: Mode = Mode.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInput:
    """Input of `submit`: one shard of one round."""

    root: str
    number: int
    run_id: str
    round: int
    shard: int
    mode: Mode = Mode.RUN


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A submission whose end nobody saw.

    Attributes:
        slot: Where its end will be written.
        wait_s: Seconds from now until its batch, if there is one, is in the vendor's list.
    """

    slot: int
    wait_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A failure for good, as an activity tells it that did something else as well.

    Attributes:
        kind: Name of the error's class.
        text: Its message.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """Result of `submit` and of `settle`: one of them is set.

    Attributes:
        batch_id: The shard's batch, waiting to be seen through.
        closed: The shard is settled, for this CloseReason.
        question: What a person has to decide.
        doubt: What has to be settled first.
        again: The shard's records tell now: submit it again.
        candidates: Batches that may still be the shard's, the others are not: settle it with these.
        failed: What stopped the submit of a run's first shard; other submits fail.
    """

    batch_id: str | None = None
    closed: str | None = None
    question: str | None = None
    doubt: Doubt | None = None
    again: bool = False
    candidates: tuple[str, ...] = ()
    failed: Failed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRun:
    """Result of `open_run`.

    Attributes:
        report: Set where `done/{n}.json` exists already: there is nothing to do.
        round: The round to work on: the last one that has a record.
        shards: How many shards that round has.
        max_in_flight_batches: How many shards may be submitted and not collected at once.
        failure: Set where nothing may be sent (the key is refused, a model is unknown): the run finishes as failed.
        first: What became of the submit of the round's first shard, where it was tried.
    """

    report: RunReport | None = None
    round: int = 1
    shards: int = 0
    max_in_flight_batches: int = 1
    failure: str | None = None
    first: Submitted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtInput:
    """Input of `find_candidates` and of `settle`.

    Attributes:
        slot: As the doubt says.
        candidates: Ids of the batches that could be the shard's, as `find_candidates` found them.
    """

    root: str
    number: int
    run_id: str
    round: int
    shard: int
    slot: int
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Result of `find_candidates`; a question where they are too many to tell."""

    batch_ids: tuple[str, ...] = ()
    question: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """Input of `see_through`: one batch to poll to its end and collect.

    Attributes:
        stray: Whether the shard was settled without this batch: its answers are kept, the shard's records stay as they are.
    """

    root: str
    number: int
    run_id: str
    round: int
    shard: int
    batch_id: str
    stray: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelInput:
    """Input of `cancel_batches`."""

    root: str
    batch_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseInput:
    """Input of `close_shards`: every shard of a round.

    Attributes:
        reason: drained | canceled: for shards of which nothing lives at the vendor.
    """

    root: str
    number: int
    run_id: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedShards:
    """Result of `close_shards`: what could not be closed.

    Attributes:
        live: Shards that have a batch after all: see them through.
        unknown: Shards with a POST whose end nobody saw: settle them.
    """

    live: tuple[LiveShard, ...] = ()
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInput:
    """Input of `open_round`: decide what the round asks again.

    Attributes:
        round: The round to open, from 2.
        empty: Open it empty whatever could be asked again: the run ends.
        outcome: As what the run is finished where nothing is left to do: finished | canceled | failed; None leaves that to `finish`.
        error: Why, where it failed.
    """

    root: str
    number: int
    run_id: str
    round: int
    empty: bool = False
    outcome: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRound:
    """Result of `open_round`; no shards means that the run is over.

    Attributes:
        strays: Of the run, not collected yet.
        report: Set where nothing was left to do: the run is finished.
    """

    shards: int = 0
    strays: tuple[Stray, ...] = ()
    report: RunReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishInput:
    """Input of `finish_run`.

    Attributes:
        outcome: finished | canceled | failed.
        error: Why, where it failed.
    """

    root: str
    number: int
    run_id: str
    outcome: str
    error: str | None = None


class Health(StrEnum):
    """How a finding of the doctor stands."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        name: What was looked at; `worker ...` where the worker looked.
        status: ok | warn (it works, and may not for long) | fail (a run would not work).
        detail: What was found, observed against limit.
        remedy: What to do; empty where there is nothing to do.
    """

    name: str
    status: Health
    detail: str
    remedy: str = ""
