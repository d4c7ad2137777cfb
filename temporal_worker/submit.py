"""Submits one shard, never twice: PROTOCOL in docs/reliability.md.

The shard's log decides (core.submission.next_step); this file carries out its word. Between the record `send` and the record of what
became of it there is one POST, whose last byte leaves within the seconds that the record names, or never. Whoever finds a `send` that is
not its own knows nothing: settle.py finds out.
"""

import hashlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

from claude_batch_dagster.core.contract import Doubt, ShardInput, Submitted
from claude_batch_dagster.core.errors import ClaudeBatchError, RootError, TransientError
from claude_batch_dagster.core.records import LogEntry, ShardRef, StrayRecord
from claude_batch_dagster.core.submission import (
    MOST_RECONCILED,
    Accepted,
    Closed,
    CloseReason,
    DoAsk,
    DoAwait,
    DoClose,
    DoSend,
    How,
    NotAccepted,
    Record,
    Send,
    Settled,
    Unknown,
    next_step,
    seconds_to_send,
    seconds_to_settle,
)
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.plans import append_submission, read_shard, read_submission, write_stray
from claude_batch_dagster.storage.store import Store
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, open_root
from temporal_worker.vendor import Created, NotCreated, UnknownOutcome

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

TOO_LARGE = 413
SEND_S_PER_MB = 1.0
RECORD_TRIES = 8
RECORD_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitter:
    """Submits shards of any root.

    Attributes:
        open_store: Opens a root by its URI.
        clock: Now, aware; only people read it.
        boot_s: Seconds on a clock that goes on while the machine sleeps and is never set.
        send_s: What a sender has besides its body's part.
        settle_s: After so long a batch is in the vendor's list, besides its body's part.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    clock: Callable[[], datetime]
    boot_s: Callable[[], float]
    send_s: float
    settle_s: float

    def submit(self, shard: ShardInput, report: Callable[[str], None]) -> Submitted:
        """Take a shard as far as it goes without waiting: to a batch, to its end, or to a question.

        Args:
            shard: Which one, and whether it may be bought.
            report: Told what is being done; it may raise to stop the work, and is called last right before the intent is written.

        Raises:
            CredentialsError: Terminal. Nothing was created.
            RefusedError: Terminal. Nothing was created.
            RootError: Terminal. The records are gone or cannot be written; what was sent is told by them, or found out from the vendor.
            SpendLimitError: Terminal. Nothing was created.
            TransientError: Nothing was created; the next attempt may send.
        """
        root = open_root(self.open_store(shard.root), number=shard.number, run_id=shard.run_id)
        check_endpoint(root, self.batches.find_endpoint())
        return self._follow_log(root, shard, report)

    def _follow_log(self, root: OpenRoot, shard: ShardInput, report: Callable[[str], None]) -> Submitted:
        body = read_shard(root.store, root.entry, shard.round, shard.shard)
        settle_s = seconds_to_settle(self.settle_s, body.body_bytes)
        while True:
            records = read_submission(root.store, shard.run_id, shard.round, shard.shard)
            step = next_step(records, shard.mode)
            match step:
                case Settled(reason=reason):
                    return Submitted(closed=reason)
                case DoAwait(batch_id=batch_id):
                    return Submitted(batch_id=batch_id)
                case DoClose(slot=slot):
                    append_submission(root.store, shard.run_id, shard.round, shard.shard, slot, Closed(reason=CloseReason.DRAINED))
                case DoAsk():
                    return Submitted(question=ask_about_lost(root.entry, shard.shard, body))
                case Unknown(send=send, slot=slot):
                    # Its sender may be at it: all its seconds count, from now.
                    return Submitted(doubt=Doubt(slot=slot, wait_s=send.send_s + settle_s))
                case DoSend(slot=slot):
                    send_s = seconds_to_send(records, self.send_s, SEND_S_PER_MB * body.body_bytes / 1_000_000)
                    submitted = self._send(root, shard, body, slot, send_s, settle_s, report)
                    if submitted is not None:
                        return submitted
                case _:
                    assert_never(step)

    def _send(
        self,
        root: OpenRoot,
        shard: ShardInput,
        body: ShardRef,
        slot: int,
        send_s: float,
        settle_s: float,
        report: Callable[[str], None],
    ) -> Submitted | None:
        """Send the shard, None where somebody else took the slot."""
        reach("list:batches.before")
        reply = self.batches.check_key_and_list()
        reach("list:batches.after")
        check_workspace(root, reply.workspace_id)
        send = Send(
            count=body.requests,
            sha256=body.sha256,
            send_s=send_s,
            vendor_date=reply.date,
            sender=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}",
            sent_at=self.clock().isoformat(timespec="seconds"),
        )
        report(f"Shard {shard.shard}: sending {body.requests:,} requests, {body.body_bytes:,} bytes")
        deadline = _Deadline(self.boot_s, self.boot_s(), send_s)
        if not self._is_ours(root.store, shard, slot, send):
            return None
        reach("post.before")
        result = self.batches.create(_withhold_last_byte(root.store, body, deadline), body.body_bytes)
        reach("post.after")
        match result:
            case Created(batch_id=batch_id, created_at=created_at):
                return self._record_batch(root, shard, slot + 1, Accepted(id=batch_id, created_at=created_at))
            case NotCreated(error=error):
                how = How.LATE if isinstance(error, _LateError) else How.REPLY
                self._record(root, shard, slot + 1, NotAccepted(why=str(error), how=how))
                raise _name_shard(error, root.entry, shard, body)
            case UnknownOutcome(why=why):
                log.warning(
                    "shard %d of batch run %s was sent, and %s: it is looked for in the list of batches", shard.shard, root.entry.label, why
                )
                return Submitted(doubt=Doubt(slot=slot + 1, wait_s=settle_s))
            case _:
                assert_never(result)

    def _is_ours(self, store: Store, shard: ShardInput, slot: int, send: Send) -> bool:
        if append_submission(store, shard.run_id, shard.round, shard.shard, slot, send):
            return True
        # An object store's client may have repeated a put that had succeeded; no two puts share a sender.
        records = read_submission(store, shard.run_id, shard.round, shard.shard)
        return len(records) == slot + 1 and records[slot] == send

    def _record_batch(self, root: OpenRoot, shard: ShardInput, slot: int, batch: Accepted) -> Submitted:
        records = self._record(root, shard, slot, batch)
        told = records[slot]
        if isinstance(told, Accepted) and told.id == batch.id:
            return Submitted(batch_id=batch.id)
        if any(isinstance(record, Accepted) and record.id == batch.id for record in records):
            # Proved to be the shard's, in a later slot: somebody waits for it.
            return Submitted(again=True)
        # The submission was settled while its reply was under way. The batch is ours by reply, and nobody waits for it.
        log.warning(
            "batch %s of batch run %s came after its shard was settled without it: it is canceled, what it answers is kept",
            batch.id,
            root.entry.label,
        )
        found_at = self.clock().isoformat(timespec="seconds")
        stray = StrayRecord(batch_id=batch.id, run_id=shard.run_id, round=shard.round, shard=shard.shard, found_at=found_at)
        write_stray(root.store, stray)
        try:
            self.batches.cancel(batch.id)
        except ClaudeBatchError as error:
            log.warning("%s", error)
        settled = records[-1]
        if isinstance(settled, Closed):
            return Submitted(closed=settled.reason)
        return Submitted(again=True)

    def _record(self, root: OpenRoot, shard: ShardInput, slot: int, record: Accepted | NotAccepted) -> list[Record]:
        """Write what became of our POST, trying for a minute: without this record nobody can know it."""
        pause_s = RECORD_FIRST_PAUSE_S
        failure: ClaudeBatchError | None = None
        for _ in range(RECORD_TRIES):
            try:
                append_submission(root.store, shard.run_id, shard.round, shard.shard, slot, record)
                return read_submission(root.store, shard.run_id, shard.round, shard.shard)
            except (RootError, TransientError) as error:
                failure = error
                time.sleep(pause_s)
                pause_s *= 2
        what = f"batch {record.id} was created" if isinstance(record, Accepted) else "nothing was created"
        raise RootError(
            f"Shard {shard.shard} of batch run {root.entry.label}: {what}, and that cannot be recorded: {failure} "
            "It is not sent again before that is known: it is looked for in the list of batches. Make the root writable."
        )


def ask_about_lost(entry: LogEntry, shard: int, body: ShardRef) -> str:
    """Return the question about a shard that was sent again and again and never came into the vendor's list."""
    return (
        f"Shard {shard} of batch run {entry.label} ({body.requests:,} requests) was sent {MOST_RECONCILED} times, no reply came back, and the "
        f"list of batches never had it. {explain_choices(entry, shard)}"
    )


def explain_choices(entry: LogEntry, shard: int) -> str:
    """Return what a person can answer about a shard."""
    answer = f"claude-batch answer {entry.label} {shard}"
    return (
        "It is not sent again before you say so. Look for it among the batches of your Console, then type one of: "
        f"`{answer} adopt BATCH` (this batch is it), `{answer} resend` (it is not there: send it again), "
        f"`{answer} abandon` (leave its rows without an answer)."
    )


def _name_shard(error: ClaudeBatchError, entry: LogEntry, shard: ShardInput, body: ShardRef) -> ClaudeBatchError:
    text = (
        f"Shard {shard.shard} of batch run {entry.label} ({body.requests:,} requests, {body.body_bytes:,} bytes) was not created. {error}"
    )
    if error.context.get("status") == TOO_LARGE:
        text += " A body of this size does not pass: lower max_requests_per_batch."
    if isinstance(error, TransientError):
        return type(error)(text, retry_after_s=error.retry_after_s, **error.context)
    return type(error)(text, **error.context)


class _LateError(TransientError):
    """A sender's seconds were over before its last byte left."""


@dataclass(frozen=True, slots=True)
class _Deadline:
    """Until when a sender may let its last byte go."""

    boot_s: Callable[[], float]
    began_s: float
    send_s: float

    def check(self) -> None:
        elapsed_s = self.boot_s() - self.began_s
        if elapsed_s >= self.send_s:
            raise _LateError(
                f"The upload took longer than its {self.send_s:.0f} s, {elapsed_s:.0f} s so far; its last byte was withheld, so nothing was sent. "
                "It is tried again with twice the time."
            )


def _withhold_last_byte(store: Store, body: ShardRef, deadline: _Deadline) -> Iterator[bytes]:
    """Yield a staged body, its last byte only once length and hash are as planned and the sender's time is not over.

    No server accepts a body that is cut short.
    """
    digest = hashlib.sha256()
    size = 0
    withheld = b""
    try:
        for chunk in store.stream(body.path, forget=True):
            if withheld:
                yield withheld
            withheld = chunk
            digest.update(chunk)
            size += len(chunk)
    except FileNotFoundError as error:
        raise RootError(
            f"{store.uri}/{body.path} is missing: the root lost its records. Nothing was sent. Restore the folder, or: claude-batch recover"
        ) from error
    if size != body.body_bytes or digest.hexdigest() != body.sha256:
        raise RootError(
            f"{store.uri}/{body.path} is not what was planned: {size:,} bytes against {body.body_bytes:,}, "
            f"SHA-256 {digest.hexdigest()[:16]} against {body.sha256[:16]}. Nothing was sent. Restore the file, or cancel the run and plan again."
        )
    if len(withheld) > 1:
        yield withheld[:-1]
    reach("post.last_byte")
    deadline.check()
    yield withheld[-1:]
