"""The drivers of one shard as programs: the activities `submit`, `find_candidates` and `settle`, in the order of their workflow."""

from functools import cache
from uuid import UUID

from claude_batch_dagster.core.contract import DoubtInput, ShardInput, Submitted
from claude_batch_dagster.core.errors import TransientError
from claude_batch_dagster.core.submission import Mode
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.plan import plan_job
from temporal_worker.settle import Settler
from temporal_worker.submit import Submitter
from temporal_worker.vendor import Batch
from tests.model.replay import Task, ask
from tests.model.stores import ROOT, ModelStore
from tests.model.world import NOON, ModelVendor, make_folder, make_job

SETTLE_S = 2.5
"""Of a vendor who takes a tick of a second to create, and another to list."""


class Names:
    """Stands for the module `uuid`: a sender is named by its driver, which POSTs once at a time."""

    def uuid4(self) -> UUID:
        """Return the driver's."""
        return UUID(int=ord(_driver))


_driver = ""
_vendor = ModelVendor()
_store = ModelStore()


def _look_at_clock() -> float:
    """Return the seconds since this sender began: its first look of each try is its beginning."""
    seconds: float = ask("look at the clock" if _vendor.is_sending else "begin")
    return seconds


SUBMITTER = Submitter(
    open_store=lambda _: _store,
    batches=_vendor,
    clock=lambda: NOON,
    boot_s=_look_at_clock,
    send_s=0.9,
    settle_s=SETTLE_S,
)
SETTLER = Settler(open_store=lambda _: _store, batches=_vendor, clock=lambda: NOON)


@cache
def planned_root() -> tuple[dict[str, bytes], str]:
    """Return a root with one admitted run of one request, written by the product, and the run's id."""
    with make_folder() as folder:
        job = make_job(folder, str(folder / "root"), "x")
        own = admit_plan(job, plan_job(job)).own
        assert own is not None
        store = Store(job.root)
        return {path: store.get(path) or b"" for kind in ("log", "plans", "tasks") for path in store.list(kind)} | {
            "root.json": store.get("root.json") or b""
        }, own.run_id


def submit(driver: str, mode: Mode) -> Task | str:
    """One attempt of the activity `submit`; a failure that may pass has Temporal try again."""
    global _driver
    _driver = driver
    _, run_id = planned_root()
    try:
        told = SUBMITTER.submit(ShardInput(root=ROOT, number=1, run_id=run_id, round=1, shard=0, mode=mode), lambda _: None)
    except TransientError:
        return Task(submit, (driver, mode))
    return _follow(driver, mode, told)


def wait(driver: str, mode: Mode, slot: int, wait_s: float) -> Task | str:
    """The workflow's timer."""
    ask("sleep", wait_s)
    return Task(find_candidates, (driver, mode, slot))


def find_candidates(driver: str, mode: Mode, slot: int) -> Task | str:
    """The activity `find_candidates`."""
    found = SETTLER.find_candidates(_doubt(slot))
    return "a question" if found.question else Task(settle, (driver, mode, slot, found.batch_ids))


def settle(driver: str, mode: Mode, slot: int, candidates: tuple[str, ...]) -> Task | str:
    """One attempt of the activity `settle`."""
    told = SETTLER.settle(_doubt(slot, candidates), lambda _: None)
    if isinstance(told, Batch):
        return Task(await_end, (driver, mode, slot, candidates, told.id))
    if told.candidates:
        return Task(settle, (driver, mode, slot, told.candidates))
    return _follow(driver, mode, told)


def await_end(driver: str, mode: Mode, slot: int, candidates: tuple[str, ...], batch_id: str) -> Task | str:
    """The pause until a candidate may have ended."""
    ask("await", batch_id)
    return Task(settle, (driver, mode, slot, candidates))


def _follow(driver: str, mode: Mode, told: Submitted) -> Task | str:
    if told.doubt is not None:
        return Task(wait, (driver, mode, told.doubt.slot, told.doubt.wait_s))
    if told.again:
        return Task(submit, (driver, mode))
    return "a question" if told.question else "closed" if told.closed else "a batch"


def _doubt(slot: int, candidates: tuple[str, ...] = ()) -> DoubtInput:
    _, run_id = planned_root()
    return DoubtInput(root=ROOT, number=1, run_id=run_id, round=1, shard=0, slot=slot, candidates=candidates)


def stop(words: str) -> str:
    return words
