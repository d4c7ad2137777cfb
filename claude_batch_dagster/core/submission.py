"""What a reader of a shard's records may conclude, and do next. The only place that decides whether a POST may be made.

A shard's records are a log: `submissions/{run_id}/{round}-{shard}/{i}.json`, i = 0, 1, ..., each written put-if-absent.

    (empty) ─▶ send ─▶ batch ─▶ closed
       ▲         │
       └── not ◀─┘            closed may also follow (empty), not and, where a person gives up, send

Only the process that created a `send` may POST, once, within the seconds that the record gives it. Everybody else who finds it at the tip
knows nothing: the batch may exist. They wait until it must be in the vendor's list, and look for it there:

    unknown ─▶ waited out ─▶ listed ─▶ batch (its results prove it) | not (no candidate is left) | a question to a person
"""

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

import msgspec


class Mode(StrEnum):
    """How a driver works: `run` may buy, `drain` may not."""

    RUN = "run"
    DRAIN = "drain"


class CloseReason(StrEnum):
    """Why nothing can be sent for a shard any more."""

    COLLECTED = "collected"
    DRAINED = "drained"
    CANCELED = "canceled"
    ABANDONED = "abandoned"


class How(StrEnum):
    """How it is known that a `send` created nothing."""

    REPLY = "reply"
    """The vendor said so, or was never reached with a whole body."""
    LATE = "late"
    """Its seconds were over before its last byte left; that byte was withheld."""
    RECONCILED = "reconciled"
    """Nobody saw its end, and the vendor's list has no batch that could be it."""
    PERSON = "person"
    """A person said so: claude-batch answer RUN SHARD resend."""


class Evidence(StrEnum):
    """How it is known that a batch is the shard's."""

    REPLY = "reply"
    PROOF = "proof"
    """Its results have the shard's custom_ids."""


SETTLE_S_PER_MB = 0.5
CLOCK_SLACK = timedelta(minutes=10)
"""Wide: too many candidates only delay."""
MOST_RECONCILED = 3


class Send(msgspec.Struct, frozen=True, kw_only=True, tag="send", tag_field="kind"):
    """The intent to POST, written before it.

    Attributes:
        count: Requests in the body.
        sha256: Of the body, hex.
        send_s: Seconds that the sender has from before this record to its last byte.
        vendor_date: The vendor's clock (its `Date` header, RFC 9110) just before.
        sender: Who may POST; no two processes share one.
        sent_at: The sender's own clock, ISO 8601: for people, never compared.
    """

    count: int
    sha256: str
    send_s: float
    vendor_date: str
    sender: str
    sent_at: str


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag="batch", tag_field="kind"):
    """The vendor created this batch from the shard.

    Attributes:
        id: The Message Batch's id.
        created_at: As the vendor says, ISO 8601.
        by: How that is known.
    """

    id: str
    created_at: str
    by: Evidence = Evidence.REPLY


class NotAccepted(msgspec.Struct, frozen=True, kw_only=True, tag="not", tag_field="kind"):
    """The `send` before this record created nothing, for certain.

    Attributes:
        why: For people.
        how: How that is known.
    """

    why: str
    how: How = How.REPLY


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed", tag_field="kind"):
    """Nothing follows: the shard is settled."""

    reason: CloseReason


Record = Send | Accepted | NotAccepted | Closed


@dataclass(frozen=True, slots=True, kw_only=True)
class DoSend:
    """Write `send` at this slot; who wins it may POST."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoAwait:
    """Poll this batch to its end and collect it; then write `closed` at the slot."""

    batch_id: str
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoClose:
    """Write `closed` at this slot: nothing lives at the vendor and nothing may be bought."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A POST whose end nobody saw: a batch may exist. Nothing may be sent; `slot` is where its end will be written."""

    send: Send
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoAsk:
    """Ask a person: the shard was sent several times in a row, and never reached the vendor's list. Something is not as assumed."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Nothing is left to do."""

    reason: CloseReason


Step = DoSend | DoAwait | DoClose | DoAsk | Unknown | Settled


def next_step(records: Sequence[Record], mode: Mode) -> Step:
    """Return the only thing that may be done with a shard now.

    A sender that still waits for its own reply does not ask: it holds the slot after its `send`. Whoever does ask and finds a
    `send` at the tip is somebody else, its own earlier attempt included.

    Args:
        records: The shard's log from slot 0, without gaps.
        mode: Whether this driver may buy.

    Possible successors: an empty log or `not` give DoSend (run) or DoClose (drain), the third reconciled `not` in a row DoAsk (run);
    `send` gives Unknown; `batch` gives DoAwait; `closed` gives Settled.
    """
    slot = len(records)
    match records[-1] if records else None:
        case None | NotAccepted():
            if mode is Mode.DRAIN:
                return DoClose(slot=slot)
            return DoAsk(slot=slot) if _is_lost_again_and_again(records) else DoSend(slot=slot)
        case Send() as send:
            return Unknown(send=send, slot=slot)
        case Accepted(id=batch_id):
            return DoAwait(batch_id=batch_id, slot=slot)
        case Closed(reason=reason):
            return Settled(reason=reason)


def _is_lost_again_and_again(records: Sequence[Record]) -> bool:
    ends = [record.how for record in records if isinstance(record, NotAccepted)][-MOST_RECONCILED:]
    return len(ends) == MOST_RECONCILED and all(how is How.RECONCILED for how in ends)


def seconds_to_send(records: Sequence[Record], least_s: float, bytes_s: float) -> float:
    """Return the seconds that the next sender has: the base and the body's part, doubled for each time that they were too short."""
    late = sum(isinstance(record, NotAccepted) and record.how is How.LATE for record in records)
    return float((least_s + bytes_s) * 2**late)


def seconds_to_settle(settle_s: float, body_bytes: int) -> float:
    """Return the seconds after a sender's last possible byte until its batch, if there is one, is in the vendor's list."""
    return settle_s + SETTLE_S_PER_MB * body_bytes / 1_000_000


def earliest_creation(send: Send) -> datetime:
    """Return the vendor's time before which no batch can be this send's; the beginning of time where the vendor told none."""
    try:
        return parsedate_to_datetime(send.vendor_date) - CLOCK_SLACK
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def is_candidate(send: Send, *, batch_id: str, requests: int, created_at: datetime, claimed: Collection[str]) -> bool:
    """Tell whether a listed batch could be the one that a send created.

    Args:
        send: Whose end nobody saw.
        batch_id: Of the listed batch, like the next two.
        requests: In it, whatever became of them.
        created_at: By the vendor's clock.
        claimed: Batches that records of other submissions name already.
    """
    return requests == send.count and created_at >= earliest_creation(send) and batch_id not in claimed


def is_proof(found: Iterable[str], expected: Set[str]) -> bool:
    """Tell whether a batch whose results have these custom_ids is the shard's.

    One of them is enough, since its tag names the run, the round and the shard; all of them would be too many to ask for: a result that
    the vendor lost must not make the shard's own batch a foreign one.
    """
    return any(custom_id in expected for custom_id in found)


def encode_record(record: Record) -> bytes:
    """Return the record's file: JSON with `kind` and `format: 1`."""
    fields = msgspec.to_builtins(record)
    return msgspec.json.encode({"format": 1, **fields})


def decode_record(content: bytes) -> Record:
    """Read a record's file; raise msgspec.ValidationError where it is none of ours."""
    record: Record = msgspec.json.decode(content, type=Record)
    return record
