"""The results of a batch as they arrive: decoded piece by piece, kept, and given back in the order of the requests.

Memory holds 64 MB of answers, beyond which they are in a file, a piece of about a megabyte, and some numbers a result. A result that no
fast path reads costs itself the slow one, and the others nothing.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.request import read_key_digits
from claude_batch_dagster.core.response import UNPRICED, Decoder, PriceUsage, Response, ResultLine, read_result_lines
from claude_batch_dagster.core.result import Message, ReadLine
from claude_batch_dagster.storage.arrays import content_to_arrow, distinct, large_to_string, texts_to_arrow, to_arrow
from claude_batch_dagster.storage.responses import ROW_GROUP_ROWS, SCHEMA
from temporal_worker.asked import ABSENT, Numbers, Requests, Rows

GROUP_BYTES = 64 << 20
HELD_BYTES = 64 << 20
KEPT = pa.schema([SCHEMA.field(name) for name in (*SCHEMA.names[1:10], "cost_nano_usd")])
"""What is kept of a result; the rest is known of its request, or of its batch."""
_WORDS = ("outcome", "stop_reason", "model")
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_NUMBERS = (*_TOKENS, "cost_nano_usd")
_SAID = (*_WORDS, *_TOKENS)
_TAKEN = ("size", "is_plain", "priced", *_WORDS, *_NUMBERS, "cache_write_1h_tokens")
_KINDS: dict[str, type[np.generic]] = {
    **dict.fromkeys(("place", *_WORDS), np.int32),
    **dict.fromkeys(("line", "start", "size", *_NUMBERS, "cache_write_1h_tokens"), np.int64),
    **dict.fromkeys(("is_plain", "priced"), np.bool_),
}
Table: TypeAlias = dict[str, npt.NDArray[Any]]
"""Results by column. The answer of one, or its error, stands elsewhere, `size` bytes from `start`. A plain one is priced when it is given back."""
Content: TypeAlias = bytes | memoryview | mmap.mmap


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
    """Answers and errors one behind the other, as they come; beyond HELD_BYTES all are in a file in the end."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._held = np.empty(HELD_BYTES if file else 0, np.uint8)
        self._held_bytes = self._filed_bytes = 0
        self._content: Content = b""

    def append(self, content: bytes) -> int:
        """Take some in; return where they begin."""
        start = self._filed_bytes + self._held_bytes
        if self._held_bytes + len(content) > len(self._held):
            self._write(content)
        else:
            self._held[self._held_bytes : self._held_bytes + len(content)] = np.frombuffer(content, np.uint8)
            self._held_bytes += len(content)
        return start

    def open(self) -> None:
        """Have them read: no more come."""
        self._content = self._held[: self._held_bytes].data
        if self._filed_bytes:
            with self._write(b"").open("rb") as filed:
                self._content = mmap.mmap(filed.fileno(), 0, prot=mmap.PROT_READ)
            self._held = np.empty(0, np.uint8)

    def read(self, start: int, size: int) -> bytes:
        """Return one."""
        return bytes(self._content[start : start + size])

    def to_arrow(self, starts: Numbers, sizes: Numbers) -> pa.Array:
        """Return them all as they stand in memory, each followed by one of what stands between it and the next.

        Args:
            starts: Ascending.
            sizes: Of each.
        """
        edges = np.full(2 * len(starts) + 1, len(self._content), np.int64)
        edges[:-1:2], edges[1::2] = starts, starts + sizes
        return pa.Array.from_buffers(pa.large_binary(), len(edges) - 1, [None, pa.py_buffer(edges), pa.py_buffer(self._content)])

    def rest(self) -> None:
        """What was read stays in the page cache; it need not count as this process' memory."""
        if isinstance(self._content, mmap.mmap):
            self._content.madvise(mmap.MADV_DONTNEED)

    def _write(self, content: bytes) -> Path:
        assert self._file is not None, "nothing comes without a file"
        with self._file.open("ab") as out:
            out.write(self._held[: self._held_bytes].data)
            self._filed_bytes += self._held_bytes + out.write(content)
        self._held_bytes = 0
        return self._file


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A batch's results, decoded.

    Attributes:
        price_usages: What answers cost that came whole.
        rows: Where each request's result stands in the table, ABSENT for none.
        table: A result a row; the last one stands for those that did not come.
        foreign: Lines that are no request's, or not its first.
        duplicate: Lines that say again what the request's first line says.
    """

    price_usages: PriceUsages
    rows: Rows
    table: Table = field(default_factory=lambda: _zeros(1))
    words: _Words = field(default_factory=_Words)
    texts: _Texts = field(default_factory=_Texts)
    foreign: int = 0
    duplicate: int = 0

    @classmethod
    def nothing(cls, requests: int, price_usages: PriceUsages) -> "Arrived":
        """Return that no request has a result."""
        return cls(price_usages=price_usages, rows=np.full(requests, ABSENT, np.int32))

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
        for name, values in _read_responses([missing], self.words).items():
            self.table[name][ABSENT] = values[0]
        self.table["size"][ABSENT] = len(error)
        rows = self.rows[places]
        ends = np.cumsum(self.table["size"][rows])
        texts = self.texts.to_arrow(self.table["start"][:ABSENT], self.table["size"][:ABSENT])
        start = 0
        while start < len(places):
            before = ends[start - 1] if start else 0
            stop = min(start + ROW_GROUP_ROWS, max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, "right"))))
            yield places[start:stop], self._take(rows[start:stop], texts, error)
            start = stop

    def _take(self, rows: Rows, texts: pa.Array, missing: bytes) -> pa.RecordBatch:
        found = {name: self.table[name].take(rows) for name in _TAKEN}
        self._price(found)
        answered = found["outcome"] == self.words.encode([Outcome.SUCCEEDED.value])
        answers = texts.take(to_arrow(2 * rows, pa.int32(), answered))
        errors = [missing if row == ABSENT else self._read(row) for row in rows[~answered].tolist()]
        columns = {
            "answer": large_to_string(answers),
            "error": content_to_arrow(b"".join(errors), found["size"], ~answered),
            **{name: self.words.to_arrow(found[name]) for name in _WORDS},
            **{name: to_arrow(found[name], pa.int64(), found["priced"] if name == "cost_nano_usd" else None) for name in _NUMBERS},
        }
        self.texts.rest()
        return pa.record_batch([columns[name] for name in KEPT.names], schema=KEPT)

    def _price(self, found: Table) -> None:
        plain, models = found["is_plain"], found["model"]
        for model in distinct(models[plain]):
            ours = np.flatnonzero(plain & (models == model))
            tokens = {name: found[name][ours] for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
            written, written_1h = found["cache_write_tokens"][ours], found["cache_write_1h_tokens"][ours]
            tokens |= {"cache_write_5m_tokens": written - written_1h, "cache_write_1h_tokens": written_1h}
            costs = self.price_usages(self.words.words[model], **tokens)
            found["cost_nano_usd"][ours], found["priced"][ours] = np.where(costs == UNPRICED, 0, costs), costs != UNPRICED

    def say(self, row: int) -> list[Any]:
        """Return what a result says, whosever it is."""
        return [self._read(row), *(self.table[name][row] for name in _SAID)]

    def _read(self, row: int) -> bytes:
        return self.texts.read(int(self.table["start"][row]), int(self.table["size"][row]))


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
        self._table = _zeros(len(requests) + 1)
        self._rows = 0
        self._texts = _Texts(file)
        file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._add_lines(read_result_lines(self._rest))

    def add(self, chunk: bytes) -> None:
        """Take in the next bytes of the results."""
        end = chunk.rfind(b"\n") + 1
        if end:
            start = chunk.find(b"\n") + 1
            breaks = _count_breaks(memoryview(chunk)[start:end])
            # All but the first line are read where they are.
            self._add_lines(read_result_lines(self._rest + chunk[:start]) + read_result_lines(chunk, start, end, breaks=breaks))
            self._rest = b""
        self._rest += chunk[end:]

    def arrange(self) -> Arrived:
        """Return what came, once the context has ended."""
        self._texts.open()
        table = {name: column[: self._rows + 1] for name, column in self._table.items()}
        places = table["place"][:-1]
        rows = np.full(len(self._requests), ABSENT, np.int32)
        rows[places] = np.arange(len(places), dtype=np.int32)
        arrived = Arrived(
            price_usages=self._price_usages, rows=rows, table=table, words=self._words, texts=self._texts, foreign=self._foreign
        )
        return arrived if len(places) + arrived.missing == len(rows) else self._leave_repeated(arrived, places)

    def _leave_repeated(self, arrived: Arrived, places: Rows) -> Arrived:
        """Have each request's first line count, and tell what the others are."""
        order = np.lexsort((arrived.table["line"][:-1], places)).astype(np.int32)
        places = places[order]
        first = np.diff(places, prepend=ABSENT) != 0
        arrived.rows[places[first]] = order[first]
        again = zip(order[~first].tolist(), arrived.rows[places[~first]].tolist(), strict=True)
        duplicate = sum(arrived.say(row) == arrived.say(earlier) for row, earlier in again)
        return replace(arrived, foreign=arrived.foreign + int((~first).sum()) - duplicate, duplicate=duplicate)

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
        plain = np.array(answers.rows, np.int64)
        if len(plain) < len(lines):
            odd = np.delete(np.arange(len(lines)), plain)
            others = [
                decoder.decode_result(bytes.fromhex(read_key_digits(lines[row].custom_id)), lines[row].result) for row in odd.tolist()
            ]
            texts = [((other.error or "") if other.answer is None else other.answer).encode() for other in others]
            found = _read_responses(others, self._words)
            self._keep(found, b"\n".join([*texts, b""]), list(map(len, texts)), places[odd], numbers[odd])
        if len(plain):
            self._keep(_read_messages(answers.messages, self._words), answers.content, answers.sizes, places[plain], numbers[plain])

    def _keep(self, found: Table, content: bytes, sizes: Sequence[int] | None, places: Rows, numbers: Numbers) -> None:
        """Keep results, whose texts each have a line break behind them."""
        ends = _find_breaks(content) if sizes is None else np.cumsum(np.array(sizes, np.int64) + 1) - 1
        starts = np.concatenate([[0], ends[:-1] + 1])
        told: Table = {"place": places, "line": numbers, "start": self._texts.append(content) + starts, "size": ends - starts}
        start, self._rows = self._rows, self._rows + len(places)
        if self._rows >= len(self._table["place"]):
            # Some came twice.
            more = _zeros(self._rows)
            self._table = {name: np.concatenate([column, more[name]]) for name, column in self._table.items()}
        for name, values in (found | told).items():
            self._table[name][start : self._rows] = values


def _count_breaks(content: memoryview) -> int:
    """Count as `bytes.count` does, in a quarter of its time."""
    return int(np.count_nonzero(np.frombuffer(content, np.uint8) == ord("\n")))


def _find_breaks(content: bytes) -> Numbers:
    return np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))


def _zeros(count: int) -> Table:
    return {name: np.zeros(count, kind) for name, kind in _KINDS.items()}


def _read_responses(responses: Sequence[Response], words: _Words) -> Table:
    found: Table = {name: words.encode([getattr(response, name) for response in responses]) for name in _WORDS}
    found |= {name: _to_numbers([getattr(response, name) or 0 for response in responses]) for name in _NUMBERS}
    return found | {"priced": np.array([response.cost_nano_usd is not None for response in responses], np.bool_)}


def _read_messages(messages: Sequence[Message], words: _Words) -> Table:
    usages = [message.usage for message in messages]
    written = _to_numbers([usage.cache_creation_input_tokens or 0 for usage in usages])
    found: Table = {
        "outcome": np.full(len(usages), words.encode([Outcome.SUCCEEDED.value])[0]),
        "stop_reason": words.encode([message.stop_reason for message in messages]),
        "model": words.encode([message.model for message in messages]),
        "input_tokens": _to_numbers([usage.input_tokens for usage in usages]),
        "output_tokens": _to_numbers([usage.output_tokens for usage in usages]),
        "cache_read_tokens": _to_numbers([usage.cache_read_input_tokens or 0 for usage in usages]),
        "cache_write_tokens": written,
        "is_plain": np.ones(len(usages), np.bool_),
    }
    return found | {"cache_write_1h_tokens": _to_numbers([usage.written_1h_tokens for usage in usages])} if written.any() else found


def _to_numbers(numbers: Sequence[int]) -> Numbers:
    # Quicker than np.array, which looks for a common kind first.
    return np.fromiter(numbers, np.int64, len(numbers))
