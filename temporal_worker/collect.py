"""Collects an ended batch: stream, verify, decode, store; then closes the shard.

Results come in any order and are joined by custom_id alone. Every request of the shard ends with exactly one response; whatever else
the stream holds is counted, said, and never stored. Answers wait in a file: memory holds the ids of one shard.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from claude_batch_dagster.core.contract import BatchInput, Counts
from claude_batch_dagster.core.errors import RefusedError, RootError, VendorUnavailableError
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.request import KEY_BYTES
from claude_batch_dagster.core.response import Decoder, PriceUsage, Response
from claude_batch_dagster.core.submission import Closed, CloseReason, DoAwait, Mode, Settled, next_step
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.arrays import repeat_word, to_arrow
from claude_batch_dagster.storage.heap import keep_freed_memory
from claude_batch_dagster.storage.keys import Keys, keys_to_arrow
from claude_batch_dagster.storage.plans import append_submission, read_submission, read_task
from claude_batch_dagster.storage.responses import SCHEMA, write_response_batches
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import find_batches
from temporal_worker.arrivals import KEPT, Arrivals, Arrived, PriceUsages, price_each
from temporal_worker.asked import Numbers, Requests, check_requests, read_requests
from temporal_worker.further import Grants, ModelLimits
from temporal_worker.root import OpenRoot, check_endpoint, open_root
from temporal_worker.spool import Tally
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

FETCHES = 3
REPORT_EVERY_S = 1.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Collects ended batches of any root.

    Attributes:
        open_store: Opens a root by its URI.
        price_usage: What an answer costs.
        price_usages: What many answers cost; None where nobody is in a hurry.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    price_usage: PriceUsage
    price_usages: PriceUsages | None = None

    def collect(self, batch: BatchInput, ended: Batch, report: Callable[[str], None]) -> Counts:
        """Store every response of an ended batch, then close its shard, unless it is a stray. Collecting again writes the same files.

        Args:
            batch: The batch and its shard.
            ended: As the vendor tells it; where it is archived, the shard's requests end without a result, unless they are stored already.
            report: Told what is being done; it may raise to stop the work, which loses nothing.

        Raises:
            RootError: Terminal. The root is not the run's, or cannot be written.
            VendorUnavailableError: Transient. The results could not be read whole in three fetches.
        """
        keep_freed_memory()
        root = open_root(self.open_store(batch.root), number=batch.number, run_id=batch.run_id)
        check_endpoint(root, self.batches.find_endpoint())
        expected = read_requests(root, batch)
        decoders = [Decoder(read_task(root.store, task.task_key), self.price_usage) for task in root.entry.tasks]
        with root.store.scratch() as scratch:
            if ended.archived:
                arrived = Arrived.nothing(len(expected), self._prices)
            else:
                arrived = self._fetch_whole(batch, expected, decoders, scratch / "answers", report)
            if arrived.missing or arrived.foreign:
                check_requests(root, batch, expected)
            counts = _store_responses(root, batch, ended, expected, arrived, decoders, ModelLimits(self.batches), report)
        if not batch.stray:
            _close_shard(root, batch)
        return counts

    @property
    def _prices(self) -> PriceUsages:
        return self.price_usages or price_each(self.price_usage)

    def _fetch_whole(
        self, batch: BatchInput, expected: Requests, decoders: Sequence[Decoder], file: Path, report: Callable[[str], None]
    ) -> Arrived:
        """Fetch the results until every request has one, three times at most; what is missing then has none at the vendor."""
        cut: VendorUnavailableError | None = None
        arrived: Arrived | None = None
        for fetch in range(1, FETCHES + 1):
            report(f"Batch {batch.batch_id} ended: reading its results, fetch {fetch} of at most {FETCHES}")
            try:
                arrived = self._fetch(batch.batch_id, expected, decoders, file, report)
            except VendorUnavailableError as error:
                cut, arrived = error, None
                continue
            except RefusedError as error:
                # To call them missing would have the next run buy them again.
                raise VendorUnavailableError(f"{error} They are read again later, until the batch is archived.") from error
            if arrived.missing == 0:
                break
        if arrived is None:
            assert cut is not None
            raise cut
        if arrived.missing or arrived.foreign or arrived.duplicate:
            log.warning(
                "batch %s: of %d requests %d have no result; %d results were of no request of the shard, %d came twice; none of these is stored",
                batch.batch_id,
                len(expected),
                arrived.missing,
                arrived.foreign,
                arrived.duplicate,
            )
        return arrived

    def _fetch(self, batch_id: str, expected: Requests, decoders: Sequence[Decoder], file: Path, report: Callable[[str], None]) -> Arrived:
        size, next_report_s = 0, 0.0
        with self.batches.stream_results(batch_id) as chunks, Arrivals(file, expected, decoders, self._prices) as arrivals:
            for chunk in chunks:
                arrivals.add(chunk)
                size += len(chunk)
                # A report waits for the worker's event loop, and that for the interpreter: of each chunk it would be the slowest part.
                if time.monotonic() >= next_report_s:
                    report(f"Batch {batch_id} ended: {size:,} bytes of results read")
                    next_report_s = time.monotonic() + REPORT_EVERY_S
        return arrivals.arrange()


def _store_responses(
    root: OpenRoot,
    batch: BatchInput,
    ended: Batch,
    expected: Requests,
    arrived: Arrived,
    decoders: Sequence[Decoder],
    limits: ModelLimits,
    report: Callable[[str], None],
) -> Counts:
    tally = Tally()
    why = (
        "the API has no results of this batch any more" if ended.archived else f"the results of the batch lack it, {FETCHES} times in a row"
    )
    for number, (task, decoder) in enumerate(zip(root.entry.tasks, decoders, strict=True)):
        places = np.flatnonzero(expected.tasks == number).astype(np.int32)
        if not len(places):
            continue
        if ended.archived and batch.batch_id in find_batches(root.store, root.record.endpoint, task.task_key):
            # Collected before its results were gone, by somebody who died before the shard was closed.
            tally.keep(_count_stored(root, batch, task.task_key, expected.keys[places]))
            continue
        report(f"Batch {batch.batch_id} ended: storing {len(places):,} responses of {task.name}")
        responses = _Responses(
            batch_id=batch.batch_id,
            round_number=batch.round,
            answered_at=ended.ended_at or ended.created_at,
            grants=Grants(root, task.task_key, batch.round, limits),
            tally=tally,
        )
        write_response_batches(
            root.store,
            endpoint=root.record.endpoint,
            task_key=task.task_key,
            batch_id=batch.batch_id,
            batches=(
                responses.complete(rows, expected.keys[some], expected.max_tokens[some])
                for some, rows in arrived.read(places, decoder.missing_result(bytes(KEY_BYTES), why))
            ),
        )
    stored = sum(tally.by_outcome.values())
    if stored != len(expected):
        raise RootError(
            f"Batch {batch.batch_id}: {stored:,} responses were stored for {len(expected):,} requests. "
            "The shard stays open. This is a bug in claude-batch-dagster, please report it."
        )
    return tally.counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Responses:
    """Makes responses of one task from what was kept of their results, and counts them."""

    batch_id: str
    round_number: int
    answered_at: datetime
    grants: Grants
    tally: Tally

    def complete(self, rows: pa.RecordBatch, keys: Keys, max_tokens: Numbers) -> pa.RecordBatch:
        """Return some requests' responses, with what is known of the requests and the batch."""
        self.tally.count_rows(rows)
        count = rows.num_rows
        answered_us = (self.answered_at - EPOCH) // timedelta(microseconds=1)
        columns = {
            **{name: rows.column(name) for name in KEPT.names},
            "request_key": keys_to_arrow(keys),
            "max_tokens": to_arrow(max_tokens, pa.int64()),
            "batch_id": repeat_word(self.batch_id, count),
            "round": to_arrow(np.full(count, self.round_number, np.int32), pa.int32()),
            "answered_at": to_arrow(np.full(count, answered_us, np.int64), SCHEMA.field("answered_at").type),
            "retryable": self._mark(rows, keys, max_tokens),
        }
        return pa.record_batch([columns[name] for name in SCHEMA.names], schema=SCHEMA)

    def _mark(self, rows: pa.RecordBatch, keys: Keys, max_tokens: Numbers) -> pa.Array:
        """Tell of each whether its run asks it again; of most this is known from their outcome."""
        marks = np.zeros(rows.num_rows, np.bool_)
        outcomes, errors = rows.column("outcome").dictionary_encode(), rows.column("error")
        words = outcomes.dictionary.to_pylist()
        answered = np.array([word == Outcome.SUCCEEDED for word in words], np.bool_)
        # to_numpy would import pandas.
        codes = np.frombuffer(outcomes.indices.buffers()[1], np.int32, len(outcomes))
        for row in np.flatnonzero(~answered[codes]).tolist():
            response = Response(
                request_key=keys[row].tobytes(), outcome=words[codes[row]], error=errors[row].as_py(), max_tokens=int(max_tokens[row])
            )
            marks[row] = self.grants.has(response)
        return pa.Array.from_buffers(pa.bool_(), len(marks), [None, pa.py_buffer(np.packbits(marks, bitorder="little"))])


def _count_stored(root: OpenRoot, batch: BatchInput, task_key: str, keys: Keys) -> dict[str, int]:
    stored = Answers(root.store, root.record.endpoint, task_key, batch_ids=(batch.batch_id,))
    return {outcome: requests for outcome, requests in stored.count_outcomes(keys).items() if requests}


def _close_shard(root: OpenRoot, batch: BatchInput) -> None:
    """Write `closed` where the batch is the tip; a shard that somebody settled meanwhile stays as it is."""
    while True:
        records = read_submission(root.store, batch.run_id, batch.round, batch.shard)
        match next_step(records, Mode.DRAIN):
            case Settled():
                return
            case DoAwait(batch_id=batch_id, slot=slot) if batch_id == batch.batch_id:
                append_submission(root.store, batch.run_id, batch.round, batch.shard, slot, Closed(reason=CloseReason.COLLECTED))
            case step:
                raise RootError(
                    f"Batch {batch.batch_id} is stored, but the records of shard {batch.shard} do not end with it ({type(step).__name__}). "
                    "Nothing is lost. The root lost records: restore the folder."
                )
