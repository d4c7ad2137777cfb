"""Compares the vendor's list of the last 29 days with a root's records: what `claude-batch doctor --audit` has a worker do.

Nothing is sent and no answer is stored; only the key's workspace is pinned where it never was.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from claude_batch_dagster.core.errors import RefusedError
from claude_batch_dagster.core.records import DoneRecord, LogEntry
from claude_batch_dagster.core.recovery_contract import RESULTS_KEPT, AuditedBatch, AuditInput, AuditReport
from claude_batch_dagster.core.response import iter_result_lines
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.storage.plans import list_strays, list_submissions, read_done, read_entries
from claude_batch_dagster.storage.recovered import count_stored, list_stored
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import Piece
from claude_batch_dagster.storage.twice import count_answered_twice
from temporal_worker.harvest import check_root, read_custom_id
from temporal_worker.vendor import Batch

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

SHOWN = 20
FIRST_LINES = 100
CLOCK_SLACK = timedelta(seconds=5)
"""Between a worker's clock and a client's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A batch in a shard's log; `collected` where nothing of its shard is open."""

    id: str
    entry: LogEntry
    created_at: datetime
    collected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Auditor:
    """Audits any root.

    Attributes:
        open_store: Opens a root by its URI.
        clock: Now, aware; how far back the vendor's list is read.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    clock: Callable[[], datetime]

    def audit(self, ask: AuditInput, report: Callable[[str], None]) -> AuditReport:
        """Return what the list and the records say of each other.

        Args:
            ask: The root.
            report: Told what is being done; it may raise to stop the work.

        Raises:
            RootError: Terminal. The root is not pinned, or is another vendor's.
            CredentialsError: Terminal. The key is refused, or is of another workspace.
            VendorUnavailableError: Transient.
        """
        store = self.open_store(ask.root)
        endpoint = check_root(store, self.batches)
        since = self.clock() - RESULTS_KEPT
        listed = {batch.id: batch for batch in self.batches.list_batches(created_after=since)}
        report(f"{len(listed):,} batches listed: reading the root's records")
        # The records after the list: a batch that is created between the two is in no list, and so in no finding.
        recorded = {one.id: one for entry in read_entries(store) for one in _read_recorded(store, entry)}
        comparison = _Comparison(store=store, batches=self.batches, stored=list_stored(store, endpoint), report=report)
        strays = {stray.batch_id: stray.run_id for stray in list_strays(store)}
        for batch in listed.values():
            if batch.id in recorded:
                comparison.counts["recorded"] += 1
            else:
                comparison.look_at(batch, strays)
        for one in recorded.values():
            comparison.look_at_record(one, listed.get(one.id), since)
        report("comparing the answers")
        twice = count_answered_twice(store, endpoint)
        comparison.look_at_twice(twice, recorded, strays)
        return AuditReport(
            listed=len(listed),
            **comparison.counts,
            examples={kind: tuple(found) for kind, found in comparison.examples.items()},
        )


def _read_recorded(store: Store, entry: LogEntry) -> Iterable[_Recorded]:
    for records in list_submissions(store, entry.run_id).values():
        for record in records:
            if isinstance(record, Accepted):
                created_at = datetime.fromisoformat(record.created_at)
                yield _Recorded(id=record.id, entry=entry, created_at=created_at, collected=record is not records[-1])


@dataclass(slots=True, kw_only=True)
class _Comparison:
    store: Store
    batches: "Batches"
    stored: dict[str, dict[str, list[Piece]]]
    report: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[AuditedBatch]] = field(default_factory=dict)
    done: dict[int, DoneRecord | None] = field(default_factory=dict)

    def look_at(self, batch: Batch, strays: dict[str, str]) -> None:
        """Find out what a batch is that is in no shard's log."""
        stored = count_stored(self.store, self.stored.get(batch.id, {}))
        if stored >= batch.requests > 0:
            self.counts["recovered"] += 1
        elif batch.id in strays:
            self._note("strays", batch, f"{stored:,} of {batch.requests:,} answers stored")
        elif not batch.ended:
            self._note("in_progress", batch, f"{batch.requests:,} requests")
        elif stored:
            self._note("unstored", batch, f"{stored:,} of {batch.requests:,} answers stored")
        else:
            self._look_inside(batch)

    def _look_inside(self, batch: Batch) -> None:
        self.report(f"Batch {batch.id} is in no record: reading its first results")
        try:
            with self.batches.stream_results(batch.id) as chunks:
                ids = map(read_custom_id, islice(iter_result_lines(chunks), FIRST_LINES))
                found = next((custom_id for custom_id in ids if custom_id is not None), None)
        except RefusedError:
            self._note("unreadable", batch, f"{batch.requests:,} requests")
        else:
            if found is None:
                self.counts["foreign"] += 1
            else:
                self._note("unstored", batch, f"none of {batch.requests:,} answers of task {found.name} stored")

    def look_at_record(self, one: _Recorded, batch: Batch | None, since: datetime) -> None:
        """Compare a recorded batch with what the vendor has of it."""
        if batch is not None and not batch.archived:
            return
        if not one.collected:
            what = "deleted" if batch is None and one.created_at >= since else "archived"
            self.counts["lost"] += 1
            self._name("lost", AuditedBatch(id=one.id, run=one.entry.label, note=f"{what} before it was collected"))
        elif one.created_at >= since:
            self.counts["gone"] += 1

    def look_at_twice(self, twice: dict[tuple[str, str], int], recorded: dict[str, _Recorded], strays: dict[str, str]) -> None:
        """Tell requests that were answered twice on purpose from those that were paid twice."""
        for pair, requests in twice.items():
            first, second = sorted(pair, key=lambda batch_id: recorded[batch_id].entry.number if batch_id in recorded else 0)
            kind = self._judge_twice(recorded.get(first), recorded.get(second), is_stray=not strays.keys().isdisjoint(pair))
            if kind is not None:
                self.counts[kind] += requests
                run = recorded[second].entry.label if second in recorded else None
                self._name(kind, AuditedBatch(id=second, run=run, note=f"{requests:,} of its answers are in {first} too"))

    def _judge_twice(self, first: _Recorded | None, second: _Recorded | None, *, is_stray: bool) -> str | None:
        if is_stray:
            return "paid_twice"
        if first is None or second is None:
            return "twice_unknown"
        if first.entry.number not in self.done:
            self.done[first.entry.number] = read_done(self.store, first.entry.number)
        done = self.done[first.entry.number]
        if done is None or first.entry.number == second.entry.number:
            return "paid_twice"
        # A plan owns an answered request only where a person asked for it again.
        was_over = datetime.fromisoformat(done.finished_at) <= datetime.fromisoformat(second.entry.admitted_at) + CLOCK_SLACK
        return None if was_over else "paid_twice"

    def _note(self, kind: str, batch: Batch, note: str) -> None:
        self.counts[kind] += 1
        self._name(kind, AuditedBatch(id=batch.id, note=f"created {batch.created_at:%Y-%m-%d %H:%M} UTC, {note}"))

    def _name(self, kind: str, found: AuditedBatch) -> None:
        examples = self.examples.setdefault(kind, [])
        if len(examples) < SHOWN:
            examples.append(found)
