"""The results of a batch as they arrive: decoded piece by piece, kept in a file, and given back in the order of the requests.

Memory holds a piece of about a megabyte and some numbers a result, whatever was answered. A result that no fast path reads costs itself
the slow one, and the others nothing.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.request import read_key_digits
from claude_batch_dagster.core.response import Decoder, Response, ResultLine, read_result_lines
from claude_batch_dagster.core.result import Message, ReadLine, Succeeded
from claude_batch_dagster.storage.arrays import numbers_to_arrow, repeat_word, texts_to_arrow, to_arrow, words_to_arrow
from claude_batch_dagster.storage.keys import Keys
from claude_batch_dagster.storage.responses import ROW_GROUP_ROWS, SCHEMA

Numbers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]

ABSENT = -1
PART_BYTES = 16 << 20
GROUP_BYTES = 64 << 20
KEPT = pa.schema([SCHEMA.field(name) for name in (*SCHEMA.names[1:10], "cost_nano_usd")])
"""What is kept of a result; the rest is known of its request, or of its batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """A shard's requests in order.

    Attributes:
        places: Of each custom_id.
        keys: Of each request.
        tasks: Index, in the plan's tasks, of each request's task.
        max_tokens: Of each request: where it is asked again, it may have been raised.
    """

    places: dict[str, int]
    keys: Keys
    tasks: Rows
    max_tokens: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A batch's results, decoded.

    Attributes:
        rows: Where each request's result stands in the file, ABSENT for none.
        sizes: Bytes of each row's answer, and a zero.
        foreign: Lines that are no request's, or not its first.
        duplicate: Lines that say again what the request's first line says.
    """

    rows: Rows
    sizes: Numbers
    parts: "_Parts"
    foreign: int = 0
    duplicate: int = 0

    @classmethod
    def nothing(cls, requests: int) -> "Arrived":
        """Return that no request has a result."""
        return cls(rows=np.full(requests, ABSENT, np.int32), sizes=np.zeros(1, np.int64), parts=_Parts(None, np.zeros(1, np.int64)))

    @property
    def missing(self) -> int:
        """Requests without a result."""
        return int((self.rows == ABSENT).sum())

    def read(self, places: Rows, missing: Response) -> "Iterator[tuple[Rows, pa.RecordBatch]]":
        """Yield these requests' results in their order, as KEPT: 16,384 at a time, or 64 MB of answers.

        Args:
            places: Of the requests.
            missing: What stands for a result that did not come.
        """
        rows = self.rows[places]
        ends = np.cumsum(np.where(rows == ABSENT, 0, self.sizes[rows]))
        start = 0
        while start < len(places):
            before = ends[start - 1] if start else 0
            stop = min(start + ROW_GROUP_ROWS, max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, "right"))))
            yield places[start:stop], self.parts.take(rows[start:stop], missing)
            start = stop


class Arrivals:
    """Takes a batch's results in; a context, at whose end the file and the last line, which has no line break, are complete.

    Args:
        file: The local file to write.
        requests: Whose results are wanted.
        decoders: Of the plan's tasks.
    """

    def __init__(self, file: Path, requests: Requests, decoders: Sequence[Decoder]) -> None:
        self._file = file
        self._requests = requests
        self._decoders = decoders
        self._rest = b""
        self._lines = self._foreign = 0
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._parts: list[int] = []
        self._places: list[Rows] = [np.empty(0, np.int32)]
        self._numbers: list[Numbers] = [np.empty(0, np.int64)]
        self._sizes: list[Numbers] = [np.zeros(0, np.int64)]
        self._sink = pa.OSFile(str(file), "wb")
        self._writer = pa.ipc.new_file(self._sink, KEPT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._add_lines(self._rest)
                self._write_held()
        finally:
            self._writer.close()
            self._sink.close()

    def add(self, chunk: bytes) -> None:
        """Take in the next bytes of the results."""
        content = self._rest + chunk
        end = content.rfind(b"\n") + 1
        self._rest = content[end:]
        if end:
            self._add_lines(content[:end])

    def arrange(self) -> Arrived:
        """Return what came, once the context has ended."""
        places, numbers = np.concatenate(self._places), np.concatenate(self._numbers)
        order = np.lexsort((numbers, places)).astype(np.int32)
        places = places[order]
        first = np.diff(places, prepend=np.int32(ABSENT)) != 0
        rows = np.full(len(self._requests.places), ABSENT, np.int32)
        rows[places[first]] = order[first]
        parts = _Parts.open(self._file, self._parts)
        again = zip(order[~first].tolist(), rows[places[~first]].tolist(), strict=True)
        duplicate = sum(parts.row(row) == parts.row(earlier) for row, earlier in again)
        return Arrived(
            rows=rows,
            sizes=np.concatenate([*self._sizes, np.zeros(1, np.int64)]),
            parts=parts,
            foreign=self._foreign + int((~first).sum()) - duplicate,
            duplicate=duplicate,
        )

    def _add_lines(self, piece: bytes) -> None:
        lines = read_result_lines(piece)
        find = self._requests.places.get
        places = np.array([ABSENT if line is None else find(line.custom_id, ABSENT) for line in lines], np.int32)
        numbers = np.arange(self._lines, self._lines + len(lines))
        self._lines += len(lines)
        self._foreign += int((places == ABSENT).sum())
        tasks = np.where(places == ABSENT, ABSENT, self._requests.tasks[places])
        for task, decoder in enumerate(self._decoders):
            ours = tasks == task
            if ours.any():
                found = [line for line in compress(lines, ours) if line is not None]
                self._decode(decoder, found, places[ours], numbers[ours])

    def _decode(self, decoder: Decoder, lines: Sequence[ReadLine | ResultLine], places: Rows, numbers: Numbers) -> None:
        answers = decoder.read_answers([line.result for line in lines])
        plain = np.array([answer is not None for answer in answers], np.bool_)
        if plain.any():
            texts = [answer for answer in answers if answer is not None]
            messages = [cast(Succeeded, line.result).message for line in compress(lines, plain)]
            self._keep(_arrange_messages(decoder, messages, texts), places[plain], numbers[plain])
        if not plain.all():
            others = [
                decoder.decode_result(bytes.fromhex(read_key_digits(line.custom_id)), line.result) for line in compress(lines, ~plain)
            ]
            self._keep(_arrange_responses(others), places[~plain], numbers[~plain])

    def _keep(self, rows: pa.RecordBatch, places: Rows, numbers: Numbers) -> None:
        self._places.append(places)
        self._numbers.append(numbers)
        ends = np.frombuffer(rows.column("answer").buffers()[1], np.int32, rows.num_rows + 1)
        self._sizes.append(np.diff(ends).astype(np.int64))
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes >= PART_BYTES:
            self._write_held()

    def _write_held(self) -> None:
        if self._held:
            part = pa.concat_batches(self._held)
            self._writer.write_batch(part)
            self._parts.append(part.num_rows)
        self._held, self._held_bytes = [], 0


class _Parts:
    """The record batches of a file, of which some rows at a time are in memory."""

    def __init__(self, mapped: mmap.mmap | None, starts: Numbers) -> None:
        self._mapped = mapped
        self._starts = starts
        self._reader = None if mapped is None else pa.ipc.open_file(pa.py_buffer(mapped))

    @classmethod
    def open(cls, file: Path, lengths: Sequence[int]) -> "_Parts":
        with file.open("rb") as content:
            mapped = mmap.mmap(content.fileno(), 0, prot=mmap.PROT_READ)
        return cls(mapped, np.cumsum([0, *lengths]))

    def take(self, rows: Rows, missing: Response) -> pa.RecordBatch:
        """Return these rows in this order, `missing` where they are ABSENT."""
        order = np.argsort(rows, kind="stable")
        wanted = rows[order]
        absent = int(np.searchsorted(wanted, ABSENT, "right"))
        found = [_arrange_responses([missing] * absent)] if absent else []
        parts = np.searchsorted(self._starts, wanted[absent:], "right") - 1
        stops = np.flatnonzero(np.diff(parts, append=-1)) + 1
        start = 0
        for stop in stops.tolist():
            part = int(parts[start])
            found.append(self._read(part).take(to_arrow(wanted[absent + start : absent + stop] - self._starts[part], pa.int64())))
            start = stop
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        taken = pa.concat_batches(found).take(to_arrow(back, pa.int64()))
        if self._mapped is not None:
            # What was read stays in the page cache; it need not count as this process' memory.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return taken

    def row(self, row: int) -> dict[str, Any]:
        """Return one row."""
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        found: dict[str, Any] = self._read(part).slice(row - int(self._starts[part]), 1).to_pylist()[0]
        return found

    def _read(self, part: int) -> pa.RecordBatch:
        assert self._reader is not None, "a row of no file"
        return self._reader.get_batch(part)


def _arrange_messages(decoder: Decoder, messages: Sequence[Message], answers: Sequence[bytes]) -> pa.RecordBatch:
    usages = [message.usage for message in messages]
    inputs = [usage.input_tokens for usage in usages]
    outputs = [usage.output_tokens for usage in usages]
    read = [usage.cache_read_input_tokens or 0 for usage in usages]
    written = [usage.cache_creation_input_tokens or 0 for usage in usages]
    written_1h = [usage.written_1h_tokens for usage in usages] if any(written) else written
    price = decoder.price_usage
    costs = [
        price(
            message.model,
            input_tokens=count,
            output_tokens=output,
            cache_read_tokens=cached,
            cache_write_5m_tokens=cache - cache_1h,
            cache_write_1h_tokens=cache_1h,
        )
        for message, count, output, cached, cache, cache_1h in zip(messages, inputs, outputs, read, written, written_1h, strict=True)
    ]
    return pa.record_batch(
        [
            repeat_word(Outcome.SUCCEEDED.value, len(messages)),
            texts_to_arrow(answers),
            words_to_arrow([message.stop_reason for message in messages]),
            pa.nulls(len(messages), pa.string()),
            words_to_arrow([message.model for message in messages]),
            *(numbers_to_arrow(column) for column in (inputs, outputs, read, written, costs)),
        ],
        schema=KEPT,
    )


def _arrange_responses(responses: Sequence[Response]) -> pa.RecordBatch:
    words = ([getattr(response, name) for response in responses] for name in KEPT.names[:5])
    numbers = ([getattr(response, name) for response in responses] for name in KEPT.names[5:])
    return pa.record_batch([*map(words_to_arrow, words), *map(numbers_to_arrow, numbers)], schema=KEPT)
