"""Collects an ended batch: stream, spool, verify, decode, store; then closes the shard.

Results come in any order and are joined by custom_id alone. Every request of the shard ends with exactly one response; whatever else
the stream holds is counted, said, and never stored. Raw lines stay in the spool file: memory holds the ids of one shard.
"""

import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from claude_batch_dagster.core.contract import BatchInput, Counts
from claude_batch_dagster.core.errors import RefusedError, RootError, VendorUnavailableError
from claude_batch_dagster.core.request import parse_custom_id, short_name
from claude_batch_dagster.core.response import Decoder, PriceUsage, Response, read_result_line
from claude_batch_dagster.core.shard import iter_lines, line_custom_id, line_max_tokens
from claude_batch_dagster.core.submission import Closed, CloseReason, DoAwait, Mode, Settled, next_step
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import append_submission, read_shard, read_submission, read_task
from claude_batch_dagster.storage.responses import Answers, responses_path, write_responses
from claude_batch_dagster.storage.store import Store
from temporal_worker.further import Grants, ModelLimits
from temporal_worker.root import OpenRoot, check_endpoint, open_root
from temporal_worker.spool import SpooledResponses, Tally
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

FETCHES = 3
ABSENT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Collects ended batches of any root.

    Attributes:
        open_store: Opens a root by its URI.
        price_usage: What an answer costs.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    price_usage: PriceUsage

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
        root = open_root(self.open_store(batch.root), number=batch.number, run_id=batch.run_id)
        check_endpoint(root, self.batches.find_endpoint())
        expected = _read_requests(root, batch)
        decoders = [Decoder(read_task(root.store, task.task_key), self.price_usage) for task in root.entry.tasks]
        with root.store.scratch() as scratch:
            if ended.archived:
                results = _Results(spool=None, starts=array("q", [ABSENT]) * len(expected.custom_ids))
            else:
                results = self._fetch_whole(batch, expected, scratch / "results.jsonl", report)
            counts = _store_responses(root, batch, ended, expected, results, decoders, ModelLimits(self.batches), report)
        if not batch.stray:
            _close_shard(root, batch)
        return counts

    def _fetch_whole(self, batch: BatchInput, expected: "_Requests", spool: Path, report: Callable[[str], None]) -> "_Results":
        """Fetch the results until every request has one, three times at most; what is missing then has none at the vendor."""
        cut: VendorUnavailableError | None = None
        results: _Results | None = None
        for fetch in range(1, FETCHES + 1):
            report(f"Batch {batch.batch_id} ended: reading its results, fetch {fetch} of at most {FETCHES}")
            try:
                self._fetch(batch.batch_id, spool, report)
            except VendorUnavailableError as error:
                cut, results = error, None
                continue
            except RefusedError as error:
                # To call them missing would have the next run buy them again.
                raise VendorUnavailableError(f"{error} They are read again later, until the batch is archived.") from error
            results = _index_spool(spool, expected)
            if results.missing == 0:
                break
        if results is None:
            assert cut is not None
            raise cut
        if results.missing or results.foreign or results.duplicate:
            log.warning(
                "batch %s: of %d requests %d have no result; %d results were of no request of the shard, %d came twice; none of these is stored",
                batch.batch_id,
                len(expected.custom_ids),
                results.missing,
                results.foreign,
                results.duplicate,
            )
        return results

    def _fetch(self, batch_id: str, spool: Path, report: Callable[[str], None]) -> None:
        size = 0
        with self.batches.stream_results(batch_id) as chunks, spool.open("wb") as out:
            for chunk in chunks:
                out.write(chunk)
                size += len(chunk)
                report(f"Batch {batch_id} ended: {size:,} bytes of results read")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requests:
    """A shard's requests in order.

    Attributes:
        custom_ids: Place of each custom_id.
        tasks: Index, in the plan's tasks, of each request's task.
        max_tokens: Of each request: where it is asked again, it may have been raised.
    """

    custom_ids: dict[str, int]
    tasks: "array[int]"
    max_tokens: "array[int]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Results:
    """A spooled results file; `starts` is the offset of each request's line in it, ABSENT for none."""

    spool: Path | None
    starts: "array[int]"
    foreign: int = 0
    duplicate: int = 0

    @property
    def missing(self) -> int:
        """Requests without a result."""
        return self.starts.count(ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TaskResults:
    """The results of one task's requests, which stand at these places of the shard."""

    places: "array[int]"
    custom_ids: Sequence[str]
    max_tokens: "array[int]"
    results: _Results
    spool: BinaryIO | None
    decoder: Decoder
    grants: Grants

    def decode(self, index: int) -> Response:
        place = self.places[index]
        request_key = bytes.fromhex(parse_custom_id(self.custom_ids[place]).request_key)
        start = self.results.starts[place]
        if self.spool is None:
            response = self.decoder.missing_result(request_key, "the API has no results of this batch any more")
        elif start == ABSENT:
            response = self.decoder.missing_result(request_key, f"the results of the batch lack it, {FETCHES} times in a row")
        else:
            self.spool.seek(start)
            response = self.decoder.decode_result(request_key, read_result_line(self.spool.readline()).result)
        response = replace(response, max_tokens=self.max_tokens[place])
        return replace(response, retryable=True) if self.grants.has(response) else response


def _read_requests(root: OpenRoot, batch: BatchInput) -> _Requests:
    shard = read_shard(root.store, root.entry, batch.round, batch.shard)
    names = {short_name(task.name): place for place, task in enumerate(root.entry.tasks)}
    custom_ids: dict[str, int] = {}
    tasks = array("i")
    max_tokens = array("q")
    try:
        for line in iter_lines(root.store.stream(shard.path)):
            custom_id = line_custom_id(line)
            custom_ids[custom_id] = len(tasks)
            tasks.append(names[parse_custom_id(custom_id).name])
            max_tokens.append(line_max_tokens(line))
    except FileNotFoundError as error:
        raise RootError(
            f"{root.store.uri}/{shard.path} is missing: the root lost its records. Batch {batch.batch_id} is not collected without them, "
            "its results can be read for 29 days. Restore the file."
        ) from error
    if len(custom_ids) != shard.requests:
        raise RootError(
            f"{root.store.uri}/{shard.path} holds {len(custom_ids):,} requests, the plan says {shard.requests:,}. "
            f"Batch {batch.batch_id} is not collected. Restore the file."
        )
    return _Requests(custom_ids=custom_ids, tasks=tasks, max_tokens=max_tokens)


def _index_spool(spool: Path, expected: _Requests) -> _Results:
    starts = array("q", [ABSENT]) * len(expected.custom_ids)
    foreign = duplicate = 0
    start = 0
    with spool.open("rb") as lines, spool.open("rb") as earlier:
        for line in lines:
            place = _find_place(line, expected)
            if place is None:
                foreign += bool(line.strip())
            elif starts[place] == ABSENT:
                starts[place] = start
            else:
                earlier.seek(starts[place])
                same = earlier.readline().rstrip(b"\n") == line.rstrip(b"\n")
                duplicate += same
                foreign += not same
            start += len(line)
    return _Results(spool=spool, starts=starts, foreign=foreign, duplicate=duplicate)


def _find_place(line: bytes, expected: _Requests) -> int | None:
    try:
        return expected.custom_ids.get(read_result_line(line).custom_id)
    except ValueError:
        return None


def _store_responses(
    root: OpenRoot,
    batch: BatchInput,
    ended: Batch,
    expected: _Requests,
    results: _Results,
    decoders: Sequence[Decoder],
    limits: ModelLimits,
    report: Callable[[str], None],
) -> Counts:
    keys = list(expected.custom_ids)
    tally = Tally()
    spool = None if results.spool is None else results.spool.open("rb")
    try:
        for number, (task, decoder) in enumerate(zip(root.entry.tasks, decoders, strict=True)):
            places = array("i", (place for place, task_number in enumerate(expected.tasks) if task_number == number))
            if not places:
                continue
            if results.spool is None and root.store.exists(responses_path(root.record.endpoint, task.task_key, batch.batch_id)):
                # Collected before its results were gone, by somebody who died before the shard was closed.
                tally.keep(_count_stored(root, batch, task.task_key, [keys[place] for place in places]))
                continue
            report(f"Batch {batch.batch_id} ended: storing {len(places):,} responses of {task.name}")
            found = _TaskResults(
                places=places,
                custom_ids=keys,
                max_tokens=expected.max_tokens,
                results=results,
                spool=spool,
                decoder=decoder,
                grants=Grants(root, task.task_key, batch.round, limits),
            )
            write_responses(
                root.store,
                endpoint=root.record.endpoint,
                task_key=task.task_key,
                batch_id=batch.batch_id,
                round_number=batch.round,
                answered_at=ended.ended_at or ended.created_at,
                responses=SpooledResponses(len(places), found.decode, tally),
            )
    finally:
        if spool is not None:
            spool.close()
    if sum(tally.by_outcome.values()) != len(keys):
        raise RootError(
            f"Batch {batch.batch_id}: {sum(tally.by_outcome.values()):,} responses were stored for {len(keys):,} requests. "
            "The shard stays open. This is a bug in claude-batch-dagster, please report it."
        )
    return tally.counts()


def _count_stored(root: OpenRoot, batch: BatchInput, task_key: str, custom_ids: Sequence[str]) -> dict[str, int]:
    stored = Answers(root.store, root.record.endpoint, task_key, batch_ids=(batch.batch_id,))
    counts = stored.count_outcomes(pack_keys([bytes.fromhex(parse_custom_id(custom_id).request_key) for custom_id in custom_ids]))
    return {outcome: requests for outcome, requests in counts.items() if requests}


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
