"""Plan: stream the source, render and key each row, subtract what is in flight and what is answered, stage the rest as shards.

Nothing is sent and nothing is admitted; a preview is the same pass that writes nothing. The order of reading is part of the proof
that nothing is paid twice: the plan log first, the answers after it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uuid_utils

from claude_batch_dagster.core.errors import RootError, SourceError, TaskError
from claude_batch_dagster.core.records import KeysRef, LogEntry, ShardRef
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import (
    REASONS,
    Keys,
    KeySet,
    Mask,
    RowKeys,
    keys_from_arrow,
    read_owned_keys,
    read_row_keys,
    row_keys_path,
)
from claude_batch_dagster.storage.output import carried_columns, check_output, output_schema
from claude_batch_dagster.storage.plans import LogSnapshot, pin_root, read_log, read_root
from claude_batch_dagster.storage.responses import Answers
from claude_batch_dagster.storage.source import Source, SourceFile
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import Estimator, TaskEstimate
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.render import RenderedPiece, render_file
from claude_batch_dagster.verbs.stage import CountingStage, PlanStage


@dataclass(slots=True, kw_only=True)
class Tally:
    """Rows and distinct requests of one output's partition, as planned.

    Attributes:
        rows: Source rows.
        skipped: Rows with nothing to ask about.
        too_large: Rows whose request exceeds a batch on its own.
        asked: Requests that this plan owns.
        already_answered: Requests with a final answer in the store.
        in_flight: Requests that another open run owns.
    """

    rows: int = 0
    skipped: int = 0
    too_large: int = 0
    asked: int = 0
    already_answered: int = 0
    in_flight: int = 0

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        for name in ("rows", "skipped", "too_large", "asked", "already_answered", "in_flight"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be asked.

    Attributes:
        run_id: UUIDv7: of the run, should the plan be admitted.
        snapshot: The plan log before the answers were read.
        tallies: By (task name, partition).
        shards: Staged bodies; none in a preview.
        keys: What the run would own; None in a preview, and where it owns nothing.
        batches: How many bodies the requests make.
        waits: Open runs that hold a wanted key.
        estimates: By task name.
        source: As it was listed.
        fingerprint: Of the source's planned files.
        bad_partitions: Partitions left out, with the reason.
        warnings: What a person should know before saying yes.
        example: The first request's params, as JSON; only in a preview.
    """

    run_id: str
    snapshot: LogSnapshot
    tallies: dict[tuple[str, str | None], Tally]
    shards: tuple[ShardRef, ...]
    keys: KeysRef | None
    batches: int
    waits: tuple[LogEntry, ...]
    estimates: dict[str, TaskEstimate]
    source: Source
    fingerprint: str
    bad_partitions: dict[str, str]
    warnings: tuple[str, ...]
    example: str | None = None

    @property
    def total(self) -> Tally:
        """The sum over all outputs and partitions."""
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    @property
    def worst_nano_usd(self) -> int | None:
        """Each request once, at most; None where a model has no price."""
        return _sum_known(estimate.worst_nano_usd for estimate in self.estimates.values())

    @property
    def expected_nano_usd(self) -> int | None:
        """What it will probably cost; None where a model has no price."""
        return _sum_known(estimate.expected_nano_usd for estimate in self.estimates.values())


@dataclass(slots=True, kw_only=True)
class _Known:
    """What one task's requests are compared with."""

    answers: Answers
    in_flight: dict[int, KeySet] = field(default_factory=dict)
    concluded: KeySet = field(default_factory=KeySet)
    seen: KeySet = field(default_factory=KeySet)


def plan_job(
    job: Job, *, preview: bool = False, concluded_runs: Sequence[str] = (), on_rows: Callable[[Tally], None] | None = None
) -> Plan:
    """Plan a job.

    Args:
        job: What is asked.
        preview: Write nothing, and keep one rendered example.
        concluded_runs: Own runs of this invocation: what they concluded is not planned a second time.
        on_rows: Called every few thousand rows with the sum so far.

    Raises:
        SourceError: Terminal. The source cannot be read as described; of a partitioned one only where no partition can.
        OutputError: Terminal. An output must not be written.
        RootError: Terminal. The root is another endpoint's, or cannot be written.
        TaskError: Terminal. A slot is no column.
    """
    return _Planner(job, preview=preview, concluded_runs=concluded_runs, on_rows=on_rows).plan()


class _Planner:
    def __init__(self, job: Job, *, preview: bool, concluded_runs: Sequence[str], on_rows: Callable[[Tally], None] | None) -> None:
        self._job = job
        self._preview = preview
        self._on_rows = on_rows
        self._store = Store(job.root)
        self._run_id = str(uuid_utils.uuid7())
        self._source = Source(job.source)
        self._concluded_runs = concluded_runs
        self._example: str | None = None
        self._tallies: dict[tuple[str, str | None], Tally] = {}
        self._bad: dict[str, str] = {}
        self._entries: dict[int, LogEntry] = {}
        self._waits: dict[int, LogEntry] = {}

    def plan(self) -> Plan:
        job = self._job
        self._check_outputs()
        files = self._check_source()
        pin_job_root(self._store, job, write=not self._preview)
        # The log before the answers: a run that ends between the two reads must be in one of them.
        snapshot = read_log(self._store)
        known = self._read_known(snapshot)
        estimators = {
            target.task.name: Estimator(target.task.model, target.task.max_tokens, known[target.task.task_key].answers.mean_output_tokens)
            for target in job.targets
        }
        with self._store.scratch() as scratch:
            stage = CountingStage(job) if self._preview else PlanStage(job, self._store, self._run_id, scratch)
            for partition, partition_files in files.items():
                for target in job.targets:
                    tally = Tally()
                    for file in partition_files:
                        self._plan_file(target, file, known[target.task.task_key], estimators[target.task.name], stage, tally, scratch)
                    self._tallies[target.task.name, partition] = tally
            staged = stage.finish()
        estimates = {name: estimator.finish() for name, estimator in estimators.items()}
        return Plan(
            run_id=self._run_id,
            snapshot=snapshot,
            tallies=self._tallies,
            shards=staged.shards,
            keys=staged.keys,
            batches=staged.batches,
            waits=tuple(self._waits.values()),
            estimates=estimates,
            source=self._source,
            fingerprint=source_fingerprint(self._source, [file for group in files.values() for file in group]),
            bad_partitions=self._bad,
            warnings=tuple(
                f"{target.task.model} has no known price: the cost of {target.task.name} is unknown, not zero."
                for target in job.targets
                if estimates[target.task.name].worst_nano_usd is None
            ),
            example=self._example,
        )

    def _check_outputs(self) -> None:
        for target in self._job.targets:
            check_output(Store(target.output), self._job.marker(), replace=self._job.replace)

    def _check_source(self) -> dict[str | None, list[SourceFile]]:
        """Return the files of each good partition; remember why the others are not."""
        good: dict[str | None, list[SourceFile]] = {}
        wanted: Iterable[str | None] = self._job.partitions if self._job.partitions is not None else self._source.partition_keys()
        refused: SourceError | TaskError | None = None
        for partition in wanted:
            try:
                good[partition] = self._check_partition(partition)
            except (SourceError, TaskError) as error:
                if partition is None:
                    raise
                refused = refused or error
                self._bad[partition] = str(error)
        if not good:
            text = f"None of the {len(self._bad)} partitions of {self._source.uri} can be asked about. {next(iter(self._bad.values()), '')}"
            raise (SourceError if refused is None else type(refused))(text.rstrip())
        return good

    def _check_partition(self, partition: str | None) -> list[SourceFile]:
        source, key = self._source, self._job.source.key_columns
        files = source.files_of(partition)
        if not sum(source.row_count(file) for file in files):
            place = f"Partition {partition!r} of {source.uri}" if partition is not None else f"The source {source.uri}"
            raise SourceError(f"{place} has zero rows. It was not asked about. Write its rows first, or leave it out.")
        schema = source.schema(files[0])
        carried = [carried_columns(target.columns, key, schema, self._job.source.partition_column) for target in self._job.targets]
        source.check_types(files, sorted({name for names in carried for name in names}))
        source.check_keys(files)
        for target, names in zip(self._job.targets, carried, strict=True):
            output_schema(target.task, names, schema)
            for file in files:
                Renderer(target.task, source.schema(file).names)
        return files

    def _read_known(self, snapshot: LogSnapshot) -> dict[str, _Known]:
        known = {
            target.task.task_key: _Known(answers=Answers(self._store, self._job.endpoint, target.task.task_key))
            for target in self._job.targets
        }
        for entry in snapshot.open:
            self._subtract_entry(entry, known)
        for run_id in self._concluded_runs:
            for task_key, keys in read_owned_keys(self._store, run_id):
                if task_key in known:
                    known[task_key].concluded.add(keys)
        return known

    def _subtract_entry(self, entry: LogEntry, known: dict[str, _Known]) -> None:
        self._entries[entry.number] = entry
        for task_key, keys in read_owned_keys(self._store, entry.run_id):
            if task_key in known:
                held = known[task_key].in_flight.setdefault(entry.number, KeySet(len(keys)))
                held.add(keys)

    def _plan_file(
        self,
        target: Target,
        file: SourceFile,
        known: _Known,
        estimator: Estimator,
        stage: CountingStage | PlanStage,
        tally: Tally,
        scratch: Path,
    ) -> None:
        task = target.task
        digest = self._source.digest(file)
        kept = read_row_keys(self._store, digest, task.task_key)
        if kept is not None:
            keys = keys_from_arrow(kept["request_key"])
            _count_rows(tally, kept["reason"].to_pylist())
            asked = self._classify(keys, known, tally)
            if not asked.any():
                return
        written = RowKeys(scratch / "row_keys.parquet") if kept is None and not self._preview else None
        start = 0
        for piece in render_file(self._source, file, task):
            if kept is None:
                _count_rows(tally, [None if reason is None else REASONS[reason] for reason in piece.reasons])
                piece_asked = self._classify(piece.keys, known, tally)
            else:
                piece_asked = asked[start : start + len(piece.keys)]
            start += len(piece.keys)
            if written is not None:
                written.append(piece.keys, piece.reasons)
            self._ask(task, piece, piece_asked, estimator, stage)
            self._report(tally)
        if written is not None:
            written.close()
            self._store.put_file(row_keys_path(digest, task.task_key), written.file)

    def _classify(self, keys: Keys, known: _Known, tally: Tally) -> Mask:
        """Tell which rows' requests this plan will own: new here, not in flight, not answered, not concluded."""
        new = known.seen.add(keys)
        wanted = keys[new]
        in_flight = np.zeros(len(wanted), np.bool_)
        for number, held in known.in_flight.items():
            mine = held.contains(wanted)
            if mine.any():
                self._waits[number] = self._entries[number]
            in_flight |= mine
        answered = ~in_flight & (known.answers.final(wanted) | known.concluded.contains(wanted))
        asked = ~in_flight & ~answered
        tally.in_flight += int(in_flight.sum())
        tally.already_answered += int(answered.sum())
        tally.asked += int(asked.sum())
        mask = np.zeros(len(keys), np.bool_)
        mask[np.flatnonzero(new)[asked]] = True
        return mask

    def _ask(self, task: ClaudeTask, piece: RenderedPiece, asked: Mask, estimator: Estimator, stage: CountingStage | PlanStage) -> None:
        rows = np.flatnonzero(asked)
        places = []
        for row in rows:
            request = piece.requests[row]
            assert request is not None, "only rows with a request are asked about"
            if self._preview and self._example is None:
                self._example = request.params.decode()
            places.append(stage.add(task.name, request, estimator.add(len(request.params))))
        stage.own(task.task_key, piece.keys[rows], places)

    def _report(self, tally: Tally) -> None:
        if self._on_rows is not None:
            total = Tally()
            for finished in self._tallies.values():
                total.add(finished)
            total.add(tally)
            self._on_rows(total)


def pin_job_root(store: Store, job: Job, *, write: bool) -> None:
    """Pin the root for this job's endpoint and namespace, or refuse it.

    Raises:
        RootError: Terminal. The root is pinned to others.
    """
    found = pin_root(store, job.root_record(str(uuid_utils.uuid7()))) if write else read_root(store)
    if found is None:
        return
    for what, pinned, asked in (
        ("endpoint", found.endpoint, job.endpoint),
        ("Temporal namespace", found.temporal_namespace, job.temporal_namespace),
    ):
        if pinned != asked:
            raise RootError(
                f"The root {store.uri} belongs to the {what} {pinned!r}, and this run is for {asked!r}. Nothing was sent. "
                f"Use another root (--root, CLAUDE_BATCH_ROOT), or the {what} that it belongs to."
            )


def source_fingerprint(source: Source, files: Iterable[SourceFile]) -> str:
    """Return what the planned files' names and contents hash to."""
    content = "\n".join(f"{file.path} {source.digest(file)}" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _count_rows(tally: Tally, reasons: Sequence[str | None]) -> None:
    tally.rows += len(reasons)
    tally.skipped += reasons.count("skipped")
    tally.too_large += reasons.count("too_large")


def _sum_known(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
