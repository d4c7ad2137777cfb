"""What a reader of a shard's records may conclude, and do next. The only place that decides whether a POST may be made.

A shard's records are a log: `submissions/{run_id}/{round}-{shard}/{i}.json`, i = 0, 1, ..., each written put-if-absent.

    (empty) ─▶ send ─▶ batch ─▶ closed
       ▲         │
       └── not ◀─┘            closed may also follow (empty), not and, where a person gives up, send

Only the process that created a `send` may POST, once. Everybody else who finds it at the tip knows nothing: the batch may exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
        created_at: As the vendor's reply says, ISO 8601.
    """

    id: str
    created_at: str


class NotAccepted(msgspec.Struct, frozen=True, kw_only=True, tag="not", tag_field="kind"):
    """The `send` before this record created nothing, for certain.

    Attributes:
        why: How that is known.
    """

    why: str


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
class Settled:
    """Nothing is left to do."""

    reason: CloseReason


Step = DoSend | DoAwait | DoClose | Unknown | Settled


def next_step(records: Sequence[Record], mode: Mode) -> Step:
    """Return the only thing that may be done with a shard now.

    A sender that still waits for its own reply does not ask: it holds the slot after its `send`. Whoever does ask and finds a
    `send` at the tip is somebody else, its own earlier attempt included.

    Args:
        records: The shard's log from slot 0, without gaps.
        mode: Whether this driver may buy.

    Possible successors: an empty log or `not` give DoSend (run) or DoClose (drain); `send` gives Unknown; `batch` gives DoAwait;
    `closed` gives Settled.
    """
    slot = len(records)
    match records[-1] if records else None:
        case None | NotAccepted():
            return DoSend(slot=slot) if mode is Mode.RUN else DoClose(slot=slot)
        case Send() as send:
            return Unknown(send=send, slot=slot)
        case Accepted(id=batch_id):
            return DoAwait(batch_id=batch_id, slot=slot)
        case Closed(reason=reason):
            return Settled(reason=reason)


def encode_record(record: Record) -> bytes:
    """Return the record's file: JSON with `kind` and `format: 1`."""
    fields = msgspec.to_builtins(record)
    return msgspec.json.encode({"format": 1, **fields})


def decode_record(content: bytes) -> Record:
    """Read a record's file; raise msgspec.ValidationError where it is none of ours."""
    record: Record = msgspec.json.decode(content, type=Record)
    return record
