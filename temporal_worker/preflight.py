"""Tries new tasks on a sample text before their first batch: one request each through the Messages API, whose answer must decode.

A task that was tried once, here or in another run, is not tried again: `preflights/{task_key}.json` says so. Between the vendor's reply
and this record a worker may die; the next one asks again, at the price of one short request.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from claude_batch_dagster.core.errors import CredentialsError, RefusedError, RootError
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.records import PreflightRecord, PreflightRef
from claude_batch_dagster.core.request import KEY_BYTES
from claude_batch_dagster.core.response import Decoder, PriceUsage, Response
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.plans import read_task
from temporal_worker.root import OpenRoot

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

FULL_PRICE = 2
"""The Messages API costs twice the batch price, caches included. Source: platform.claude.com pricing (checked 2026-11-22)."""
SAMPLE_KEY = bytes(KEY_BYTES)
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
        """Try the plan's new tasks; return why one of them cannot work, None where all can.

        Raises:
            VendorUnavailableError: Transient.
            RootError: Terminal. What was staged is gone.
        """
        names = {task.task_key: task.name for task in root.entry.tasks}
        for ref in root.entry.preflights:
            if root.store.exists(preflight_path(ref.task_key)):
                continue
            problem = self._try_task(root, ref)
            if problem is not None:
                return f"Task {names.get(ref.task_key, ref.task_key)!r}: {problem}"
        return None

    def _try_task(self, root: OpenRoot, ref: PreflightRef) -> str | None:
        params = root.store.get(ref.path)
        if params is None:
            raise RootError(f"{root.store.uri}/{ref.path} is missing: the root lost its records. Nothing was sent. Restore the folder.")
        decoder = Decoder(read_task(root.store, ref.task_key), self.price_usage)
        reach("preflight.before")
        try:
            message = self.batches.ask(params)
        except CredentialsError as error:
            return f"{error} {NOTHING_SENT}"
        except RefusedError as error:
            return f"{error} {NOTHING_SENT} {_advise(error)}"
        reach("preflight.after")
        answered = decoder.decode_result(SAMPLE_KEY, b'{"type":"succeeded","message":%b}' % message)
        cost = None if answered.cost_nano_usd is None else FULL_PRICE * answered.cost_nano_usd
        if answered.outcome not in (Outcome.SUCCEEDED, Outcome.REFUSED):
            return _explain(answered, cost)
        record = PreflightRecord(
            task_key=ref.task_key,
            model=answered.model or "",
            answered_at=self.clock().isoformat(timespec="seconds"),
            outcome=answered.outcome,
            stop_reason=answered.stop_reason,
            input_tokens=answered.input_tokens + answered.cache_read_tokens + answered.cache_write_tokens,
            output_tokens=answered.output_tokens,
            cost_nano_usd=cost,
        )
        root.store.put_if_absent(preflight_path(ref.task_key), msgspec.json.encode(record))
        log.info("batch run %s: task %s was tried on a sample text: %s", root.entry.label, ref.task_key, answered.outcome)
        return None


def _explain(answered: Response, cost_nano_usd: int | None) -> str:
    if answered.outcome == Outcome.TRUNCATED:
        what = f"was cut after {answered.output_tokens:,} output tokens, max_tokens is {answered.max_tokens:,}, thinking included"
        advice = "Raise max_tokens, or lower effort"
    else:
        what = f"cannot be used: {answered.error}"
        advice = "Change the schema, the prompt or the model"
    price = "" if cost_nano_usd is None else f" (the try cost ${cost_nano_usd / 1e9:.6f})"
    return f"the answer to the try of a sample text {what}. {NOTHING_SENT[:-1]}{price}. {advice}; to send without a try: --no-preflight."


def _advise(error: RefusedError) -> str:
    match error.context.get("status"):
        case 402 | 429:
            return "Raise the limit in the Console, then run again."
        case 504:
            return "Run again, or lower effort; to send without a try: --no-preflight."
        case _:
            return "Its batch would have failed row by row."
