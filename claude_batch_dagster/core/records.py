"""The records of a root, as they lie in its JSON files. A record is written whole, once, and never changed."""

from typing import Any

import msgspec


class RootRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`root.json`: what this root is for, pinned by its first planner."""

    root_id: str
    endpoint: str
    temporal_namespace: str
    format: int = 1


class WorkspaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`workspace.json`: the vendor's workspace, pinned by the first reply that a worker got."""

    workspace_id: str
    format: int = 1


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who admitted a plan: for people."""

    host: str
    pid: int
    dagster_run_id: str | None = None


class TaskRef(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a plan: its name is the asset key's last part, its key names `tasks/{task_key}.json`.

    Attributes:
        largest_params_bytes: Of the requests that the plan owns, to compare with the model's context window.
    """

    name: str
    task_key: str
    largest_params_bytes: int = 0


class PreflightRef(msgspec.Struct, frozen=True, kw_only=True):
    """A new task's request on a fixed sample text, to be tried before the first batch; `path` is below the root."""

    task_key: str
    path: str


class PreflightRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`preflights/{task_key}.json`: the task was tried on the sample text and its answer could be used."""

    task_key: str
    model: str
    answered_at: str
    outcome: str
    stop_reason: str | None
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int | None
    format: int = 1


class SourceRef(msgspec.Struct, frozen=True, kw_only=True):
    """The source as it was planned; `fingerprint` covers the files and their content."""

    uri: str
    fingerprint: str


class KeysRef(msgspec.Struct, frozen=True, kw_only=True):
    """`plans/{run_id}/keys.parquet`: the requests that the run owns."""

    path: str
    sha256: str
    count: int


class ShardRef(msgspec.Struct, frozen=True, kw_only=True):
    """A staged POST body. Its place in the list is the shard's number, from 0.

    Attributes:
        path: Below the root.
        sha256: Of the body, hex.
        requests: In the body, 1 to 100,000.
        body_bytes: The file's size, which is the Content-Length.
        worst_nano_usd: The shard's part of the worst case, None where the model has no price.
    """

    path: str
    sha256: str
    requests: int
    body_bytes: int
    worst_nano_usd: int | None = None


class CostRange(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may cost; None where the model has no price. `cap` is what its owner allowed, None for no cap."""

    expected: int | None
    worst: int | None
    cap: int | None = None


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`log/{number}.json`: an admitted plan. From here until `done/{number}.json` its keys are its own."""

    run_id: str
    number: int
    admitted_at: str
    endpoint: str
    owner: Owner
    tasks: tuple[TaskRef, ...]
    source: SourceRef
    keys: KeysRef
    shards: tuple[ShardRef, ...]
    cost_nano_usd: CostRange
    max_attempts: int
    max_in_flight_batches: int
    preflights: tuple[PreflightRef, ...] = ()
    format: int = 1

    @property
    def label(self) -> str:
        """What people call the run: `r42`."""
        return f"r{self.number}"


class StrayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`strays/{batch_id}.json`: a batch of this root that came after its shard had been settled without it."""

    batch_id: str
    run_id: str
    round: int
    shard: int
    found_at: str
    format: int = 1


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`rounds/{run_id}/{round}.json`, from 2: the shards that are asked again; an empty one ends the run.

    Attributes:
        why: What is asked again, or is not and why not, for people; empty where there was nothing to ask.
    """

    round: int
    shards: tuple[ShardRef, ...]
    why: str = ""
    format: int = 1


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one model used in a run; requests over 100,000 prompt tokens are apart, since some models price them apart."""

    model: str
    over_100k: bool
    requests: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_nano_usd: int | None


class TryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`plans/{run_id}/try-{task_key}-{n}.json`: a try of a new task is about to be sent; removed where the vendor surely did nothing."""

    task_key: str
    asked_at: str
    format: int = 1


class TriedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`plans/{run_id}/tried-{task_key}.json`: what came of a run's try of a new task.

    Attributes:
        usage: At the full price of a single call; None where no model answered.
        problem: Why the answer cannot be used, None where it can.
    """

    task_key: str
    answered_at: str
    outcome: str
    stop_reason: str | None
    usage: ModelUsage | None
    problem: str | None
    format: int = 1


class DoneRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`done/{number}.json`: the run is over and its answers are in the store. Written after them.

    Attributes:
        outcome: finished | canceled | failed.
        rows: Requests that the run owned, by what became of them; they add up to `keys.count`.
        cost_nano_usd: None where a model without a price answered.
    """

    run_id: str
    finished_at: str
    outcome: str
    rows: dict[str, int]
    batches: int
    usage: tuple[ModelUsage, ...]
    cost_nano_usd: int | None
    error: str | None = None
    format: int = 1


class AwaitedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run whose answers a deferral waits for; an own one was asked by the deferred job itself, and is reported with it."""

    number: int
    run_id: str
    own: bool

    @property
    def label(self) -> str:
        """What people call the run: `r42`."""
        return f"r{self.number}"


class PlannedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What the deferred job's first plan counted for a task's partition: distinct requests."""

    task: str
    partition: str | None
    rows: int
    asked: int
    already_answered: int
    in_flight: int


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A Dagster run that waits for its batch runs now and may leave them: it stands in a deferral in case that it is killed.

    Attributes:
        owner: The process.
        leaves_at: When it has waited long enough.
    """

    owner: Owner
    leaves_at: str


class DeferralRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`deferred/{number}-{digest}.json`: a Dagster run left its batch runs alone; removed once their answers are published.

    It is written before a workflow is started (`intent`), and once more when the run leaves.

    Attributes:
        deferred_at: When that run ended.
        began_at: When the job began, its first run if it was deferred several times.
        dagster_run_id: Of the run that deferred last.
        assets: Keys, each as its parts, sorted.
        partitions: In the definition's order; None for outputs without.
        runs: What it waits for, and its own runs that are over.
        planned: What its first plan counted.
        plans: How often it was planned.
        changes: How often its source had changed when it was planned again.
        limit: Source rows in all, None for all of them; like `replace` and `max_cost_usd` the choice of the deferred run.
        config: Of the op, as it was given; without what is asked again, which was asked.
        snapshot: Names of the kept tables that were asked about, where the source is a function.
        intent: Set as long as the run has not left: it may publish itself.
    """

    deferred_at: str
    began_at: str
    dagster_run_id: str | None
    assets: tuple[tuple[str, ...], ...]
    partitions: tuple[str, ...] | None
    runs: tuple[AwaitedRun, ...]
    planned: tuple[PlannedOutput, ...]
    plans: int = 1
    changes: int = 0
    limit: int | None = None
    replace: bool = False
    max_cost_usd: float | None = None
    op: str | None = None
    config: dict[str, Any] | None = None
    snapshot: str | None = None
    intent: Intent | None = None
    format: int = 1
