"""Plan: stream the source, render and key each row, subtract what is in flight and what is answered, stage the rest as shards.

Nothing is sent and nothing is admitted; a preview is the same pass that writes nothing. The order of reading is part of the proof
that nothing is paid twice: the plan log first, the answers after it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import uuid_utils

from claude_batch_dagster.core.errors import OutputError, SourceError, TaskError, UsageError
from claude_batch_dagster.core.records import KeysRef, LogEntry, ShardRef
from claude_batch_dagster.core.request import LineFrame, Renderer
from claude_batch_dagster.core.shard import raise_params
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.heap import keep_freed_memory
from claude_batch_dagster.storage.keys import Keys, Mask
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.output import carried_columns, check_output, is_whole_output, output_path, output_schema
from claude_batch_dagster.storage.plans import LogSnapshot, read_log
from claude_batch_dagster.storage.source import Source, SourceFile
from claude_batch_dagster.storage.store import Store, join_uri
from claude_batch_dagster.verbs.drift import Drift
from claude_batch_dagster.verbs.estimate import Estimator, TaskEstimate, params_counter
from claude_batch_dagster.verbs.job import Job, Target
from claude_batch_dagster.verbs.pin import pin_job_root
from claude_batch_dagster.verbs.preflight import Preflight, plan_preflight
from claude_batch_dagster.verbs.reasons import ReasonCounter
from claude_batch_dagster.verbs.render import KeyKeeper, RenderedPiece, iter_kept_keys, read_or_render_keys, render_rows
from claude_batch_dagster.verbs.select import FileRows, leaves_rows_out, row_key_texts, select_rows
from claude_batch_dagster.verbs.stage import CountingStage, PlanStage, Staged
from claude_batch_dagster.verbs.subtract import Subtraction, read_subtractions
from claude_batch_dagster.verbs.tally import Tally, sum_tallies


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
        limit: Set where a limit leaves rows out.
        reasons: Distinct requests to ask, by why.
        changed_parts: By task name: which parts of the task differ from the versions that wrote the output.
        preflights: New tasks' requests on a sample text; in a preview they are not staged.
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
    limit: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    changed_parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    preflights: tuple[Preflight, ...] = ()
    example: str | None = None

    @property
    def total(self) -> Tally:
        """The sum over all outputs and partitions."""
        return sum_tallies(self.tallies.values())

    @property
    def worst_nano_usd(self) -> int | None:
        """Each request once, at most, and the tries of new tasks; None where a model has no price."""
        return _sum_known([one.worst_nano_usd for one in self.estimates.values()] + [one.worst_nano_usd for one in self.preflights])

    @property
    def expected_nano_usd(self) -> int | None:
        """What it will probably cost; None where a model has no price."""
        return _sum_known([one.expected_nano_usd for one in self.estimates.values()] + [one.expected_nano_usd for one in self.preflights])


def plan_job(
    job: Job,
    *,
    preview: bool = False,
    concluded_runs: Sequence[str] = (),
    waited_runs: Sequence[str] = (),
    on_rows: Callable[[Tally], None] | None = None,
) -> Plan:
    """Plan a job.

    Args:
        job: What is asked.
        preview: Write nothing, and keep one rendered example.
        concluded_runs: Own runs of this invocation: what they concluded is not planned a second time.
        waited_runs: Runs of others that this invocation waited for: what they answered is not asked again on purpose.
        on_rows: Called every few thousand rows with the sum so far.

    Raises:
        SourceError: Terminal. The source cannot be read as described; of a partitioned one only where no partition can.
        OutputError: Terminal. An output must not be written.
        RootError: Terminal. The root is another endpoint's, or cannot be written.
        TaskError: Terminal. A slot is no column.
    """
    keep_freed_memory()
    return _Planner(job, preview=preview, concluded_runs=concluded_runs, waited_runs=waited_runs, on_rows=on_rows).plan()


def _partitions(number: int) -> str:
    return f"{number:,} {'partition' if number == 1 else 'partitions'}"


class _Planner:
    def __init__(
        self,
        job: Job,
        *,
        preview: bool,
        concluded_runs: Sequence[str],
        waited_runs: Sequence[str],
        on_rows: Callable[[Tally], None] | None,
    ) -> None:
        self._job = job
        self._preview = preview
        self._on_rows = on_rows
        self._store = Store(job.root)
        self._run_id = str(uuid_utils.uuid7())
        self._source = Source(job.source)
        self._concluded_runs = concluded_runs
        self._waited_runs = waited_runs
        self._bad: dict[str, str] = {}

    def plan(self) -> Plan:
        for target in self._job.targets:
            check_output(Store(target.output, refusal=OutputError), self._job.marker(), replace=self._job.replace)
        files = self._check_source()
        pin_job_root(self._store, self._job, write=not self._preview)
        while True:
            try:
                return self._plan_files(files)
            except _BadPartitionError as error:
                # What was staged of it is garbage that no record names; its neighbours' keys are kept, so this costs little.
                self._bad[error.partition] = str(error)
                del files[error.partition]
                if not files:
                    raise SourceError(f"None of {_partitions(len(self._bad))} of {self._source.uri} can be asked about. {error}") from error

    def _plan_files(self, files: dict[str | None, list[SourceFile]]) -> Plan:
        limited = leaves_rows_out(self._source, files, self._job.limit)
        selected = select_rows(self._source, files, self._job.limit)
        if limited:
            self._check_limit(selected)
        # The log before the answers: a run that ends between the two reads must be in one of them.
        snapshot = read_log(self._store)
        known = read_subtractions(
            self._store,
            self._job,
            snapshot,
            rows=sum(part.rows for parts in selected.values() for part in parts),
            concluded_runs=self._concluded_runs,
            waited_runs=self._waited_runs,
        )
        if self._job.ask_again:
            self._add_again(selected, known)
        with self._store.scratch() as scratch, ExitStack() as opened:
            stage = CountingStage(self._job) if self._preview else PlanStage(self._job, self._store, self._run_id, scratch)
            opened.callback(stage.close)
            plans = {
                target.task.name: _TargetPlan.begin(self._job, target, self._source, known[target.task.task_key])
                for target in self._job.targets
            }
            tallies: dict[tuple[str, str | None], Tally] = {}
            for partition, parts in selected.items():
                for name, plan in plans.items():
                    tally = tallies[name, partition] = Tally()
                    try:
                        for part in parts:
                            self._plan_part(plan, partition, part, stage, tally, tallies)
                    except SourceError as error:
                        if partition is None:
                            raise
                        raise _BadPartitionError(str(error), partition=partition) from error
            staged = stage.finish()
        return self._conclude(plans, staged, tallies, snapshot, files, limited=limited)

    def _conclude(
        self,
        plans: "dict[str, _TargetPlan]",
        staged: Staged,
        tallies: dict[tuple[str, str | None], Tally],
        snapshot: LogSnapshot,
        files: dict[str | None, list[SourceFile]],
        *,
        limited: bool,
    ) -> Plan:
        holders = {number for plan in plans.values() for number in plan.holders}
        estimates = {name: plan.estimator.finish() for name, plan in plans.items()}
        reasons: Counter[str] = Counter()
        for plan in plans.values():
            reasons.update(plan.reasons.counts)
        return Plan(
            run_id=self._run_id,
            snapshot=snapshot,
            tallies=tallies,
            shards=staged.shards,
            keys=staged.keys,
            batches=staged.batches,
            waits=tuple(entry for entry in snapshot.open if entry.number in holders),
            estimates=estimates,
            source=self._source,
            fingerprint=source_fingerprint(self._source, [file for group in files.values() for file in group]),
            bad_partitions=self._bad,
            warnings=tuple(
                f"{plan.task.model} has no known price: the cost of {name} is unknown, not zero."
                for name, plan in plans.items()
                if estimates[name].worst_nano_usd is None
            ),
            limit=self._job.limit if limited else None,
            reasons={reason: count for reason, count in reasons.items() if count},
            changed_parts={name: changes for name, plan in plans.items() if (changes := plan.reasons.describe_changes(self._store))},
            preflights=self._plan_preflights(plans, files) if self._job.preflight else (),
            example=next((plan.example for plan in plans.values() if plan.example), None) if self._preview else None,
        )

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
            text = f"None of {_partitions(len(self._bad))} of {self._source.uri} can be asked about. {next(iter(self._bad.values()), '')}"
            raise (SourceError if refused is None else type(refused))(text.rstrip())
        return good

    def _check_partition(self, partition: str | None) -> list[SourceFile]:
        source, key = self._source, self._job.source.key_columns
        files = source.files_of(partition)
        if not sum(source.row_count(file) for file in files):
            place = f"Partition {partition!r} of {source.uri}" if partition is not None else f"The source {source.uri}"
            raise SourceError(f"{place} has zero rows. Nothing of it was sent. Write its rows first, or leave it out.")
        schema = source.schema(files[0])
        carried = [carried_columns(target.columns, key, schema, self._job.source.partition_column) for target in self._job.targets]
        source.check_types(files, sorted({name for names in carried for name in names}))
        source.check_keys(files)
        for target, names in zip(self._job.targets, carried, strict=True):
            output_schema(target.task, names, schema)
            for file in files:
                Renderer(target.task, source.schema(file).names)
        return files

    def _check_limit(self, selected: dict[str | None, list[FileRows]]) -> None:
        """Refuse to put a few rows in the place of all of them."""
        for target in self._job.targets:
            for partition in selected:
                path = output_path(self._job.source.partition_column, partition)
                if not self._job.replace and is_whole_output(Store(target.output, refusal=OutputError), path):
                    raise OutputError(
                        f"The output {join_uri(target.output, path)} holds all rows, and --limit {self._job.limit} would leave the first ones only. "
                        "Nothing was sent. Choose another folder, or add --replace (in Dagster: replace=True)."
                    )

    def _add_again(self, selected: dict[str | None, list[FileRows]], known: dict[str, Subtraction]) -> None:
        """Find the requests of the rows that are asked again, in every file, before any of them is compared."""
        missing = set(self._job.ask_again)
        for part in (part for parts in selected.values() for part in parts):
            texts = list(row_key_texts(self._source, part, self._job.source.key_columns))
            rows = np.flatnonzero([text in self._job.ask_again for text in texts])
            missing -= {texts[row] for row in rows}
            for target in self._job.targets if len(rows) else ():
                found = read_or_render_keys(self._store, self._source, part, target.task, keep=not self._preview)
                known[target.task.task_key].again.add(found.keys[rows])
        # A row that is gone from a source that changed meanwhile was asked again by the run before.
        if missing and not (self._concluded_runs or self._waited_runs):
            keys = f"the {len(missing):,} keys" if len(missing) > 1 else "the key"
            raise UsageError(
                f"No row of {self._source.uri} has {keys} to ask again: {', '.join(sorted(missing)[:5])}. Nothing was sent. "
                "Check the spelling; several key columns are joined by commas."
            )

    def _plan_part(
        self,
        plan: "_TargetPlan",
        partition: str | None,
        part: FileRows,
        stage: CountingStage | PlanStage,
        tally: Tally,
        tallies: dict[tuple[str, str | None], Tally],
    ) -> None:
        # A byte a row: which of them are asked for another reason than an earlier answer.
        fresh: list[Mask] = []
        kept = iter_kept_keys(self._store, self._source, part, plan.task)
        if kept is not None:
            asked: list[Mask] = []
            drift = Drift(self._store, self._source, part, plan.task)
            drift.check_first()
            for rows in kept:
                tally.count_rows(rows.reasons)
                asked.append(plan.split(rows.keys, tally))
                fresh.append(plan.explain(rows.keys, asked[-1]))
            self._ask_kept(plan, drift, part, np.concatenate([np.zeros(0, np.bool_), *asked]), stage)
        else:
            with KeyKeeper(self._store, self._source, part, plan.task, keep=not self._preview) as keeper:
                for piece in render_rows(self._source, part, plan.task):
                    keeper.add(piece.rows)
                    tally.count_rows(piece.rows.reasons)
                    piece_asked = plan.split(piece.rows.keys, tally)
                    plan.ask(piece, piece_asked, stage)
                    fresh.append(plan.explain(piece.rows.keys, piece_asked))
                    self._report(tallies)
        plan.reasons.compare(partition, part, np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *fresh])))
        self._report(tallies)

    def _ask_kept(self, plan: "_TargetPlan", drift: Drift, part: FileRows, asked: Mask, stage: CountingStage | PlanStage) -> None:
        """Render a file again whose keys were kept, for the rows of it that are asked."""
        start = 0
        for piece in drift.check(render_rows(self._source, part, plan.task)) if asked.any() else ():
            plan.ask(piece, asked[start : start + len(piece.lines)], stage)
            start += len(piece.lines)

    def _plan_preflights(self, plans: "dict[str, _TargetPlan]", files: dict[str | None, list[SourceFile]]) -> tuple[Preflight, ...]:
        columns = self._source.schema(next(iter(files.values()))[0]).names
        new = [plan for plan in plans.values() if not len(plan.known.answers) and plan.example is not None]
        planned = (plan_preflight(self._store, self._run_id, plan.task, columns, stage=not self._preview) for plan in new)
        return tuple(preflight for preflight in planned if preflight is not None)

    def _report(self, tallies: dict[tuple[str, str | None], Tally]) -> None:
        if self._on_rows is not None:
            self._on_rows(sum_tallies(tallies.values()))


class _BadPartitionError(SourceError):
    """A partition that cannot be read to its end."""

    def __init__(self, message: str, *, partition: str) -> None:
        super().__init__(message, partition=partition)
        self.partition = partition


@dataclass(slots=True, kw_only=True)
class _TargetPlan:
    """One output as it is being planned."""

    task: ClaudeTask
    known: Subtraction
    estimator: Estimator
    reasons: ReasonCounter
    holders: set[int] = field(default_factory=set)
    example: str | None = None

    @classmethod
    def begin(cls, job: Job, target: Target, source: Source, known: Subtraction) -> "_TargetPlan":
        task = target.task
        return cls(
            task=task,
            known=known,
            estimator=Estimator(task.model, task.max_tokens, known.answers.mean_output_tokens),
            reasons=ReasonCounter(job=job, target=target, source=source),
        )

    def split(self, keys: Keys, tally: Tally) -> Mask:
        """Return which rows' requests the plan will own."""
        split = self.known.split(keys)
        self.holders |= split.holders
        tally.asked += int(split.asked.sum())
        tally.in_flight += split.in_flight
        tally.already_answered += split.answered
        return split.asked

    def explain(self, keys: Keys, asked: Mask) -> Mask:
        """Count why requests are asked; return the rows whose reason the former output tells."""
        return self.reasons.count(keys, asked, self.known)

    def ask(self, piece: RenderedPiece, asked: Mask, stage: CountingStage | PlanStage) -> None:
        """Stage the requests of these rows."""
        if not asked.any():
            return
        keys = piece.rows.keys[asked]
        lines = piece.lines.take(asked)
        self.example = self.example or lines.params(0).decode()
        caps = self.known.answers.raised_caps(keys)
        if caps:
            self._ask_raised(keys, {row: (lines.params(row), cap) for row, cap in caps.items()}, stage)
            plain = np.ones(len(keys), np.bool_)
            plain[list(caps)] = False
            keys, lines = keys[plain], lines.take(plain)
        if isinstance(self.task.prompt, str):
            params_bytes = lines.params_bytes
        else:
            count = params_counter(self.task)
            params_bytes = np.array([count(lines.params(row)) for row in range(len(lines))], np.int64)
        worst = self.estimator.add(params_bytes)
        stage.add(self.task.task_key, lines, keys, worst)

    def _ask_raised(self, keys: Keys, raised: dict[int, tuple[bytes, int]], stage: CountingStage | PlanStage) -> None:
        """Stage requests whose answers were cut, with the `max_tokens` that their run granted them."""
        params = [raise_params(params, cap) for params, cap in raised.values()]
        caps = np.array([cap for _, cap in raised.values()], np.int64)
        worst = self.estimator.add(np.array([params_counter(self.task)(one) for one in params], np.int64), caps)
        stage.add(self.task.task_key, Lines.of(LineFrame(self.task.name, b""), params), keys[list(raised)], worst, caps)


def source_fingerprint(source: Source, files: Iterable[SourceFile]) -> str:
    """Return what the planned files' names and contents hash to."""
    content = "\n".join(f"{file.path} {source.digest(file)}" for file in files)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _sum_known(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
