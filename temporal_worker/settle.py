"""Settles a submission whose end nobody saw: look, wait, list, prove. PROTOCOL in docs/reliability.md, "One shard".

The workflow has waited until the batch, if there is one, must be in the vendor's list. Every listed batch that could be it is seen to its
end, for only results prove whose a batch is. Nothing is guessed: what cannot be proved is asked.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from claude_batch_dagster.core.contract import Candidates, DoubtInput, Submitted
from claude_batch_dagster.core.errand_contract import AdoptInput
from claude_batch_dagster.core.errors import RefusedError, RunError
from claude_batch_dagster.core.response import iter_result_lines, read_result_line
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.submission import (
    Accepted,
    DoAsk,
    Evidence,
    How,
    Mode,
    NotAccepted,
    Record,
    Unknown,
    earliest_creation,
    is_candidate,
    is_proof,
    next_step,
)
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.plans import append_submission, list_claimed, read_shard, read_submission
from claude_batch_dagster.storage.store import Store
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, open_root
from temporal_worker.submit import explain_choices
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

CLAIMED_FOR = timedelta(days=2)
"""Batches of runs that were admitted before, and are over, are looked at in vain where they are listed as new: that only delays."""
MOST_CANDIDATES = 100
LONGEST_BATCH_S = 26 * 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settler:
    """Settles submissions of any root.

    Attributes:
        open_store: Opens a root by its URI.
        clock: Now, aware: only to leave out runs that were over days ago.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    clock: Callable[[], datetime]

    def find_candidates(self, doubt: DoubtInput) -> Candidates:
        """Return the batches in the vendor's list, as it is now, that could be the shard's.

        Raises:
            CredentialsError: Terminal. The key is of another workspace, or refused.
            RootError: Terminal.
            VendorUnavailableError: Transient.
        """
        root = self._open(doubt)
        step = next_step(_read(root, doubt), Mode.DRAIN)
        if not isinstance(step, Unknown) or step.slot != doubt.slot:
            return Candidates()
        reach("list:batches.before")
        check_workspace(root, self.batches.check_key_and_list().workspace_id)
        claimed = list_claimed(root.store, self.clock() - CLAIMED_FOR)
        found = [
            batch.id
            for batch in self.batches.list_batches(created_after=earliest_creation(step.send))
            if is_candidate(step.send, batch_id=batch.id, requests=batch.requests, created_at=batch.created_at, claimed=claimed)
        ]
        reach("list:batches.after")
        if len(found) > MOST_CANDIDATES:
            return Candidates(
                question=_ask(root, doubt.shard, f"{len(found):,} batches of its size are listed, too many to tell which is it.")
            )
        return Candidates(batch_ids=tuple(found))

    def settle(self, doubt: DoubtInput, report: Callable[[str], None]) -> Submitted | Batch:
        """Write what became of a submission as soon as that is certain.

        Args:
            doubt: The shard, the slot, and the candidates that were found.
            report: Told what is being done; it may raise to stop the work, which loses nothing.

        Returns:
            What became of it; or the candidates that are left once some were proved foreign, whose results need not be read again; or one that
            is still in progress: come again when it may have ended.

        Raises:
            CredentialsError: Terminal.
            RootError: Terminal.
            VendorUnavailableError: Transient.
        """
        root = self._open(doubt)
        records = _read(root, doubt)
        if len(records) != doubt.slot:
            return Submitted(again=True)
        claimed = list_claimed(root.store, self.clock() - CLAIMED_FOR)
        running: list[Batch] = []
        unreadable: list[str] = []
        foreign: set[str] = set()
        for batch_id in doubt.candidates:
            if batch_id in claimed:
                continue
            report(f"Shard {doubt.shard}: is {batch_id} its batch?")
            match self._look(root, doubt, batch_id):
                case Batch(archived=True):
                    unreadable.append(batch_id)
                case Batch(ended=False) as batch:
                    running.append(batch)
                case Batch() as batch if (proved := self._prove(root, doubt, batch_id)) is None:
                    unreadable.append(batch_id)
                case Batch() as batch:
                    if proved:
                        created_at = batch.created_at.isoformat()
                        return self._write(root, doubt, Accepted(id=batch_id, created_at=created_at, by=Evidence.PROOF))
                    foreign.add(batch_id)
                case None:
                    unreadable.append(batch_id)
        # What may still prove itself comes before a question: whoever answers one must not find the batch afterwards.
        near = [batch for batch in running if batch.age_s <= LONGEST_BATCH_S]
        if near:
            if foreign:
                return Submitted(candidates=tuple(batch_id for batch_id in doubt.candidates if batch_id not in foreign))
            return min(near, key=lambda batch: batch.age_s)
        if unreadable:
            return Submitted(question=_ask(root, doubt.shard, f"Its batch may be {_join(unreadable)}, whose results cannot be read."))
        if running:
            hours = LONGEST_BATCH_S / 3_600
            return Submitted(
                question=_ask(root, doubt.shard, f"Its batch may be {_join(b.id for b in running)}, in progress for over {hours:.0f} h.")
            )
        return self._write(root, doubt, NotAccepted(why="the list of batches has none that could be it", how=How.RECONCILED))

    def adopt(self, adopt: AdoptInput) -> str:
        """Take a batch that a person named for the shard's, if its results prove it; return what was done.

        Raises:
            RunError: Terminal. It is not, or the shard waits for no answer.
            CredentialsError: Terminal.
            RefusedError: Terminal. There is no such batch, or its results are gone.
            VendorUnavailableError: Transient.
        """
        root = self._open(adopt)
        label = root.entry.label
        records = _read(root, adopt)
        step = next_step(records, Mode.RUN)
        if not isinstance(step, (Unknown, DoAsk)):
            raise RunError(
                f"Shard {adopt.shard} of batch run {label} waits for no answer. Nothing was changed. See claude-batch status {label}."
            )
        batch = self.batches.get(adopt.batch_id)
        if not batch.ended:
            raise RunError(
                f"Batch {batch.id} is {batch.processing_status}: only its results prove whose it is. Nothing was changed. Try again later."
            )
        if batch.archived:
            raise RunError(
                f"The results of batch {batch.id} are gone, so nothing proves whose it is. Nothing was changed. Answer resend or abandon."
            )
        claimed = list_claimed(root.store, datetime.min.replace(tzinfo=self.clock().tzinfo))
        if batch.id in claimed:
            raise RunError(f"Batch {batch.id} belongs to another submission of this root. Nothing was changed. Look for another one.")
        if not self._prove(root, adopt, batch.id):
            raise RunError(
                f"Batch {batch.id} does not hold the requests of shard {adopt.shard} of batch run {label}. Nothing was changed. Look for another one."
            )
        record = Accepted(id=batch.id, created_at=batch.created_at.isoformat(), by=Evidence.PROOF)
        if not append_submission(root.store, adopt.run_id, adopt.round, adopt.shard, len(records), record):
            raise RunError(
                f"Shard {adopt.shard} of batch run {label} was settled meanwhile. Nothing was changed. See claude-batch status {label}."
            )
        return f"Batch {batch.id} is taken for shard {adopt.shard} of batch run {label}: its results have the custom_ids of the shard."

    def _open(self, ask: DoubtInput | AdoptInput) -> OpenRoot:
        root = open_root(self.open_store(ask.root), number=ask.number, run_id=ask.run_id)
        check_endpoint(root, self.batches.find_endpoint())
        return root

    def _look(self, root: OpenRoot, doubt: DoubtInput, batch_id: str) -> Batch | None:
        try:
            return self.batches.get(batch_id)
        except RefusedError as error:
            # Listed, and not found now: deleted by somebody.
            log.warning("shard %d of batch run %s: %s", doubt.shard, root.entry.label, error)
            return None

    def _prove(self, root: OpenRoot, ask: DoubtInput | AdoptInput, batch_id: str) -> bool | None:
        """Tell whether an ended batch is the shard's by its results, None where they cannot be read."""
        shard = read_shard(root.store, root.entry, ask.round, ask.shard)
        expected = {line_custom_id(line) for line in iter_lines(root.store.stream(shard.path))}
        lines = 0

        def custom_ids(chunks: Iterable[bytes]) -> Iterator[str]:
            nonlocal lines
            for line in iter_result_lines(chunks):
                with suppress(ValueError):
                    yield read_result_line(line).custom_id
                    lines += 1

        try:
            with self.batches.stream_results(batch_id) as chunks:
                proved = is_proof(custom_ids(chunks), expected)
        except RefusedError as error:
            log.warning("shard %d of batch run %s: %s", ask.shard, root.entry.label, error)
            return None
        return proved if proved or lines else None

    def _write(self, root: OpenRoot, doubt: DoubtInput, record: Accepted | NotAccepted) -> Submitted:
        won = append_submission(root.store, doubt.run_id, doubt.round, doubt.shard, doubt.slot, record)
        if isinstance(record, Accepted) and won:
            log.info("batch %s is shard %d of batch run %s: its results prove it", record.id, doubt.shard, root.entry.label)
        return Submitted(again=True)


def _read(root: OpenRoot, ask: DoubtInput | AdoptInput) -> list[Record]:
    return read_submission(root.store, ask.run_id, ask.round, ask.shard)


def _ask(root: OpenRoot, shard: int, found: str) -> str:
    return f"Shard {shard} of batch run {root.entry.label} was sent, and no reply came back. {found} {explain_choices(root.entry, shard)}"


def _join(batch_ids: Iterable[str]) -> str:
    return " or ".join(batch_ids)
