"""Each safeguard and each assumption taken away in turn: by substituting the product's function, or by a vendor or store that breaks its word."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import claude_batch_dagster.storage.answers
import claude_batch_dagster.verbs.admit
import claude_batch_dagster.verbs.plan
import temporal_worker.rounds
import temporal_worker.runs
import temporal_worker.settle
import temporal_worker.submit
from claude_batch_dagster.core.contract import Doubt, OpenedRound
from claude_batch_dagster.core.errors import VendorUnavailableError
from claude_batch_dagster.core.submission import CloseReason, DoAwait, DoClose, Mode, Settled, next_step
from claude_batch_dagster.storage.keys import KeySet
from claude_batch_dagster.storage.plans import LogSnapshot, read_log
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import StoredFiles, read_stored_files
from claude_batch_dagster.verbs.subtract import read_subtractions
from temporal_worker.vendor import NotCreated
from tests.model import admission, shard_drivers, submission, world
from tests.model.search import Found, Model, search
from tests.model.stores import Contents, ModelStore
from tests.model.submission import OneShard

PAID_TWICE = "paid twice"
NOT_STORED = "done, with an answer that is paid for and not stored"
"""The next client, to whom it is unanswered, pays for it again."""
STUCK = "stuck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A safeguard or an assumption that is taken away.

    Attributes:
        model: Makes the model in which its absence shows.
        without: Holds while it is away.
        ends: What then happens.
    """

    name: str
    model: Callable[[], Model]
    without: Callable[[], Any]
    ends: str = PAID_TWICE

    def search(self) -> Found:
        """Search until it happens."""
        with self.without():
            return search(self.model())


@contextmanager
def nothing() -> Iterator[None]:
    """Take nothing away: the model itself lacks it."""
    yield


def _no_deadline() -> Any:
    return patch.object(temporal_worker.submit._Deadline, "check", lambda deadline: deadline.boot_s())


def _waits(seconds: Callable[[float], float]) -> Any:
    return patch.object(temporal_worker.submit, "Doubt", lambda *, slot, wait_s: Doubt(slot=slot, wait_s=seconds(wait_s)))


def _no_proof() -> Any:
    return patch.object(temporal_worker.settle, "is_proof", lambda *_: True)


def _unclear_is_no() -> Any:
    return patch.object(world, "UnknownOutcome", lambda *, why: NotCreated(error=VendorUnavailableError(why)))


@contextmanager
def _answers_first() -> Iterator[None]:
    listed: list[tuple[str, str]] = []

    class Stale(ModelStore):
        def list_versions(self, prefix: str) -> list[tuple[str, str]]:
            return listed if prefix.startswith("responses/") else super().list_versions(prefix)

    def read_log_late(store: Store) -> LogSnapshot:
        listed[:] = store.list_versions(f"responses/simulator/{world.TASK.task_key}")
        return read_log(store)

    def subtract_earlier(_: Store, *arguments: Any, **more: Any) -> Any:
        return read_subtractions(Stale(), *arguments, **more)

    with (
        patch.object(claude_batch_dagster.verbs.plan, "read_log", read_log_late),
        patch.object(claude_batch_dagster.verbs.plan, "read_subtractions", subtract_earlier),
    ):
        yield


def _index_alone() -> Any:
    def read_covered(*arguments: Any, **more: Any) -> StoredFiles:
        stored = read_stored_files(*arguments, **more)
        return stored if stored.record is None else replace(stored, files=tuple(file for file in stored.files if file.is_covered))

    return patch.object(claude_batch_dagster.storage.answers, "read_stored_files", read_covered)


def _loser_keeps_keys() -> Any:
    def hold_nothing(*_: object) -> dict[str, KeySet]:
        return {world.TASK.task_key: KeySet()}

    return patch.object(claude_batch_dagster.verbs.admit, "_held_by", hold_nothing)


@contextmanager
def _unchecked_end() -> Iterator[None]:
    with ExitStack() as patches:
        for module in (temporal_worker.runs, temporal_worker.rounds):
            patches.enter_context(patch.object(module, "check_closed", lambda *_: None))
        yield


@contextmanager
def _no_tombstone() -> Iterator[None]:
    def only_look(records: Any, mode: Mode) -> Any:
        step = next_step(records, mode)
        return Settled(reason=CloseReason.DRAINED) if isinstance(step, DoClose) else step

    with _unchecked_end(), patch.object(temporal_worker.runs, "next_step", only_look):
        yield


@contextmanager
def _batches_left_behind() -> Iterator[None]:
    def look_away(records: Any, mode: Mode) -> Any:
        step = next_step(records, mode)
        return Settled(reason=CloseReason.DRAINED) if isinstance(step, DoAwait) else step

    with _unchecked_end(), patch.object(temporal_worker.runs, "next_step", look_away):
        yield


@contextmanager
def _no_empty_round() -> Iterator[None]:
    open_round = temporal_worker.runs.open_round

    def write_no_end(root: Any, ask: Any, *more: Any) -> OpenedRound:
        return OpenedRound(shards=0) if ask.empty else open_round(root, ask, *more)

    with (
        patch.object(temporal_worker.runs, "open_round", write_no_end),
        patch.object(temporal_worker.runs, "_check_last_round", lambda _: None),
    ):
        yield


def _one_shard(**bounds: Any) -> Callable[[], Model]:
    return lambda: OneShard(submission.Bounds(**bounds))


def _admissions(*, drains: bool = True, overwrites: tuple[str, ...] = (), **bounds: Any) -> Callable[[], Model]:
    return lambda: admission.Admissions(admission.Bounds(**bounds), contents=Contents(overwrites=overwrites), drains=drains)


SAFEGUARDS = (
    Removal(
        name="`send` is put-if-absent",
        model=lambda: OneShard(submission.Bounds(), contents=Contents(overwrites=("submissions/",))),
        without=nothing,
    ),
    Removal(name="the sender's deadline: the last byte is withheld", model=_one_shard(lost=0), without=_no_deadline),
    Removal(
        name="the looker waits out the sender's time",
        model=_one_shard(send_s=1.9, lost=0),
        without=lambda: _waits(lambda _: shard_drivers.SETTLE_S),
    ),
    Removal(
        name="the looker waits for the list",
        model=_one_shard(lost=0),
        without=lambda: _waits(lambda wait_s: max(wait_s - shard_drivers.SETTLE_S, 0.1)),
    ),
    Removal(
        name="a candidate is proved by its results, not by its size",
        model=_one_shard(modes=(Mode.RUN,), foreign=1),
        without=_no_proof,
        ends="somebody else's batch taken",
    ),
    Removal(name="an unclear reply is not a no", model=_one_shard(modes=(Mode.RUN,)), without=_unclear_is_no),
    Removal(name="the next number of the log is put-if-absent", model=_admissions(overwrites=("log/",), plans=1), without=nothing),
    Removal(name="the loser of a number gives up the winner's keys", model=_admissions(plans=1), without=_loser_keeps_keys),
    Removal(name="the log is read before the answers", model=_admissions(plans=1), without=_answers_first),
    Removal(
        name="files that the index does not cover are read",
        model=_admissions(expired=1, upkeeps=1, plans=1),
        without=_index_alone,
    ),
    Removal(
        name="a drain closes what was not sent",
        model=_admissions(wants=("x",), plans=1, kills=1),
        without=_no_tombstone,
        ends=NOT_STORED,
    ),
    Removal(
        name="a cancel closes what was not sent",
        model=_admissions(wants=("x",), plans=1, cancels=1),
        without=_no_tombstone,
        ends=NOT_STORED,
    ),
    Removal(
        name="a run is done when its batches are collected",
        model=_admissions(wants=("x",), plans=1, kills=1),
        without=_batches_left_behind,
        ends=NOT_STORED,
    ),
    Removal(name="a dead run is drained", model=_admissions(wants=("x",), plans=1, kills=1, drains=False), without=nothing, ends=STUCK),
    Removal(
        name="a run ends with an empty round",
        model=_admissions(wants=("x",), plans=1, kills=1, expired=1),
        without=_no_empty_round,
        ends=NOT_STORED,
    ),
)
"""What the product does."""

ASSUMPTIONS = (
    Removal(name="A1: a batch is listed within the settle time", model=_one_shard(modes=(Mode.RUN,), lags=4), without=nothing),
    Removal(
        name="A2: no long pause between the last look at the clock and the last byte", model=_one_shard(lost=0, pause=None), without=nothing
    ),
)
"""What the world must do: where it does not, the product pays twice."""
