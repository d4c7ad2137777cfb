"""What is done to a run as a whole: open it, close shards that are not bought, open the next round, finish. PROTOCOL, "A run"."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from pathlib import Path
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
    ParkedShard,
    RoundInput,
    RunReport,
)
from claude_batch_dagster.core.errors import CredentialsError, RefusedError, RootError, RunError
from claude_batch_dagster.core.outcome import Outcome, is_retryable
from claude_batch_dagster.core.records import DoneRecord, LogEntry, RoundRecord, ShardRef
from claude_batch_dagster.core.request import parse_custom_id, short_name
from claude_batch_dagster.core.response import PriceUsage
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.submission import (
    Accepted,
    Closed,
    CloseReason,
    DoAwait,
    DoClose,
    DoSend,
    Mode,
    Record,
    Settled,
    Unknown,
    next_step,
)
from claude_batch_dagster.storage.keys import Keys, pack_keys, read_owned_keys
from claude_batch_dagster.storage.plans import (
    append_submission,
    batch_ids,
    last_round,
    list_submissions,
    read_done,
    read_round,
    read_shard,
    read_submission,
    read_task,
    write_done,
    write_round,
)
from claude_batch_dagster.storage.responses import Answers
from claude_batch_dagster.storage.staging import ShardStager
from claude_batch_dagster.storage.store import Store
from temporal_worker.capabilities import find_mismatch
from temporal_worker.preflight import Preflights
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, explain_endpoint, open_root
from temporal_worker.submit import explain_unknown
from temporal_worker.usage import read_usage, sum_cost
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

CHUNK_REQUESTS = 8_192
BYTES_PER_TOKEN = 2
"""Of the worst case: input at one token per two UTF-8 bytes of a request's params."""


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
            requests=root.entry.keys.count,
            max_in_flight_batches=root.entry.max_in_flight_batches,
            failure=self._find_failure(root) if run.mode is Mode.RUN else None,
        )

    def close_shards(self, close: CloseInput) -> ClosedShards:
        """Close every shard of a round, from one on, of which nothing lives at the vendor; return the others.

        Raises:
            RootError: Terminal.
        """
        root = open_root(self.open_store(close.root), number=close.number, run_id=close.run_id)
        current = read_round(root.store, root.entry, close.round)
        live: list[LiveShard] = []
        parked: list[ParkedShard] = []
        for shard in range(close.first, len(current.shards) if current else 0):
            match self._close_shard(root, close, shard):
                case LiveShard() as found:
                    live.append(found)
                case ParkedShard() as found:
                    parked.append(found)
                case None:
                    pass
        return ClosedShards(live=tuple(live), parked=tuple(parked))

    def open_round(self, ask: RoundInput) -> OpenedRound:
        """Open a round with what is retryable and unanswered in the store, or the empty one that ends the run.

        Raises:
            RootError: Terminal.
        """
        root = open_root(self.open_store(ask.root), number=ask.number, run_id=ask.run_id)
        opened = read_round(root.store, root.entry, ask.round)
        if opened is None:
            # An open shard behind a further round would be out of everybody's sight.
            _check_closed(root, list_submissions(root.store, ask.run_id))
            shards = () if ask.empty or ask.round > root.entry.max_attempts else self._stage_round(root, ask.round)
            # Another driver may have opened it meanwhile: then that one counts, and what was staged here is nobody's.
            opened = write_round(root.store, ask.run_id, RoundRecord(round=ask.round, shards=shards))
        return OpenedRound(shards=len(opened.shards), requests=sum(shard.requests for shard in opened.shards))

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
            _check_closed(root, submissions)
            _check_last_round(root)
            ids = batch_ids(submissions)
            endpoint = root.record.endpoint
            usage = read_usage(root.store, endpoint, [task.task_key for task in root.entry.tasks], ids)
            record = DoneRecord(
                run_id=finish.run_id,
                finished_at=self.clock().isoformat(timespec="seconds"),
                outcome=finish.outcome,
                rows=_count_rows(root, ids),
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
        for record in read_submission(root.store, batch.run_id, batch.round, batch.shard):
            if isinstance(record, Accepted) and record.id == batch.batch_id:
                created_at = datetime.fromisoformat(record.created_at)
                requests = read_shard(root.store, root.entry, batch.round, batch.shard).requests
                return Batch(
                    id=record.id,
                    processing_status="ended",
                    requests=requests,
                    created_at=created_at,
                    ended_at=created_at,
                    archived=True,
                    age_s=0.0,
                    retry_after_s=None,
                )
        raise RootError(f"{root.store.uri} has no record of batch {batch.batch_id}: the root lost its records. Restore the folder.")

    def _find_failure(self, root: OpenRoot) -> str | None:
        endpoint = self.batches.find_endpoint()
        if root.record.endpoint != endpoint:
            return explain_endpoint(root, endpoint)
        try:
            check_workspace(root, self.batches.check_key_and_list().workspace_id)
            # What has begun was checked before its first POST, and is not stopped half way by what the vendor changed since.
            return None if list_submissions(root.store, root.entry.run_id) else self._find_unfit_task(root)
        except (CredentialsError, RefusedError) as error:
            return f"Batch run {root.entry.label} was not begun, nothing was sent: {error}"

    def _find_unfit_task(self, root: OpenRoot) -> str | None:
        find_model = cache(self.batches.get_model)
        for task in root.entry.tasks:
            mismatch = find_mismatch(task, read_task(root.store, task.task_key), find_model)
            if mismatch is not None:
                return mismatch
        return self.preflights.find_failure(root)

    def _close_shard(self, root: OpenRoot, close: CloseInput, shard: int) -> LiveShard | ParkedShard | None:
        while True:
            step = next_step(read_submission(root.store, close.run_id, close.round, shard), Mode.DRAIN)
            match step:
                case Settled():
                    return None
                case DoAwait(batch_id=batch_id):
                    return LiveShard(shard=shard, batch_id=batch_id)
                case Unknown(send=send) if not close.abandon_unknown:
                    return ParkedShard(shard=shard, question=explain_unknown(root.entry, shard, send))
                case Unknown(send=send, slot=slot):
                    log.warning("%s It is given up.", explain_unknown(root.entry, shard, send))
                    self._close(root, close, shard, slot, CloseReason.ABANDONED)
                case DoClose(slot=slot):
                    self._close(root, close, shard, slot, CloseReason(close.reason))
                case DoSend():
                    raise AssertionError("a drain never sends")
                case _:
                    assert_never(step)

    def _close(self, root: OpenRoot, close: CloseInput, shard: int, slot: int, reason: CloseReason) -> None:
        append_submission(root.store, close.run_id, close.round, shard, slot, Closed(reason=reason))

    def _stage_round(self, root: OpenRoot, round_number: int) -> tuple[ShardRef, ...]:
        check_endpoint(root, self.batches.find_endpoint())
        entry = root.entry
        previous = read_round(root.store, entry, round_number - 1)
        assert previous is not None, "a round is opened after the one before it"
        most_requests = max((shard.requests for shard in entry.shards), default=1)
        with root.store.scratch() as scratch:
            shards = self._stage_retryable(root, previous.shards, round_number, scratch, most_requests)
        if not shards or entry.cost_nano_usd.cap is None:
            return shards
        ids = batch_ids(list_submissions(root.store, entry.run_id))
        spent = sum_cost(read_usage(root.store, root.record.endpoint, [task.task_key for task in entry.tasks], ids))
        worst = _sum_worst(shards)
        if spent is None or worst is None or spent + worst > entry.cost_nano_usd.cap:
            log.warning(
                "batch run %s: round %d is not opened: its worst case of %s nano-USD and the %s spent exceed the cap of %d",
                entry.label,
                round_number,
                worst,
                spent,
                entry.cost_nano_usd.cap,
            )
            return ()
        return shards

    def _stage_retryable(
        self, root: OpenRoot, shards: Sequence[ShardRef], round_number: int, scratch: Path, max_requests: int
    ) -> tuple[ShardRef, ...]:
        entry = root.entry
        stager = ShardStager(root.store, run_id=entry.run_id, round_number=round_number, scratch=scratch, max_requests=max_requests)
        own = batch_ids(list_submissions(root.store, entry.run_id))
        tasks = {short_name(task.name): _AskedTask.read(root, task.task_key, own) for task in entry.tasks}
        for shard in shards:
            lines = iter_lines(root.store.stream(shard.path))
            while chunk := list(islice(lines, CHUNK_REQUESTS)):
                for line, task in _pick_retryable(chunk, tasks):
                    stager.add(line, task.price_worst(line, self.price_usage))
        return stager.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class _AskedTask:
    model: str
    max_tokens: int
    answers: Answers

    @classmethod
    def read(cls, root: OpenRoot, task_key: str, batch_ids: Collection[str]) -> "_AskedTask":
        document = read_task(root.store, task_key)
        return cls(
            model=str(document["model"]),
            max_tokens=int(str(document["max_tokens"])),
            answers=Answers(root.store, root.record.endpoint, task_key, batch_ids=batch_ids),
        )

    def price_worst(self, line: bytes, price_usage: PriceUsage) -> int | None:
        return price_usage(
            self.model,
            input_tokens=-(-len(line) // BYTES_PER_TOKEN),
            output_tokens=self.max_tokens,
            cache_read_tokens=0,
            cache_write_5m_tokens=0,
            cache_write_1h_tokens=0,
        )


def _pick_retryable(lines: Sequence[bytes], tasks: dict[str, _AskedTask]) -> Iterator[tuple[bytes, _AskedTask]]:
    ids = [parse_custom_id(line_custom_id(line)) for line in lines]
    retryable = bytearray(len(lines))
    for name, task in tasks.items():
        places = [place for place, custom_id in enumerate(ids) if custom_id.name == name]
        keys = pack_keys([bytes.fromhex(ids[place].request_key) for place in places])
        for place, (outcome, error) in zip(places, task.answers.outcomes(keys), strict=True):
            retryable[place] = outcome is not None and is_retryable(outcome, error)
    return ((line, tasks[custom_id.name]) for line, custom_id, again in zip(lines, ids, retryable, strict=True) if again)


def _sum_worst(shards: Sequence[ShardRef]) -> int | None:
    parts = [shard.worst_nano_usd for shard in shards]
    return None if None in parts else sum(part for part in parts if part is not None)


def _check_closed(root: OpenRoot, submissions: dict[tuple[int, int], list[Record]]) -> None:
    last = last_round(root.store, root.entry)
    for round_number in range(1, last.round + 1):
        current = read_round(root.store, root.entry, round_number)
        for shard in range(len(current.shards) if current else 0):
            records = submissions.get((round_number, shard), [])
            if not records or not isinstance(records[-1], Closed):
                tip = (
                    "no record" if not records else f"batch {records[-1].id}" if isinstance(records[-1], Accepted) else "an open submission"
                )
                raise RunError(
                    f"Batch run {root.entry.label} cannot finish: shard {shard} of round {round_number} ends with {tip}. Its requests stay its "
                    f"own, no other run buys them. Mend the cause, then run again, or: claude-batch cancel {root.entry.label}"
                )


def _check_last_round(root: OpenRoot) -> None:
    last = last_round(root.store, root.entry)
    if last.shards:
        raise RunError(
            f"Batch run {root.entry.label} cannot finish: its last round, {last.round}, has {len(last.shards)} shards, and only an empty one ends "
            f"a run. Its requests stay its own. Run again, or: claude-batch cancel {root.entry.label}"
        )


def _count_rows(root: OpenRoot, batch_ids: Collection[str]) -> dict[str, int]:
    """Count what became of the run's requests in its own batches; what an earlier run answered is not its doing."""
    entry: LogEntry = root.entry
    rows: dict[str, int] = {}
    for task_key, keys in read_owned_keys(root.store, entry.run_id):
        answers = Answers(root.store, root.record.endpoint, task_key, batch_ids=batch_ids)
        for chunk in _chunks(keys):
            for outcome, _ in answers.outcomes(chunk):
                name = outcome or Outcome.PENDING
                rows[name] = rows.get(name, 0) + 1
    if sum(rows.values()) != entry.keys.count:
        raise RunError(
            f"Batch run {entry.label} cannot finish: its plan owns {entry.keys.count:,} requests, {sum(rows.values()):,} were counted. "
            "Nothing is lost. This is a bug in claude-batch-dagster, please report it."
        )
    return rows


def _chunks(keys: Keys) -> Iterator[Keys]:
    return (keys[start : start + CHUNK_REQUESTS] for start in range(0, len(keys), CHUNK_REQUESTS))


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
