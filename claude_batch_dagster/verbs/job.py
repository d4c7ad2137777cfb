"""What one invocation is asked to do: a source, tasks, outputs and limits. All four verbs read it; nothing changes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claude_batch_dagster.core.errors import TaskError, UsageError
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.request import short_name
from claude_batch_dagster.core.shard import MAX_REQUESTS
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.store import absolute_uri

if TYPE_CHECKING:
    from claude_batch_dagster.storage.output import Marker

DEFAULT_MAX_IN_FLIGHT_BATCHES = 2
"""Two full batches fill the smallest tier's queue of 200,000 requests (platform.claude.com rate limits, checked 2026-11-22)."""
DEFAULT_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One task and where its rows go.

    Attributes:
        output: URI of the folder of this output alone.
        columns: What it carries of the source: `key`, `all`, or names.
    """

    task: ClaudeTask
    output: str
    columns: str | Sequence[str] = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one invocation is asked to do.

    Attributes:
        root: URI of the root, `/simulated` included where the work is simulated.
        endpoint: Whose answers: `anthropic`, `simulator`, or `host_port`.
        temporal_namespace: Pinned in the root with the endpoint.
        partitions: Of the source, None for all that it has.
        max_cost_usd: Compared with the worst case before anything is admitted; None for no cap.
        max_requests_per_batch: 1 to 100,000.
        max_in_flight_batches: Batches submitted and not collected at once, at least 1.
        max_attempts: How often a request is asked at most in one run.
        replace: Whether an output of ours may be replaced that is another endpoint's, that lost its marker, or that a limit would cut.
        limit: Source rows in all, the first ones; None for all of them.
        ask_again: Keys of rows that are asked again though they are answered; columns of one key are joined by commas.
        retry_failed: Whether rows are asked again that failed for good.
        fail_above: Share of failed rows, 0 to 1, above which nothing is published and the job fails; None for never.
        preflight: Whether a new task is tried on a sample text before its first batch.
        dagster_run_id: For people, in the log.
    """

    root: str
    endpoint: str
    temporal_namespace: str
    source: ParquetDataset
    targets: tuple[Target, ...]
    partitions: tuple[str, ...] | None = None
    max_cost_usd: float | None = None
    max_requests_per_batch: int = MAX_REQUESTS
    max_in_flight_batches: int = DEFAULT_MAX_IN_FLIGHT_BATCHES
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    replace: bool = False
    limit: int | None = None
    ask_again: tuple[str, ...] = ()
    retry_failed: bool = False
    fail_above: float | None = None
    preflight: bool = True
    dagster_run_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if not self.targets:
            raise UsageError("There is no task. Nothing was sent. Give at least one.")
        limits = (
            ("max_requests_per_batch", self.max_requests_per_batch, 1, MAX_REQUESTS),
            ("max_in_flight_batches", self.max_in_flight_batches, 1, 1_000),
            ("max_attempts", self.max_attempts, 1, 10),
        )
        for name, value, least, most in limits:
            if not least <= value <= most:
                raise UsageError(
                    f"{name} is {value:,}; {least:,} to {most:,} are possible. Nothing was sent. Choose a value in this range."
                )
        if self.max_cost_usd is not None and not self.max_cost_usd >= 0:
            raise UsageError(
                f"max_cost_usd is {self.max_cost_usd}; it cannot be negative. Nothing was sent. Name an amount in USD, or None for no cap."
            )
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}; the least is 1. Nothing was sent. Leave it out for all rows.")
        if self.fail_above is not None and not 0 <= self.fail_above <= 1:
            raise UsageError(
                f"fail_above is {self.fail_above}; it is a share of the rows, 0 to 1. Nothing was sent. For 5 % of them: 0.05."
            )
        inside = [target.output for target in self.targets if f"{absolute_uri(target.output)}/".startswith(f"{self.source.uri}/")]
        if inside:
            raise UsageError(
                f"The output {inside[0]} lies inside the source {self.source.uri}: its rows would be asked about next time. Nothing was sent. "
                "Choose a folder beside it."
            )
        names = [short_name(target.task.name) for target in self.targets]
        twins = [target.task.name for target in self.targets if names.count(short_name(target.task.name)) > 1]
        if twins:
            raise TaskError(
                f"The tasks {' and '.join(twins)} have the same first 22 characters, which every custom_id carries. Nothing was sent. Rename one."
            )
        for at, target in enumerate(self.targets):
            twin = next((other for other in self.targets[:at] if _asks_otherwise(other.task, target.task)), None)
            if twin is not None:
                raise TaskError(
                    f"The tasks {twin.task.name} and {target.task.name} have two prompt functions of one name and version: each would get the "
                    "other's answers. Nothing was sent. Give one of the functions another name, or one of the tasks another version."
                )
        outputs = [absolute_uri(target.output) for target in self.targets]
        if len(set(outputs)) < len(outputs):
            raise UsageError(f"Two tasks write to {max(outputs, key=outputs.count)}. Nothing was sent. Give each a folder of its own.")

    def marker(self) -> "Marker":
        """Return what claims an output of this job."""
        # Here, since definitions hold jobs, and must load without Parquet.
        from claude_batch_dagster.storage.output import Marker

        return Marker(source=self.source.uri, endpoint=self.endpoint, partition_column=self.source.partition_column)

    def root_record(self, root_id: str) -> RootRecord:
        """Return what pins the root for this job."""
        return RootRecord(root_id=root_id, endpoint=self.endpoint, temporal_namespace=self.temporal_namespace)


def _asks_otherwise(one: ClaudeTask, other: ClaudeTask) -> bool:
    """Tell whether two tasks that pass for the same have different functions as their prompts."""
    return one.task_key == other.task_key and one.prompt != other.prompt
