"""Requests as they stand in a POST body, one after the other: made in one piece, with room for their keys and their submission's tag."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from claude_batch_dagster.core.request import LINE_BREAK, SEPARATOR, LineFrame
from claude_batch_dagster.storage.keys import Keys, Mask, write_digits

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lines:
    """Requests of one task, in order.

    Attributes:
        frame: What they share.
        content: All of them and perhaps more, each with its frame, LINE_BREAK after each.
        starts: Where the rest of each request's params begins.
        stops: Where it ends; where it begins for a row that asks nothing, which is then never staged.
    """

    frame: LineFrame
    content: bytearray
    starts: Offsets
    stops: Offsets

    @classmethod
    def of(cls, frame: LineFrame, rests: Sequence[bytes]) -> Self:
        """Return requests whose params are made already.

        Args:
            frame: What they share.
            rests: What follows the head of their params.
        """
        prefix = frame.prefix
        parts = [prefix, b"", LINE_BREAK] * len(rests)
        parts[1::3] = rests
        sizes = np.fromiter(map(len, rests), np.int64, len(rests))
        starts = np.cumsum(sizes) - sizes + len(prefix) + np.arange(len(rests)) * (len(prefix) + len(LINE_BREAK))
        return cls(frame, bytearray().join(parts), starts, starts + sizes)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def rests_bytes(self) -> Offsets:
        """The bytes of each request that follow its params' head, 0 for a row that asks nothing."""
        return self.stops - self.starts

    @property
    def params_bytes(self) -> Offsets:
        """The bytes of each request's params."""
        return self.rests_bytes + len(self.frame.head)

    @property
    def lines_bytes(self) -> Offsets:
        """The bytes of each request, without a separator."""
        return self.rests_bytes + self.frame.fixed_bytes

    def params(self, at: int) -> bytes:
        """Return one request's params."""
        return self.frame.head + bytes(memoryview(self.content)[self.starts[at] : self.stops[at]])

    def take(self, chosen: Mask | slice) -> "Lines":
        """Return some of the requests: the same bytes, not copied."""
        return Lines(self.frame, self.content, self.starts[chosen], self.stops[chosen])

    def fill(self, keys: Keys, tag: str) -> list[memoryview] | list[bytes]:
        """Give the requests their keys and their submission's tag; return them as they stand in a body, in pieces that follow each other.

        Args:
            keys: A row each; at least one.
            tag: 8 hex digits.
        """
        ids = np.empty((len(keys), LineFrame.ID_BYTES), np.uint8)
        write_digits(keys, ids)
        ids[:, 32:] = np.frombuffer(f"-{tag}".encode(), np.uint8)
        slot = np.dtype((np.void, ids.shape[1]))
        # A slot at every byte: they overlap, and those that are written do not.
        slots = np.ndarray(len(self.content) - ids.shape[1] + 1, slot, self.content, strides=(1,))
        begins = self.starts - len(self.frame.prefix)
        slots[begins + self.frame.id_at] = ids.view(slot)[:, 0]
        ends = self.stops + len(LINE_BREAK)
        breaks = np.flatnonzero(begins[1:] != ends[:-1])
        firsts, lasts = begins[np.append(0, breaks + 1)].tolist(), ends[np.append(breaks, -1)].tolist()
        lasts[-1] -= len(SEPARATOR)
        view = memoryview(self.content)
        pieces = [view[first:last] for first, last in zip(firsts, lasts, strict=True)]
        # A few requests that wait to be written must not keep all the others in memory.
        return pieces if 2 * sum(map(len, pieces)) >= len(self.content) else [b"".join(pieces)]
