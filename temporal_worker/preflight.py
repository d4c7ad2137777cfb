"""Tries new tasks on a sample text before their first batch: one request each through the Messages API, whose answer must decode.

A task that was tried once, here or in another run, is not tried again: `preflights/{task_key}.json` says so. What a try cost stands in
`plans/{run_id}/tried-{task_key}.json`, usable or not, and counts as the run's. A reply may be lost, or a worker die between the reply and
this record: then the next attempt asks again. Two tries that may be paid are sent in a run, not more; after them the run goes on untried.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from claude_batch_dagster.core.errors import (
    ClaudeBatchError,
    CredentialsError,
    RefusedError,
    RootError,
    SpendLimitError,
    VendorUnavailableError,
)
from claude_batch_dagster.core.models import FULL_PRICE
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.records import ModelUsage, PreflightRecord, PreflightRef, TriedRecord, TryRecord
from claude_batch_dagster.core.request import KEY_BYTES
from claude_batch_dagster.core.response import Decoder, PriceUsage, Response
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.plans import read_task
from claude_batch_dagster.storage.tries import MOST_TRIES, claim_try, read_tried, write_tried
from temporal_worker.root import OpenRoot

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

TIMED_OUT = 504
SAMPLE_KEY = bytes(KEY_BYTES)
UNPAID_STATUSES = frozenset({429, 529})
"""Replies by which the vendor says that it did not begin."""
NOTHING_SENT = "Nothing was sent to the Message Batches API."


def preflight_path(task_key: str) -> str:
    """Return where it is recorded that a task was tried."""
    return f"preflights/{task_key}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflights:
    """Tries of any root's tasks.

    Attributes:
        price_usage: What an answer costs at batch price.
        clock: Now, aware; only people read it.
    """

    batches: "Batches"
    price_usage: PriceUsage
    clock: Callable[[], datetime]

    def find_failure(self, root: OpenRoot) -> str | None:
        """Try the plan's new tasks; return why one of them cannot work, None where all can, or where that could not be learned.

        Raises:
            VendorUnavailableError: Transient.
            RootError: Terminal. What was staged is gone.
        """
        names = {task.task_key: task.name for task in root.entry.tasks}
        for ref in root.entry.preflights:
            if root.store.exists(preflight_path(ref.task_key)):
                continue
            match read_tried(root.store, root.entry.run_id, ref.task_key) or self._try_task(root, ref):
                case TriedRecord(problem=None) as tried:
                    root.store.put_if_absent(preflight_path(ref.task_key), msgspec.json.encode(_to_preflight(tried)))
                case None:
                    log.warning(
                        "batch run %s: whether task %r works is not known: its sample text was sent %d times, each of which may be paid, and no "
                        "answer was recorded. It is not sent again; the run goes on, and its first batch shows.",
                        root.entry.label,
                        names.get(ref.task_key, ref.task_key),
                        MOST_TRIES,
                    )
                case TriedRecord(problem=problem) | problem:
                    return f"Task {names.get(ref.task_key, ref.task_key)!r}: {problem}"
        return None

    def _try_task(self, root: OpenRoot, ref: PreflightRef) -> TriedRecord | str | None:
        """Ask, and record what was paid; return why nobody answered where nothing was, None where too many tries were lost."""
        params = root.store.get(ref.path)
        if params is None:
            raise RootError(f"{root.store.uri}/{ref.path} is missing: the root lost its records. Nothing was sent. Restore the folder.")
        decoder = Decoder(read_task(root.store, ref.task_key), self.price_usage)
        path = claim_try(root.store, root.entry.run_id, TryRecord(task_key=ref.task_key, asked_at=self._now()))
        if path is None:
            return None
        reach("preflight.before")
        try:
            message = self.batches.ask(params)
        except ClaudeBatchError as error:
            if _is_unpaid(error):
                root.store.delete(path)
            match error:
                case CredentialsError() | SpendLimitError():
                    return f"{error} {NOTHING_SENT}"
                case RefusedError():
                    return f"{error} {NOTHING_SENT} {_advise(error)}"
                case _:
                    raise
        reach("preflight.after")
        answered = decoder.decode_result(SAMPLE_KEY, b'{"type":"succeeded","message":%b}' % message)
        usage = _to_usage(answered)
        record = TriedRecord(
            task_key=ref.task_key,
            answered_at=self._now(),
            outcome=answered.outcome,
            stop_reason=answered.stop_reason,
            usage=usage,
            problem=None if answered.outcome in (Outcome.SUCCEEDED, Outcome.REFUSED) else _explain(answered, usage),
        )
        write_tried(root.store, root.entry.run_id, record)
        log.info("batch run %s: task %s was tried on a sample text: %s", root.entry.label, ref.task_key, answered.outcome)
        return record

    def _now(self) -> str:
        return self.clock().isoformat(timespec="seconds")


def _is_unpaid(error: ClaudeBatchError) -> bool:
    """Tell whether the vendor surely did nothing for a try that failed so."""
    if isinstance(error, VendorUnavailableError):
        return error.context.get("status") in UNPAID_STATUSES or error.context.get("never_sent") is True
    return error.context.get("status") != TIMED_OUT


def _to_usage(answered: Response) -> ModelUsage | None:
    if answered.model is None:
        return None
    return ModelUsage(
        model=answered.model,
        over_100k=answered.over_100k,
        requests=1,
        input_tokens=answered.input_tokens,
        output_tokens=answered.output_tokens,
        cache_read_tokens=answered.cache_read_tokens,
        cache_write_tokens=answered.cache_write_tokens,
        cost_nano_usd=None if answered.cost_nano_usd is None else FULL_PRICE * answered.cost_nano_usd,
    )


def _to_preflight(tried: TriedRecord) -> PreflightRecord:
    usage = tried.usage
    return PreflightRecord(
        task_key=tried.task_key,
        model=usage.model if usage else "",
        answered_at=tried.answered_at,
        outcome=tried.outcome,
        stop_reason=tried.stop_reason,
        input_tokens=usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        cost_nano_usd=usage.cost_nano_usd if usage else None,
    )


def _explain(answered: Response, usage: ModelUsage | None) -> str:
    if answered.outcome == Outcome.TRUNCATED:
        what = f"was cut after {answered.output_tokens:,} output tokens, max_tokens is {answered.max_tokens:,}, thinking included"
        advice = "Raise max_tokens, or lower effort"
    else:
        what = f"cannot be used: {answered.error}"
        advice = "Change the schema, the prompt or the model"
    price = "" if usage is None or usage.cost_nano_usd is None else f" (the try cost ${usage.cost_nano_usd / 1e9:.6f})"
    return f"the answer to the try of a sample text {what}. {NOTHING_SENT[:-1]}{price}. {advice}; to send without a try: --no-preflight."


def _advise(error: RefusedError) -> str:
    if error.context.get("status") == TIMED_OUT:
        return "Run again, or lower effort; to send without a try: --no-preflight."
    return "Its batch would have failed row by row."
