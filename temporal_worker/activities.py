"""What the workflow asks for, as Temporal's activities. Thin: heartbeats, turns, pauses and failures; the work is done elsewhere.

Every activity may run again after any failure, beside an attempt that is believed dead, and after it has succeeded: each of them reads
the store first, and writes what others could write too put-if-absent.
"""

import contextvars
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from temporalio import activity
from temporalio.exceptions import CancelledError

from claude_batch_dagster.core.contract import (
    BatchInput,
    CancelInput,
    Candidates,
    ClosedShards,
    CloseInput,
    Counts,
    DoubtInput,
    Failed,
    FinishInput,
    OpenedRound,
    OpenedRun,
    OpenInput,
    RoundInput,
    RunReport,
    ShardInput,
    Submitted,
)
from claude_batch_dagster.core.errand_contract import AdoptInput, DoctorInput, DoctorReport
from claude_batch_dagster.core.errors import ClaudeBatchError, RefusedError, VendorUnavailableError
from claude_batch_dagster.core.submission import Mode
from temporal_worker.policies import BATCH_IN_PROGRESS, CALLED_OFF, WORKER_BUSY, is_final, not_yet, to_failure
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches
    from temporal_worker.collect import Collector
    from temporal_worker.examine import Examiner
    from temporal_worker.runs import Runs
    from temporal_worker.settle import Settler
    from temporal_worker.submit import Submitter

log = logging.getLogger(__name__)

BEAT_S = 3.0
TURN_WAIT_S = 60.0
BUSY_RETRY_S = 5.0
CALLED_OFF_RETRY_S = 1.0
LONGEST_POLL_S = 300.0
CANCELING_POLL_S = 5.0
POLL_SHARE_OF_AGE = 0.1
POLL_JITTER = 0.1
KEY_RETRY_S = 60.0
FORGOTTEN_AFTER_S = 600.0
NOT_FOUND_SINCE = "Not found since "


class BatchActivities:
    """The worker's activities; `worker.py` hands in what they work with.

    Args:
        poll_s: The shortest pause between two looks at a batch.
        is_called_off: Tells whether Temporal was asked to cancel the workflow of the activity that runs.
        forgotten_after_s: For so long a batch that the right workspace does not find counts as not found yet.
        submits_at_once: How many bodies are uploaded at a time.
        collects_at_once: How many batches are collected at a time: memory does not grow with those that wait.
    """

    def __init__(
        self,
        *,
        runs: "Runs",
        submitter: "Submitter",
        settler: "Settler",
        collector: "Collector",
        batches: "Batches",
        examiner: "Examiner",
        poll_s: float,
        is_called_off: Callable[[], bool],
        forgotten_after_s: float = FORGOTTEN_AFTER_S,
        submits_at_once: int = 2,
        collects_at_once: int = 2,
    ) -> None:
        self._runs = runs
        self._submitter = submitter
        self._settler = settler
        self._collector = collector
        self._batches = batches
        self._examiner = examiner
        self._poll_s = poll_s
        self._is_called_off = is_called_off
        self._forgotten_after_s = forgotten_after_s
        self._submits = threading.BoundedSemaphore(submits_at_once)
        self._collects = threading.BoundedSemaphore(collects_at_once)

    @activity.defn(no_thread_cancel_exception=True)
    def open_run(self, run: OpenInput) -> OpenedRun:
        """Idempotent: reads the root, pins the workspace, records tried tasks put-if-absent, and submits the first shard as `submit` does.

        A retry costs a few GETs, and one sample request where an attempt died between its try of a new task and the record of it.
        """
        with attempt("opening the run") as report:
            opened = self._runs.open_run(run)
            if run.mode is not Mode.RUN or opened.failure is not None or not opened.shards:
                return opened
            return replace(opened, first=self._submit_first(run, opened.round, report))

    @activity.defn(no_thread_cancel_exception=True)
    def submit(self, shard: ShardInput) -> Submitted:
        """Idempotent: the shard's log lets one POST through, whoever asks and however often. A retry costs a GET or two.

        What a killed attempt did is read from the log: its batch, that nothing was created, or that it has to be settled.
        """
        with attempt(f"submitting shard {shard.shard}") as report:
            return self._submit(shard, report)

    @activity.defn(no_thread_cancel_exception=True)
    def find_candidates(self, doubt: DoubtInput) -> Candidates:
        """Idempotent: lists the vendor's batches. A retry lists them as they are then, which only adds candidates."""
        with attempt(f"looking for the batch of shard {doubt.shard} in the list"):
            return self._settler.find_candidates(doubt)

    @activity.defn(no_thread_cancel_exception=True)
    def settle(self, doubt: DoubtInput) -> Submitted:
        """Idempotent: writes what became of a submission put-if-absent. A retry costs a GET a candidate, and results read again.

        What was proved foreign is left out of the next call. A candidate in progress is a benign failure with the pause to the next look.
        """
        with attempt(f"settling shard {doubt.shard}", least_retry_s=self._poll_s) as report:
            found = self._settler.settle(doubt, report)
            if isinstance(found, Submitted):
                return found
            text = f"{_describe_progress(found)}; it may be the batch of shard {doubt.shard}"
            report(text)
            raise not_yet(BATCH_IN_PROGRESS, text, pause_before_next_look(found, self._poll_s, random.random())) from None

    @activity.defn(no_thread_cancel_exception=True)
    def adopt_batch(self, adopt: AdoptInput) -> str:
        """Idempotent but for what it says: writes the batch put-if-absent. A retry reads its results again."""
        with attempt(f"looking whether {adopt.batch_id} is the batch of shard {adopt.shard}"):
            return self._settler.adopt(adopt)

    @activity.defn(no_thread_cancel_exception=True)
    def see_through(self, batch: BatchInput) -> Counts:
        """Idempotent: looks, and collects an ended batch into the same files each time. A retry costs a GET, or the results again.

        A batch in progress is a benign failure with the pause to the next look: nothing waits, and no event is written.
        """
        with attempt(f"looking at batch {batch.batch_id}", least_retry_s=self._poll_s) as report:
            found = self._look(batch, report)
            if not found.ended:
                text = _describe_progress(found)
                report(text)
                raise not_yet(BATCH_IN_PROGRESS, text, pause_before_next_look(found, self._poll_s, random.random())) from None
            with _turn(self._collects, f"Batch {batch.batch_id} ended and waits for other batches to be collected"):
                return self._collector.collect(batch, found, report)

    @activity.defn(no_thread_cancel_exception=True)
    def cancel_batches(self, cancel: CancelInput) -> None:
        """Idempotent: canceling twice, or after the end, changes nothing. A retry costs a POST a batch."""
        with attempt("canceling batches"):
            failure: ClaudeBatchError | None = None
            for batch_id in cancel.batch_ids:
                try:
                    self._batches.cancel(batch_id)
                except RefusedError as error:
                    log.warning("%s It is collected as it ends.", error)
                except ClaudeBatchError as error:
                    failure = error
            if failure is not None:
                raise failure

    @activity.defn(no_thread_cancel_exception=True)
    def close_shards(self, close: CloseInput) -> ClosedShards:
        """Idempotent: closes put-if-absent what is not closed. A retry costs a GET or two a shard."""
        with attempt("closing shards"):
            return self._runs.close_shards(close)

    @activity.defn(no_thread_cancel_exception=True)
    def open_round(self, ask: RoundInput) -> OpenedRound:
        """Idempotent: the round's record is put-if-absent, and the one that is there counts. A retry stages the same files again.

        Where nothing is left to do, it finishes the run as `finish_run` does.
        """
        with attempt("opening the next round") as report:
            opened = self._runs.open_round(ask)
            if opened.shards or opened.strays or ask.outcome is None:
                return opened
            report("finishing the run")
            finish = FinishInput(root=ask.root, number=ask.number, run_id=ask.run_id, outcome=ask.outcome, error=ask.error)
            return replace(opened, report=self._runs.finish_run(finish))

    @activity.defn(no_thread_cancel_exception=True)
    def finish_run(self, finish: FinishInput) -> RunReport:
        """Idempotent: `done` is put-if-absent, and the one that is there counts. A retry reads the run's responses again."""
        with attempt("finishing the run"):
            return self._runs.finish_run(finish)

    @activity.defn(no_thread_cancel_exception=True)
    def examine_vendor(self, ask: DoctorInput) -> DoctorReport:
        """Idempotent: looks, and leaves nothing behind. A retry costs a few GETs."""
        with attempt("looking at the API and the root for claude-batch doctor"):
            return self._examiner.examine(ask)

    def _submit(self, shard: ShardInput, report: Callable[[str], None]) -> Submitted:
        def report_sending(what: str) -> None:
            report(what)
            if self._is_called_off():
                # Of a cancel that came while no worker was there, the workflow learns beside this attempt, which must not buy meanwhile.
                text = f"Shard {shard.shard} is not sent: its run is being canceled"
                raise not_yet(CALLED_OFF, text, CALLED_OFF_RETRY_S) from None

        with _turn(self._submits, f"Shard {shard.shard} waits for other uploads"):
            return self._submitter.submit(shard, report_sending)

    def _submit_first(self, run: OpenInput, round_number: int, report: Callable[[str], None]) -> Submitted:
        """Submit a round's first shard; what fails for good is told, for the run was opened all the same."""
        shard = ShardInput(root=run.root, number=run.number, run_id=run.run_id, round=round_number, shard=0, mode=run.mode)
        try:
            return self._submit(shard, report)
        except Exception as error:  # of any kind: is_final tells which are for good, the others are raised
            if not is_final(error):
                raise
            return Submitted(failed=Failed(kind=type(error).__name__, text=str(error)))

    def _look(self, batch: BatchInput, report: Callable[[str], None]) -> Batch:
        try:
            return self._batches.get(batch.batch_id)
        except RefusedError as error:
            now = activity.info().started_time
            since = _not_found_since() or now
            gone = error.context.get("status") == 404
            if gone:
                report(f"{NOT_FOUND_SINCE}{since.isoformat()}")
            # Another workspace's key finds nothing either: what it cannot see is not missing, and a person is asked for the right one.
            right = self._runs.has_right_workspace(batch)
            if gone and right and (now - since).total_seconds() >= self._forgotten_after_s:
                log.warning("batch %s of run %s was deleted: its requests end without a result", batch.batch_id, batch.run_id)
                return self._runs.lost_batch(batch)
            raise VendorUnavailableError(
                f"{error} Check that the worker's key belongs to the workspace of this root.", retry_after_s=KEY_RETRY_S
            ) from error


def _not_found_since() -> datetime | None:
    """Return when the vendor first did not find the batch, if it has not found it since: earlier attempts hand it on."""
    told = next(iter(activity.info().heartbeat_details), None)
    if not isinstance(told, str) or not told.startswith(NOT_FOUND_SINCE):
        return None
    return datetime.fromisoformat(told.removeprefix(NOT_FOUND_SINCE))


def pause_before_next_look(batch: Batch, least_s: float, chance: float) -> float:
    """Return the seconds until a batch is looked at again: a tenth of its age, within bounds; longer where the vendor asks so.

    Args:
        batch: As it was just seen.
        least_s: The shortest pause.
        chance: In [0, 1): spreads the looks of many batches by a tenth to either side.
    """
    if batch.processing_status == "canceling":
        # Somebody waits for the end of a cancel, and it is near.
        least_s = min(least_s, CANCELING_POLL_S)
    pause_s = max(least_s, min(LONGEST_POLL_S, batch.age_s * POLL_SHARE_OF_AGE))
    return max(pause_s * (1 + POLL_JITTER * (2 * chance - 1)), batch.retry_after_s or 0.0)


def _describe_progress(batch: Batch) -> str:
    minutes, seconds = divmod(int(batch.age_s), 60)
    hours, minutes = divmod(minutes, 60)
    age = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"
    return f"Batch {batch.id} {batch.processing_status.replace('_', ' ')} for {age}: {batch.requests:,} requests"


@contextmanager
def attempt(what: str, least_retry_s: float | None = None) -> Iterator[Callable[[str], None]]:
    """Beat while the block runs, so that a dead worker is noticed; turn our errors into Temporal's failures.

    Gives a function that says what is being done. It ends a canceled attempt, so it is called only where that loses nothing.
    """
    said = [what]
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S):
            activity.heartbeat(said[0])

    def report(text: str) -> None:
        if activity.is_cancelled():
            raise CancelledError(f"Canceled: {text}")
        said[0] = text
        activity.heartbeat(text)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(beat,), name=f"beat: {what}", daemon=True)
    thread.start()
    try:
        yield report
    except ClaudeBatchError as error:
        raise to_failure(error, least_retry_s=least_retry_s) from None
    finally:
        stop.set()
        thread.join()


@contextmanager
def _turn(turns: threading.BoundedSemaphore, text: str) -> Iterator[None]:
    """Wait a minute for a turn, then give the thread back and come again."""
    if not _acquire(turns, activity.is_cancelled):
        raise not_yet(WORKER_BUSY, text, BUSY_RETRY_S) from None
    try:
        yield
    finally:
        turns.release()


def _acquire(turns: threading.BoundedSemaphore, is_canceled: Callable[[], bool]) -> bool:
    for _ in range(int(TURN_WAIT_S)):
        if turns.acquire(timeout=1.0):
            return True
        if is_canceled():
            break
    return False
