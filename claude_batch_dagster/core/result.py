"""A line of a results file, as far as it is used, as the vendor writes it.

Source: platform.claude.com batch processing, "Retrieve batch results"; `anthropic` 2.12.0 types (checked 2026-11-22).
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec


class Block(msgspec.Struct, frozen=True, gc=False):
    """A block of a message's content; `text` where its type is text."""

    type: str
    text: str | None = None


Tokens: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A count that no sum and no price of ours overflows: a line with another one is no result that can be read."""


class CacheCreation(msgspec.Struct, frozen=True, gc=False):
    """Tokens written to caches, by lifetime."""

    ephemeral_5m_input_tokens: Tokens = 0
    ephemeral_1h_input_tokens: Tokens = 0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What a message used."""

    input_tokens: Tokens
    output_tokens: Tokens
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation: CacheCreation | None = None

    @property
    def read_tokens(self) -> int:
        """Tokens read from a cache."""
        return self.cache_read_input_tokens or 0

    @property
    def written_tokens(self) -> int:
        """Tokens written to caches of either lifetime."""
        return self.cache_creation_input_tokens or 0

    @property
    def written_1h_tokens(self) -> int:
        """Those of them that are kept for an hour."""
        return min(self.written_tokens, self.cache_creation.ephemeral_1h_input_tokens) if self.cache_creation else 0


class StopDetails(msgspec.Struct, frozen=True, gc=False):
    """Why a message was refused."""

    category: str | None = None


class Message(msgspec.Struct, frozen=True, gc=False):
    """What a model answered."""

    model: str
    content: list[Block]
    usage: Usage
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class Succeeded(msgspec.Struct, frozen=True, gc=False, tag="succeeded"):
    """A model answered, whatever it said."""

    message: Message


class Fault(msgspec.Struct, frozen=True, gc=False):
    """An error as the vendor tells it, often one within another."""

    type: str
    message: str = ""
    error: "Fault | None" = None


class Errored(msgspec.Struct, frozen=True, gc=False, tag="errored"):
    """No model answered."""

    error: Fault


class Expired(msgspec.Struct, frozen=True, gc=False, tag="expired"):
    """The batch ended before."""


class Canceled(msgspec.Struct, frozen=True, gc=False, tag="canceled"):
    """The batch was canceled before."""


Result: TypeAlias = Succeeded | Errored | Expired | Canceled


class ReadLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a results file, its result decoded."""

    custom_id: str
    result: Result


def join_text(blocks: Sequence[Block]) -> str:
    """Return the text blocks of a message, joined."""
    return "".join([block.text for block in blocks if block.type == "text" and block.text is not None])
