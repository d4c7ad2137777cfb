"""Submits one shard, never twice: PROTOCOL in docs/reliability.md.

The shard's log decides (core.submission.next_step); this file carries out its word. Between the record `send` and the record of what
became of it there is one POST. Whoever finds a `send` that is not its own knows nothing, and asks a person.
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

from claude_batch_dagster.core.contract import ShardInput, Submitted
from claude_batch_dagster.core.errors import ClaudeBatchError, RootError, TransientError
from claude_batch_dagster.core.records import LogEntry, ShardRef
from claude_batch_dagster.core.submission import (
    Accepted,
    Closed,
    CloseReason,
    DoAwait,
    DoClose,
    DoSend,
    NotAccepted,
    Record,
    Send,
    Settled,
    Unknown,
    next_step,
)
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.plans import append_submission, read_shard, read_submission
from claude_batch_dagster.storage.store import Store
from temporal_worker.root import OpenRoot, check_endpoint, check_workspace, open_root
from temporal_worker.vendor import Created, NotCreated, UnknownOutcome

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

SEND_BASE_S = 15.0
SEND_S_PER_MB = 1.0
RECORD_TRIES = 8
RECORD_FIRST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitter:
    """Submits shards of any root.

    Attributes:
        open_store: Opens a root by its URI.
        clock: Now, aware; only people read it.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    clock: Callable[[], datetime]

    def submit(self, shard: ShardInput, report: Callable[[str], None]) -> Submitted:
        """Take a shard as far as it goes without waiting: to a batch, to its end, or to a question.

        Args:
            shard: Which one, and whether it may be bought.
            report: Told what is being done; it may raise to stop the work, and is called last right before the intent is written.

        Raises:
            CredentialsError: Terminal. Nothing was created.
            RefusedError: Terminal. Nothing was created.
            TransientError: Nothing was created; the next attempt may send.
        """
        try:
            root = open_root(self.open_store(shard.root), number=shard.number, run_id=shard.run_id)
        except RootError as error:
            return Submitted(question=f"{error} Whether shard {shard.shard} was sent is not known without them.")
        check_endpoint(root, self.batches.find_endpoint())
        return self._follow_log(root, shard, report)

    def _follow_log(self, root: OpenRoot, shard: ShardInput, report: Callable[[str], None]) -> Submitted:
        while True:
            step = next_step(read_submission(root.store, shard.run_id, shard.round, shard.shard), shard.mode)
            match step:
                case Settled(reason=reason):
                    return Submitted(closed=reason)
                case DoAwait(batch_id=batch_id):
                    return Submitted(batch_id=batch_id)
                case DoClose(slot=slot):
                    append_submission(root.store, shard.run_id, shard.round, shard.shard, slot, Closed(reason=CloseReason.DRAINED))
                case Unknown(send=send):
                    return Submitted(question=explain_unknown(root.entry, shard.shard, send))
                case DoSend(slot=slot):
                    submitted = self._send(root, shard, slot, report)
                    if submitted is not None:
                        return submitted
                case _:
                    assert_never(step)

    def _send(self, root: OpenRoot, shard: ShardInput, slot: int, report: Callable[[str], None]) -> Submitted | None:
        """Send the shard, None where somebody else took the slot."""
        body = read_shard(root.store, root.entry, shard.round, shard.shard)
        reach("list:batches.before")
        reply = self.batches.check_key_and_list()
        reach("list:batches.after")
        check_workspace(root, reply.workspace_id)
        send = Send(
            count=body.requests,
            sha256=body.sha256,
            send_s=SEND_BASE_S + SEND_S_PER_MB * body.body_bytes / 1_000_000,
            vendor_date=reply.date,
            sender=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}",
            sent_at=self.clock().isoformat(timespec="seconds"),
        )
        report(f"Shard {shard.shard}: sending {body.requests:,} requests, {body.body_bytes:,} bytes")
        if not self._is_ours(root.store, shard, slot, send):
            return None
        reach("post.before")
        result = self.batches.create(_withhold_last_chunk(root.store, body), body.body_bytes)
        reach("post.after")
        match result:
            case Created(batch_id=batch_id, created_at=created_at):
                return self._record_batch(root, shard, slot + 1, Accepted(id=batch_id, created_at=created_at))
            case NotCreated(error=error):
                self._record(root, shard, slot + 1, NotAccepted(why=str(error)))
                raise _name_shard(error, root.entry, shard, body)
            case UnknownOutcome(why=why):
                return Submitted(question=explain_unknown(root.entry, shard.shard, send, why))
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
        if records[slot] == batch:
            return Submitted(batch_id=batch.id)
        # Somebody gave the submission up while its reply was under way. The batch is ours by reply, and nobody waits for it.
        log.warning("batch %s of batch run %s came after its shard was given up: it is canceled", batch.id, root.entry.label)
        try:
            self.batches.cancel(batch.id)
        except ClaudeBatchError as error:
            log.warning("%s It may be paid for: cancel it in the vendor's console.", error)
        settled = records[-1]
        return Submitted(closed=settled.reason if isinstance(settled, Closed) else CloseReason.ABANDONED)

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
            f"It is not sent again. Make the root writable, then: claude-batch cancel {root.entry.label}"
        )


def explain_unknown(entry: LogEntry, shard: int, send: Send, why: str = "its reply was not recorded (yet)") -> str:
    """Say what is not known of a submission, and what a person can do."""
    return (
        f"Shard {shard} of batch run {entry.label} ({send.count:,} requests) was sent at {send.sent_at}, and {why}. "
        f"One batch of {send.count:,} requests may exist at the vendor, and may be paid for. It is not sent again. "
        f"To end the run: claude-batch cancel {entry.label}"
    )


def _name_shard(error: ClaudeBatchError, entry: LogEntry, shard: ShardInput, body: ShardRef) -> ClaudeBatchError:
    text = (
        f"Shard {shard.shard} of batch run {entry.label} ({body.requests:,} requests, {body.body_bytes:,} bytes) was not created. {error}"
    )
    if isinstance(error, TransientError):
        return type(error)(text, retry_after_s=error.retry_after_s, **error.context)
    return type(error)(text, **error.context)


def _withhold_last_chunk(store: Store, body: ShardRef) -> Iterator[bytes]:
    """Yield a staged body, its last chunk only once length and hash are as planned: no server accepts a body that is cut short."""
    digest = hashlib.sha256()
    size = 0
    withheld = b""
    try:
        for chunk in store.stream(body.path):
            if withheld:
                yield withheld
            withheld = chunk
            digest.update(chunk)
            size += len(chunk)
    except FileNotFoundError as error:
        raise RootError(f"{store.uri}/{body.path} is missing: the root lost its records. Nothing was sent. Restore the folder.") from error
    if size != body.body_bytes or digest.hexdigest() != body.sha256:
        raise RootError(
            f"{store.uri}/{body.path} is not what was planned: {size:,} bytes against {body.body_bytes:,}, "
            f"SHA-256 {digest.hexdigest()[:16]} against {body.sha256[:16]}. Nothing was sent. Restore the file, or cancel the run and plan again."
        )
    yield withheld
