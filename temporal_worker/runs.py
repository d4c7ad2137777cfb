"""What is done to a run as a whole: open it, close shards that are not bought, open the next round, finish. PROTOCOL, "A run"."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, assert_never

from claude_batch_dagster.core.contract import (
    BatchInput,
    ClosedShards,
    CloseInput,
    Counts,
    FinishInput,
    LiveShard,
    OpenedRound,
    OpenedRun,
    OpenInput,
    RoundInput,
    RunReport,
)
from claude_batch_dagster.core.errors import CredentialsError, RefusedError, RootError, RunError, SpendLimitError
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.response import PriceUsage
from claude_batch_dagster.core.shard import MAX_REQUESTS
from claude_batch_dagster.core.submission import (
    Accepted,
    Closed,
    CloseReason,
    DoAsk,
    DoAwait,
    DoClose,
    DoSend,
    Mode,
    Record,
    Settled,
    Unknown,
    next_step,
)
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import read_owned_keys, read_owned_shard
from claude_batch_dagster.storage.plans import (
    append_submission,
    batch_ids,
    last_round,
    list_rounds,
    list_strays,
    list_submissions,
    read_done,
    read_round,
    read_shard,
    read_submission,
    read_task,
    write_done,
)
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import read_stored_files
from temporal_worker.capabilities import find_mismatch
from temporal_worker.preflight import Preflights
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, explain_endpoint, open_root
from temporal_worker.rounds import check_closed, open_round
from temporal_worker.usage import read_usage, sum_cost
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

CHUNK_REQUESTS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Runs of any root.

    Attributes:
        open_store: Opens a root by its URI.
        price_usage: What an answer costs.
        preflights: Tries new tasks.
        clock: Now, aware; only people read it.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    price_usage: PriceUsage
    preflights: Preflights
    clock: Callable[[], datetime]

    def open_run(self, run: OpenInput) -> OpenedRun:
        """Say what is to be done for a run, and whether anything may be sent at all.

        A run that buys and has not begun has its tasks compared with what their models can, and new tasks tried on a sample text.

        Raises:
            RootError: Terminal.
            VendorUnavailableError: Transient.
        """
        root = open_root(self.open_store(run.root), number=run.number, run_id=run.run_id)
        done = read_done(root.store, run.number)
        if done is not None:
            return OpenedRun(report=_to_report(done))
        current = last_round(root.store, root.entry)
        return OpenedRun(
            round=current.round,
            shards=len(current.shards),
            max_in_flight_batches=root.entry.max_in_flight_batches,
            failure=self._find_failure(root) if run.mode is Mode.RUN else None,
        )

    def close_shards(self, close: CloseInput) -> ClosedShards:
        """Close every shard of a round of which nothing lives at the vendor; return the others.

        Raises:
            RootError: Terminal.
        """
        root = open_root(self.open_store(close.root), number=close.number, run_id=close.run_id)
        current = read_round(root.store, root.entry, close.round)
        live: list[LiveShard] = []
        unknown: list[int] = []
        for shard in range(len(current.shards) if current else 0):
            match _close_shard(root, close, shard):
                case DoAwait(batch_id=batch_id):
                    live.append(LiveShard(shard=shard, batch_id=batch_id))
                case Unknown():
                    unknown.append(shard)
                case Settled():
                    pass
        return ClosedShards(live=tuple(live), unknown=tuple(unknown))

    def open_round(self, ask: RoundInput) -> OpenedRound:
        """Open a round with what is retryable and unanswered in the store, or the empty one that ends the run.

        Raises:
            RootError: Terminal.
        """
        root = open_root(self.open_store(ask.root), number=ask.number, run_id=ask.run_id)
        return open_round(root, ask, self.batches, self.price_usage)

    def finish_run(self, finish: FinishInput) -> RunReport:
        """Write `done` once everything that it speaks of is in the store.

        Raises:
            RunError: Terminal. A shard is open, or the counts do not add up: the run stays open.
            RootError: Terminal.
        """
        root = open_root(self.open_store(finish.root), number=finish.number, run_id=finish.run_id)
        done = read_done(root.store, finish.number)
        if done is None:
            submissions = list_submissions(root.store, finish.run_id)
            check_closed(root, submissions)
            _check_last_round(root)
            strays = [stray.batch_id for stray in list_strays(root.store) if stray.run_id == finish.run_id]
            ids = [*batch_ids(submissions), *strays]
            endpoint = root.record.endpoint
            usage = read_usage(root.store, endpoint, [task.task_key for task in root.entry.tasks], ids, run_id=finish.run_id)
            record = DoneRecord(
                run_id=finish.run_id,
                finished_at=self.clock().isoformat(timespec="seconds"),
                outcome=finish.outcome,
                rows=_count_rows(root, submissions, strays),
                batches=len(ids),
                usage=usage,
                cost_nano_usd=sum_cost(usage),
                error=finish.error,
            )
            done = write_done(root.store, finish.number, record)
        return _to_report(done)

    def has_right_workspace(self, batch: BatchInput) -> bool:
        """Tell whether the vendor says that this worker's key is of the root's workspace; False where it does not say.

        Raises:
            CredentialsError: Terminal. It is of another one.
        """
        root = open_root(self.open_store(batch.root), number=batch.number, run_id=batch.run_id)
        check_endpoint(root, self.batches.find_endpoint())
        workspace_id = self.batches.check_key_and_list().workspace_id
        check_workspace(root, workspace_id)
        return workspace_id is not None

    def lost_batch(self, batch: BatchInput) -> Batch:
        """Return a batch that the vendor has no more, as one whose results are gone; its times are those of its record.

        Raises:
            RootError: Terminal.
        """
        root = open_root(self.open_store(batch.root), number=batch.number, run_id=batch.run_id)
        known = {stray.batch_id: stray.found_at for stray in list_strays(root.store)}
        for record in read_submission(root.store, batch.run_id, batch.round, batch.shard):
            if isinstance(record, Accepted):
                known[record.id] = record.created_at
        if batch.batch_id not in known:
            raise RootError(
                f"{root.store.uri} has no record of batch {batch.batch_id}: the root lost its records. Restore the folder, or: claude-batch recover"
            )
        created_at = datetime.fromisoformat(known[batch.batch_id])
        return Batch(
            id=batch.batch_id,
            processing_status="ended",
            requests=read_shard(root.store, root.entry, batch.round, batch.shard).requests,
            created_at=created_at,
            ended_at=created_at,
            archived=True,
            age_s=0.0,
            retry_after_s=None,
        )

    def _find_failure(self, root: OpenRoot) -> str | None:
        endpoint = self.batches.find_endpoint()
        if root.record.endpoint != endpoint:
            return explain_endpoint(root, endpoint)
        begun = bool(list_submissions(root.store, root.entry.run_id))
        try:
            check_workspace(root, self.batches.check_key_and_list().workspace_id)
            # What has begun was checked before its first POST, and is not stopped half way by what the vendor changed since.
            return None if begun else self._find_unfit_task(root)
        except (CredentialsError, SpendLimitError) as error:
            # What was begun is parked by the shard that cannot be sent, with a question.
            return None if begun else f"Batch run {root.entry.label} was not begun, nothing was sent: {error}"
        except RefusedError as error:
            what = "was begun before and sends nothing more" if begun else "was not begun, nothing was sent"
            return f"Batch run {root.entry.label} {what}: {error}"

    def _find_unfit_task(self, root: OpenRoot) -> str | None:
        find_model = cache(self.batches.get_model)
        for task in root.entry.tasks:
            mismatch = find_mismatch(task, read_task(root.store, task.task_key), find_model)
            if mismatch is not None:
                return mismatch
        return self.preflights.find_failure(root)


def _close_shard(root: OpenRoot, close: CloseInput, shard: int) -> DoAwait | Unknown | Settled:
    while True:
        match next_step(read_submission(root.store, close.run_id, close.round, shard), Mode.DRAIN):
            case (Settled() | DoAwait() | Unknown()) as step:
                return step
            case DoClose(slot=slot):
                append_submission(root.store, close.run_id, close.round, shard, slot, Closed(reason=CloseReason(close.reason)))
            case DoSend() | DoAsk():
                raise AssertionError("a drain never sends")
            case step:
                assert_never(step)


def _check_last_round(root: OpenRoot) -> None:
    last = last_round(root.store, root.entry)
    if last.shards:
        raise RunError(
            f"Batch run {root.entry.label} cannot finish: its last round, {last.round}, has {len(last.shards)} shards, and only an empty one ends "
            f"a run. Its requests stay its own. Run again, or: claude-batch cancel {root.entry.label}"
        )


def _count_rows(root: OpenRoot, submissions: dict[tuple[int, int], list[Record]], strays: Sequence[str]) -> dict[str, int]:
    """Count what became of the run's requests in its own batches; what an earlier run answered is not its doing."""
    entry: LogEntry = root.entry
    rows = _count_by_shard(root, submissions, strays) or _count_at_once(root, [*batch_ids(submissions), *strays])
    if rows.total() != entry.keys.count:
        raise RunError(
            f"Batch run {entry.label} cannot finish: its plan owns {entry.keys.count:,} requests, {rows.total():,} were counted. "
            "Nothing is lost. This is a bug in claude-batch-dagster, please report it."
        )
    return {outcome: requests for outcome, requests in rows.items() if requests}


def _count_by_shard(root: OpenRoot, submissions: dict[tuple[int, int], list[Record]], strays: Sequence[str]) -> Counter[str] | None:
    """Count one shard of the first round after another: memory does not grow with the shards.

    None where more than a shard's requests were asked again, or a batch came late, for these belong to any shard; and where what the
    run owns does not tell its shards.
    """
    entry, rows = root.entry, Counter[str]()
    later = [shard for record in list_rounds(root.store, entry) if record.round > 1 for shard in record.shards]
    if strays or sum(shard.requests for shard in later) > MAX_REQUESTS:
        return None
    again = batch_ids({place: records for place, records in submissions.items() if place[0] > 1})
    stored = {task.task_key: read_stored_files(root.store, root.record.endpoint, task.task_key) for task in entry.tasks}
    for shard in range(len(entry.shards)):
        owned = read_owned_shard(root.store, entry.run_id, shard)
        if owned is None:
            return None
        ids = [*batch_ids({(1, shard): submissions.get((1, shard), [])}), *again]
        for task, task_key in enumerate(owned.task_keys):
            keys = owned.keys[owned.tasks == task]
            if len(keys):
                answers = Answers(root.store, root.record.endpoint, task_key, batch_ids=ids, stored=stored[task_key])
                rows.update(answers.count_outcomes(keys))
    return rows


def _count_at_once(root: OpenRoot, ids: Collection[str]) -> Counter[str]:
    rows, answers = Counter[str](), dict[str, Answers]()
    for task_key, keys in read_owned_keys(root.store, root.entry.run_id):
        if task_key not in answers:
            answers[task_key] = Answers(root.store, root.record.endpoint, task_key, batch_ids=ids)
        rows.update(answers[task_key].count_outcomes(keys))
    return rows


def _to_report(done: DoneRecord) -> RunReport:
    return RunReport(
        outcome=done.outcome,
        counts=Counts(
            by_outcome=done.rows,
            input_tokens=sum(usage.input_tokens for usage in done.usage),
            output_tokens=sum(usage.output_tokens for usage in done.usage),
            cache_read_tokens=sum(usage.cache_read_tokens for usage in done.usage),
            cache_write_tokens=sum(usage.cache_write_tokens for usage in done.usage),
            cost_nano_usd=sum(usage.cost_nano_usd or 0 for usage in done.usage),
            unpriced=sum(usage.requests for usage in done.usage if usage.cost_nano_usd is None),
        ),
        batches=done.batches,
        error=done.error,
    )
