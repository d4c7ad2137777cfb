"""What the vendor says, in our words: the types that `batches.py` answers with, without anything of its client."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from claude_batch_dagster.core.errors import ClaudeBatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorReply:
    """What any authorized reply tells.

    Attributes:
        date: The vendor's clock as its `Date` header says (RFC 9110), empty where it has none.
        workspace_id: The workspace that the key belongs to, None where the reply does not say.
    """

    date: str
    workspace_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model in the vendor's catalogue.

    Attributes:
        lifecycle: active | deprecated | retired.
        retires_at: When it goes, as the vendor writes it, None where no day is set.
        max_tokens: The most that an answer may have, None where the vendor does not say.
        max_input_tokens: The context window, None where the vendor does not say.
        capabilities: As the vendor tells them; older servers tell none.
    """

    id: str
    lifecycle: str
    retires_at: str | None = None
    max_tokens: int | None = None
    max_input_tokens: int | None = None
    capabilities: Mapping[str, object] = field(default_factory=dict)

    def supports(self, *path: str) -> bool | None:
        """Tell whether a capability (`effort`, `low`) is there; None where the vendor does not say."""
        found: object = self.capabilities
        for step in (*path, "supported"):
            found = found.get(step) if isinstance(found, Mapping) else None
        return found if isinstance(found, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A Message Batch as the vendor tells it.

    Attributes:
        requests: In the batch, whatever became of them.
        ended_at: None while it is processed.
        archived: Whether its results are gone, 29 days after it was created.
        age_s: Seconds since it was created or, once that happened, since its canceling began; by the vendor's clock.
        retry_after_s: How long the vendor asks to wait before the next look, None where it does not say.
    """

    id: str
    processing_status: str
    requests: int
    created_at: datetime
    ended_at: datetime | None
    archived: bool
    age_s: float
    retry_after_s: float | None

    @property
    def ended(self) -> bool:
        """Whether results can be read."""
        return self.processing_status == "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The vendor created this batch."""

    batch_id: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCreated:
    """Nothing was created, for certain."""

    error: ClaudeBatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOutcome:
    """A batch may have been created: the whole body may have left, and no reply says what became of it."""

    why: str


CreateResult = Created | NotCreated | UnknownOutcome
