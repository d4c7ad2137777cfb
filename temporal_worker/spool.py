"""Responses as they are stored: decoded from a spool one after another, and counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from claude_batch_dagster.core.contract import Counts
from claude_batch_dagster.core.response import Response


class Tally:
    """Counts responses; quick, for there are 100,000 of them in a batch."""

    def __init__(self) -> None:
        self.by_outcome: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()

    def count(self, response: Response) -> None:
        """Count a response."""
        self.by_outcome[response.outcome] += 1
        for name, value in (
            ("input_tokens", response.input_tokens),
            ("output_tokens", response.output_tokens),
            ("cache_read_tokens", response.cache_read_tokens),
            ("cache_write_tokens", response.cache_write_tokens),
            ("cost_nano_usd", response.cost_nano_usd or 0),
            ("unpriced", int(response.cost_nano_usd is None)),
        ):
            self._sums[name] += value

    def count_rows(self, rows: pa.RecordBatch) -> None:
        """Count responses, which have these columns."""
        for found in pc.value_counts(rows.column("outcome")):
            self.by_outcome[found["values"].as_py()] += found["counts"].as_py()
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_nano_usd"):
            self._sums[name] += pc.sum(rows.column(name), min_count=0).as_py()
        self._sums["unpriced"] += rows.column("cost_nano_usd").null_count

    def keep(self, stored: Mapping[str, int]) -> None:
        """Count what was stored before, by outcome."""
        self.by_outcome.update(stored)

    def counts(self) -> Counts:
        """Return what was counted."""
        return Counts(by_outcome=dict(self.by_outcome), **self._sums)


class SpooledResponses(Sequence[Response]):
    """Decodes responses as they are asked for, so that no batch is ever whole in memory, and counts each the first time.

    Args:
        length: How many there are.
        decode: Returns one by its place; whoever stores them asks for them in order.
    """

    def __init__(self, length: int, decode: Callable[[int], Response], tally: Tally) -> None:
        self._length = length
        self._decode = decode
        self._tally = tally
        self._counted = 0

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Response: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Response]: ...
    def __getitem__(self, index: int | slice) -> Response | Sequence[Response]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(index)
        response = self._decode(index)
        if index == self._counted:
            self._counted += 1
            self._tally.count(response)
        return response
