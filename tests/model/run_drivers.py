"""Clients and the drivers of their runs as programs: a turn of `verbs.run`, and the activities in the order of their workflow."""

import atexit
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
from uuid import UUID

import claude_batch_dagster.storage.compaction
import claude_batch_dagster.verbs.admit
import claude_batch_dagster.verbs.pin
import claude_batch_dagster.verbs.plan
import temporal_worker.submit
from claude_batch_dagster.core.contract import BatchInput, CloseInput, FinishInput, OpenInput, RoundInput, ShardInput
from claude_batch_dagster.core.errors import ClaudeBatchError, TransientError
from claude_batch_dagster.core.submission import Accepted, How, Mode, NotAccepted
from claude_batch_dagster.storage.compaction import Limits, maintain_responses
from claude_batch_dagster.storage.plans import append_submission
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job
from temporal_worker.collect import Collector
from temporal_worker.preflight import Preflights
from temporal_worker.runs import Runs
from temporal_worker.submit import Submitter
from temporal_worker.vendor import Batch
from tests.model.replay import Task, ask
from tests.model.stores import ROOT, ModelStore
from tests.model.world import NOON, TASK, ModelVendor, make_job


class Run(NamedTuple):
    """An admitted run, as people and Temporal know it."""

    number: int
    run_id: str


class Work(NamedTuple):
    """What a driver carries out; its own name tells it from another driver of the run."""

    number: int
    run_id: str
    mode: Mode
    reason: str
    driver: str


class _Noon(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "datetime":
        return NOON


class _Names:
    """Stands for `uuid_utils` and `uuid`: a plan is named by its client and by which of its plans it is, a sender by its driver."""

    def uuid7(self) -> str:
        """Return the name."""
        return _plan_name

    def uuid4(self) -> UUID:
        """Return a sender's name."""
        return UUID(int=int(_sender))


_plan_name = ""
_sender = "0"
_store = ModelStore()
_vendor = ModelVendor()


def _open(uri: str, **options: object) -> Store:
    return _store if uri == ROOT else Store(uri, **options)


def _price(*_: object, **__: object) -> int:
    return 0


SUBMITTER = Submitter(open_store=_open, batches=_vendor, clock=lambda: NOON, boot_s=lambda: 0.0, send_s=1.0, settle_s=1.0)
COLLECTOR = Collector(open_store=_open, batches=_vendor, price_usage=_price)
PREFLIGHTS = Preflights(batches=_vendor, price_usage=_price, clock=lambda: NOON)
RUNS = Runs(open_store=_open, batches=_vendor, price_usage=_price, preflights=PREFLIGHTS, clock=lambda: NOON)


@contextmanager
def repeatable() -> Iterator[None]:
    """Have the verbs open the model's store, and take names and times that are the same whenever a program is run again."""
    plan_module, admit_module, pin_module = (getattr(claude_batch_dagster.verbs, name) for name in ("plan", "admit", "pin"))
    with (
        patch.object(plan_module, "Store", _open),
        patch.object(admit_module, "Store", _open),
        patch.object(admit_module, "datetime", _Noon),
        patch.object(plan_module, "uuid_utils", _Names()),
        patch.object(pin_module, "uuid_utils", _Names()),
        patch.object(claude_batch_dagster.storage.compaction, "uuid_utils", _Names()),
        patch.object(temporal_worker.submit, "uuid", _Names()),
    ):
        yield


@cache
def job_of(wants: str) -> Job:
    """Return a job over these rows."""
    return make_job(_folder(), ROOT, *wants)


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="claude-batch-model-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def plan(client: str, wants: str, left: int, own: tuple[str, ...], waited: tuple[str, ...]) -> Task | str:
    """One turn of `verbs.run`: plan, admit, and start what was admitted."""
    global _plan_name
    _plan_name = f"{client}{left}"
    verbs = claude_batch_dagster.verbs
    planned = verbs.plan.plan_job(job_of(wants), concluded_runs=own, waited_runs=waited)
    admission = verbs.admit.admit_plan(job_of(wants), planned)
    others = tuple(Run(entry.number, entry.run_id) for entry in admission.waits)
    mine = None if admission.own is None else Run(admission.own.number, admission.own.run_id)
    if not others and mine is None:
        return "published"
    return Task(wait, (client, wants, left, own if mine is None else (*own, mine.run_id), waited, mine, others))


def wait(
    client: str, wants: str, left: int, own: tuple[str, ...], waited: tuple[str, ...], mine: Run | None, others: tuple[Run, ...]
) -> Task | str:
    """Start the own run, wait until every run that is waited for is done; plan again where others' were among them."""
    if mine is not None:
        ask("start", mine)
    ask("wait", others if mine is None else (*others, mine))
    if not others:
        return "published"
    return Task(plan, (client, wants, left - 1, own, (*waited, *(run.run_id for run in others)))) if left > 1 else "gave up"


def keep_up(keeper: str) -> str:
    """Do what `verbs.upkeep` does where every response is worth an index."""
    global _plan_name
    _plan_name = keeper
    limits = Limits(fresh_rows=0, fresh_share=0.0, fresh_files=0, compacted_files=1)
    written = maintain_responses(_store, "simulator", TASK.task_key, now=NOON, limits=limits)
    return "kept up" if written else "nothing to keep up"


def drive(work: Work) -> Task | str:
    """Open a run, as its workflow does."""
    opened = RUNS.open_run(OpenInput(root=ROOT, number=work.number, run_id=work.run_id, mode=work.mode))
    if opened.report is not None:
        return "done"
    assert opened.failure is None, opened.failure
    return _turn(work, opened.round, opened.shards)


def buy(work: Work, round_number: int) -> Task | str:
    """Take the round's shard as far as it goes."""
    global _sender
    _sender = work.driver
    number, run_id, mode, reason, _ = work
    if mode is Mode.DRAIN:
        closed = RUNS.close_shards(CloseInput(root=ROOT, number=number, run_id=run_id, round=round_number, reason=reason))
        if closed.unknown:
            return Task(settle, (work, round_number))
        return _conclude(work, round_number, closed.live[0].batch_id if closed.live else None)
    try:
        told = SUBMITTER.submit(ShardInput(root=ROOT, number=number, run_id=run_id, round=round_number, shard=0, mode=mode), lambda _: None)
    except TransientError:
        return Task(buy, (work, round_number))
    return Task(settle, (work, round_number)) if told.doubt is not None else _conclude(work, round_number, told.batch_id)


def settle(work: Work, round_number: int) -> Task | str:
    """Wait a sender out, look, prove: one step, that the other model takes apart. A sender that had not POSTed never does."""
    slot, batch_id = ask("settle", work.run_id, round_number)
    record = NotAccepted(why="", how=How.RECONCILED) if batch_id is None else Accepted(id=batch_id, created_at=NOON.isoformat())
    # Somebody else may have told meanwhile.
    if slot is not None:
        append_submission(_store, work.run_id, round_number, 0, slot, record)
    return Task(guarded, (buy, (work, round_number)))


def collect(work: Work, round_number: int, batch_id: str) -> Task | str:
    """Store what a batch answered."""
    batch = BatchInput(root=ROOT, number=work.number, run_id=work.run_id, round=round_number, shard=0, batch_id=batch_id)
    COLLECTOR.collect(batch, _ended(batch_id), lambda _: None)
    return Task(guarded, (open_next, (work, round_number)))


def open_next(work: Work, round_number: int) -> Task | str:
    """Open the next round; the empty one ends the run."""
    ask_round = RoundInput(root=ROOT, number=work.number, run_id=work.run_id, round=round_number + 1, empty=work.mode is Mode.DRAIN)
    return _turn(work, round_number + 1, RUNS.open_round(ask_round).shards)


def finish(work: Work) -> Task | str:
    """Write `done`."""
    outcome = "finished" if work.mode is Mode.RUN else work.reason
    RUNS.finish_run(FinishInput(root=ROOT, number=work.number, run_id=work.run_id, outcome=outcome))
    return "done"


def _turn(work: Work, round_number: int, shards: int) -> Task:
    over = round_number > 1 and not shards
    return Task(guarded, (finish, (work,)) if over else (buy, (work, round_number)))


def _conclude(work: Work, round_number: int, batch_id: str | None) -> Task:
    return Task(guarded, (open_next, (work, round_number)) if batch_id is None else (collect, (work, round_number, batch_id)))


def stop(words: str) -> str:
    return words


def guarded(program: object, arguments: tuple[object, ...]) -> Task | str:
    """Run a step of a driver; where it fails for good, so does its workflow."""
    try:
        return program(*arguments)
    except ClaudeBatchError as error:
        return f"failed: {error}"


def _ended(batch_id: str) -> Batch:
    return Batch(
        id=batch_id,
        processing_status="ended",
        requests=1,
        created_at=NOON,
        ended_at=NOON,
        archived=False,
        age_s=0.0,
        retry_after_s=None,
    )
