"""The results of a batch as they arrive: decoded piece by piece, kept, and given back in the order of the requests.

Memory holds 32 MB of answers, beyond which they are in a file, a piece of about a megabyte, and some numbers a result. A result that no fast path reads costs itself
the slow one, and the others nothing.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.request import read_key_digits
from claude_batch_dagster.core.response import UNPRICED, Decoder, PriceUsage, Response, ResultLine, read_result_lines
from claude_batch_dagster.core.result import ReadLine, Succeeded
from claude_batch_dagster.storage.arrays import content_to_arrow, texts_to_arrow, to_arrow
from claude_batch_dagster.storage.responses import ROW_GROUP_ROWS, SCHEMA
from temporal_worker.asked import ABSENT, Numbers, Requests, Rows

GROUP_BYTES = 64 << 20
HELD_BYTES = 32 << 20
KEPT = pa.schema([SCHEMA.field(name) for name in (*SCHEMA.names[1:10], "cost_nano_usd")])
"""What is kept of a result; the rest is known of its request, or of its batch."""
_WORDS = ("outcome", "stop_reason", "model")
_NUMBERS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_nano_usd")
_SAID = (*_WORDS, *_NUMBERS, "priced")
_ROW = np.dtype(
    [
        ("place", np.int32),
        ("line", np.int64),
        ("size", np.int64),
        ("priced", np.bool_),
        *((name, np.int32) for name in _WORDS),
        *((name, np.int64) for name in _NUMBERS),
    ]
)
"""A result; its answer, or its error, stands elsewhere."""
Table = npt.NDArray[np.void]


class PriceUsages(Protocol):
    """Returns the prices of answers of one model as `PriceUsage` does of each, UNPRICED for None."""

    def __call__(
        self,
        model: str,
        *,
        input_tokens: Numbers,
        output_tokens: Numbers,
        cache_read_tokens: Numbers,
        cache_write_5m_tokens: Numbers,
        cache_write_1h_tokens: Numbers,
    ) -> Numbers:
        """Price the usage of several answers."""


def price_each(price_usage: PriceUsage) -> PriceUsages:
    """Return what prices several answers one after another."""

    def price(model: str, **tokens: Numbers) -> Numbers:
        rows = zip(*(column.tolist() for column in tokens.values()), strict=True)
        costs = [price_usage(model, **dict(zip(tokens, row, strict=True))) for row in rows]
        return np.array([UNPRICED if cost is None else cost for cost in costs], np.int64)

    return price


@dataclass(slots=True)
class _Words:
    """Numbers for words of which few differ; 0 for None."""

    words: list[str] = field(default_factory=lambda: [""])
    codes: dict[str | None, int] = field(default_factory=lambda: {None: 0})

    def encode(self, words: Sequence[str | None]) -> Rows:
        distinct = set(words)
        for word in distinct - self.codes.keys():
            self.codes[word] = len(self.words)
            self.words.append(cast(str, word))
        if len(distinct) == 1:
            return np.full(len(words), self.codes[words[0]], np.int32)
        return np.array([self.codes[word] for word in words], np.int32)

    def to_arrow(self, codes: Rows) -> pa.Array:
        words = texts_to_arrow([word.encode() for word in self.words])
        return pa.DictionaryArray.from_arrays(to_arrow(codes, pa.int32(), codes != 0), words).dictionary_decode()


class _Texts:
    """Answers and errors as they come; beyond HELD_BYTES those before are in a file."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._starts = [0]
        self._mapped: mmap.mmap | bytes = b""

    def extend(self, texts: Sequence[bytes], total_bytes: int) -> None:
        self._held += texts
        self._held_bytes += total_bytes
        if self._held_bytes > HELD_BYTES:
            assert self._file is not None, "nothing comes without a file"
            with self._file.open("ab") as out:
                out.write(b"".join(self._held))
            self._starts += [start + self._starts[-1] for start in accumulate(map(len, self._held))]
            self._held, self._held_bytes = [], 0

    def open(self) -> None:
        """Have them read: no more come."""
        if self._file is not None and self._starts[-1]:
            with self._file.open("rb") as content:
                self._mapped = mmap.mmap(content.fileno(), 0, prot=mmap.PROT_READ)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Return those of some rows."""
        held, starts, mapped = self._held, self._starts, self._mapped
        filed = len(starts) - 1
        return [held[row - filed] if row >= filed else mapped[starts[row] : starts[row + 1]] for row in rows]

    def rest(self) -> None:
        """What was read stays in the page cache; it need not count as this process' memory."""
        if isinstance(self._mapped, mmap.mmap):
            self._mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A batch's results, decoded.

    Attributes:
        rows: Where each request's result stands in the table, ABSENT for none.
        table: A result a row; the last one stands for those that did not come.
        foreign: Lines that are no request's, or not its first.
        duplicate: Lines that say again what the request's first line says.
    """

    rows: Rows
    table: Table = field(default_factory=lambda: np.zeros(1, _ROW))
    words: _Words = field(default_factory=_Words)
    texts: _Texts = field(default_factory=_Texts)
    foreign: int = 0
    duplicate: int = 0

    @classmethod
    def nothing(cls, requests: int) -> "Arrived":
        """Return that no request has a result."""
        return cls(rows=np.full(requests, ABSENT, np.int32))

    @property
    def missing(self) -> int:
        """Requests without a result."""
        return int((self.rows == ABSENT).sum())

    def read(self, places: Rows, missing: Response) -> "Iterator[tuple[Rows, pa.RecordBatch]]":
        """Yield these requests' results in their order, as KEPT: 4,096 at a time, or 64 MB of answers.

        Args:
            places: Of the requests.
            missing: What stands for a result that did not come.
        """
        error = (missing.error or "").encode()
        _fill(self.table[ABSENT:], [missing], self.words)
        self.table[ABSENT]["size"] = len(error)
        rows = self.rows[places]
        ends = np.cumsum(self.table["size"][rows])
        start = 0
        while start < len(places):
            before = ends[start - 1] if start else 0
            stop = min(start + ROW_GROUP_ROWS, max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, "right"))))
            yield places[start:stop], self._take(rows[start:stop], error)
            start = stop

    def _take(self, rows: Rows, missing: bytes) -> pa.RecordBatch:
        # By bytes: numpy is slow to pick rows of several fields.
        found = self.table.view(np.uint8).reshape(-1, _ROW.itemsize).take(rows, axis=0).view(_ROW)[:, 0]
        answered = found["outcome"] == self.words.encode([Outcome.SUCCEEDED.value])
        answers = self.texts.read(rows[answered].tolist())
        errors = [missing if row == ABSENT else self.texts.read([row])[0] for row in rows[~answered].tolist()]
        columns = {
            "answer": content_to_arrow(b"".join(answers), found["size"], answered),
            "error": content_to_arrow(b"".join(errors), found["size"], ~answered),
            **{name: self.words.to_arrow(found[name]) for name in _WORDS},
            **{name: to_arrow(found[name], pa.int64(), found["priced"] if name == "cost_nano_usd" else None) for name in _NUMBERS},
        }
        self.texts.rest()
        return pa.record_batch([columns[name] for name in KEPT.names], schema=KEPT)


class Arrivals:
    """Takes a batch's results in; a context, at whose end the last line, which has no line break, is complete.

    Args:
        file: The local file for answers that are not held.
        requests: Whose results are wanted.
        decoders: Of the plan's tasks.
        price_usages: What answers cost that came whole.
    """

    def __init__(self, file: Path, requests: Requests, decoders: Sequence[Decoder], price_usages: PriceUsages) -> None:
        self._requests = requests
        self._decoders = decoders
        self._price_usages = price_usages
        self._rest = b""
        self._lines = self._foreign = 0
        self._words = _Words()
        self._tables: list[Table] = []
        self._texts = _Texts(file)
        file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._add_lines(read_result_lines(self._rest))

    def add(self, chunk: bytes) -> None:
        """Take in the next bytes of the results."""
        start, end = chunk.find(b"\n") + 1, chunk.rfind(b"\n") + 1
        if end:
            # All but the first line are read where they are.
            self._add_lines(read_result_lines(self._rest + chunk[:start]) + read_result_lines(chunk, start, end))
            self._rest = b""
        self._rest += chunk[end:]

    def arrange(self) -> Arrived:
        """Return what came, once the context has ended."""
        table = np.concatenate([*self._tables, np.zeros(1, _ROW)])
        places, lines = table["place"][:-1].astype(np.int64), table["line"][:-1]
        order = np.argsort(places * max(1, self._lines) + lines).astype(np.int32)
        places = places[order]
        first = np.diff(places, prepend=ABSENT) != 0
        rows = np.full(len(self._requests), ABSENT, np.int32)
        rows[places[first]] = order[first]
        self._texts.open()
        again = zip(order[~first].tolist(), rows[places[~first]].tolist(), strict=True)
        duplicate = sum(self._say(table, row) == self._say(table, earlier) for row, earlier in again)
        foreign = self._foreign + int((~first).sum()) - duplicate
        return Arrived(rows=rows, table=table, words=self._words, texts=self._texts, foreign=foreign, duplicate=duplicate)

    def _say(self, table: Table, row: int) -> list[Any]:
        return [*self._texts.read([row]), *(table[name][row] for name in _SAID)]

    def _add_lines(self, lines: Sequence[ReadLine | ResultLine | None]) -> None:
        places = self._requests.find(["" if line is None else line.custom_id for line in lines])
        numbers = np.arange(self._lines, self._lines + len(lines))
        self._lines += len(lines)
        self._foreign += int((places == ABSENT).sum())
        tasks = np.where(places == ABSENT, ABSENT, self._requests.tasks[places])
        for task, decoder in enumerate(self._decoders):
            ours = tasks == task
            if ours.any():
                found = lines if ours.all() else list(compress(lines, ours.tolist()))
                self._decode(decoder, cast("Sequence[ReadLine | ResultLine]", found), places[ours], numbers[ours])

    def _decode(self, decoder: Decoder, lines: Sequence[ReadLine | ResultLine], places: Rows, numbers: Numbers) -> None:
        answers = decoder.read_answers([line.result for line in lines])
        plain = np.array([answer is not None for answer in answers], np.bool_)
        if not plain.all():
            others = [
                decoder.decode_result(bytes.fromhex(read_key_digits(line.custom_id)), line.result)
                for line in compress(lines, (~plain).tolist())
            ]
            table = np.zeros(len(others), _ROW)
            _fill(table, others, self._words)
            texts = [((other.error or "") if other.answer is None else other.answer).encode() for other in others]
            self._keep(table, texts, places[~plain], numbers[~plain])
            lines = list(compress(lines, plain.tolist()))
        if plain.any():
            table = np.zeros(len(lines), _ROW)
            _fill_succeeded(table, [cast(Succeeded, line.result) for line in lines], self._words, self._price_usages)
            self._keep(table, [answer for answer in answers if answer is not None], places[plain], numbers[plain])

    def _keep(self, table: Table, texts: Sequence[bytes], places: Rows, numbers: Numbers) -> None:
        table["place"], table["line"] = places, numbers
        table["size"] = np.fromiter(map(len, texts), np.int64, len(texts))
        self._tables.append(table)
        self._texts.extend(texts, int(table["size"].sum()))


def _fill(table: Table, responses: Sequence[Response], words: _Words) -> None:
    for name in _WORDS:
        table[name] = words.encode([getattr(response, name) for response in responses])
    for name in _NUMBERS:
        table[name] = [getattr(response, name) or 0 for response in responses]
    table["priced"] = [response.cost_nano_usd is not None for response in responses]


def _fill_succeeded(table: Table, results: Sequence[Succeeded], words: _Words, price_usages: PriceUsages) -> None:
    messages = [result.message for result in results]
    usages = [message.usage for message in messages]
    table["outcome"] = words.encode([Outcome.SUCCEEDED.value])
    table["stop_reason"] = words.encode([message.stop_reason for message in messages])
    table["model"] = words.encode([message.model for message in messages])
    table["input_tokens"] = [usage.input_tokens for usage in usages]
    table["output_tokens"] = [usage.output_tokens for usage in usages]
    table["cache_read_tokens"] = [usage.cache_read_input_tokens or 0 for usage in usages]
    table["cache_write_tokens"] = [usage.cache_creation_input_tokens or 0 for usage in usages]
    written = table["cache_write_tokens"]
    written_1h = np.array([usage.written_1h_tokens for usage in usages], np.int64) if written.any() else written
    for model in np.flatnonzero(np.bincount(table["model"])).tolist():
        ours = table["model"] == model
        costs = price_usages(
            words.words[model],
            **{name: table[name][ours] for name in ("input_tokens", "output_tokens", "cache_read_tokens")},
            cache_write_5m_tokens=(written - written_1h)[ours],
            cache_write_1h_tokens=written_1h[ours],
        )
        table["cost_nano_usd"][ours], table["priced"][ours] = np.where(costs == UNPRICED, 0, costs), costs != UNPRICED
