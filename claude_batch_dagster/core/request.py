"""A request's identity: the canonical bytes of its `params`, their hash, and the `custom_id` that carries it to the vendor.

These bytes are an API: if they drift, every answer is asked, and paid, again. Golden tests freeze them.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, repeat
from typing import ClassVar

import msgspec
import orjson

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.prompt_function import PromptFunction, encode_messages
from claude_batch_dagster.core.spelling import suggest
from claude_batch_dagster.core.task import PRESET_SLOT, ClaudeTask
from claude_batch_dagster.core.template import is_blank, parse_template, render_value

KEY_BYTES = 16
HASH_BYTES = 32
NAME_LENGTH = 22
TAG_LENGTH = 8
LINE_HEAD = b'{"custom_id":"'
SEPARATOR = b",\n"
LINE_BREAK = b"}" + SEPARATOR
"""Between the params of one request and the next request."""
_CUSTOM_ID = re.compile(r"([A-Za-z0-9_-]{1,22})-([0-9a-f]{32})-([0-9a-f]{8})")
_encode_text = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomId:
    """A `custom_id` of ours, taken apart."""

    name: str
    request_key: str
    tag: str


@dataclass(frozen=True, slots=True)
class Request:
    """A row's request: the first 128 bits of SHA-256 over the canonical bytes of `params`, and these bytes."""

    key: bytes
    params: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRows:
    """The requests of some rows, by column: all their params begin with the same bytes.

    Attributes:
        head: What every row's params begin with.
        rests: What follows it, a row each; empty for a row that asks nothing.
        keys: 16 bytes a row, zeros for a row that asks nothing.
    """

    head: bytes
    rests: Sequence[bytes]
    keys: bytes


@cache
def short_name(task_name: str) -> str:
    """Return the part of a task's name that a `custom_id` carries."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", task_name)[:NAME_LENGTH]


def custom_id(task_name: str, request_key: str, tag: str) -> str:
    """Return `{name}-{request_key}-{tag}`, 64 characters at most.

    >>> custom_id("summaries", "0" * 32, "deadbeef")
    'summaries-00000000000000000000000000000000-deadbeef'
    """
    return f"{short_name(task_name)}-{request_key}-{tag}"


def parse_custom_id(text: str) -> CustomId:
    """Take a `custom_id` apart; raise ValueError where it is none of ours."""
    found = _CUSTOM_ID.fullmatch(text)
    if found is None:
        raise ValueError("not a custom_id of this product")
    return CustomId(name=found[1], request_key=found[2], tag=found[3])


def read_name(text: str) -> str:
    """Return the task's short name in a `custom_id` that is known to be ours."""
    return text[: -(2 * KEY_BYTES + TAG_LENGTH + 2)]


def read_key_digits(text: str) -> str:
    """Return the request_key in a `custom_id` that is known to be ours, as 32 hex digits."""
    return text[-(2 * KEY_BYTES + TAG_LENGTH + 1) : -(TAG_LENGTH + 1)]


def submission_tag(run_id: str, round_number: int, shard: int) -> str:
    """Return the 8 hex digits that tell one submission's requests from any other's."""
    return hashlib.sha256(f"{run_id}/{round_number}-{shard}".encode()).hexdigest()[:TAG_LENGTH]


@dataclass(frozen=True, slots=True)
class LineFrame:
    """What the requests of one task share, as they stand in a POST body: all but their keys and the rests of their params.

    Attributes:
        task_name: Its short form is in every `custom_id`.
        head: What every request's params begin with.
    """

    ID_BYTES: ClassVar[int] = 2 * KEY_BYTES + 1 + TAG_LENGTH
    """Of what a `custom_id` says after the name: the key as hex digits, a dash and the tag."""
    task_name: str
    head: bytes

    @property
    def prefix(self) -> bytes:
        """What stands in a body before the rest of each request's params, with ID_BYTES of room at `id_at`."""
        return self._before + bytes(self.ID_BYTES) + b'","params":' + self.head

    @property
    def id_at(self) -> int:
        """Where in `prefix` the request's key and its submission's tag stand."""
        return len(self._before)

    @property
    def fixed_bytes(self) -> int:
        """The bytes of an encoded request that are not the rest of its params."""
        return len(self.prefix) + len(LINE_BREAK) - len(SEPARATOR)

    @property
    def _before(self) -> bytes:
        return LINE_HEAD + f"{short_name(self.task_name)}-".encode()


class Renderer:
    """Turns rows into requests for one task over one source's columns.

    Args:
        task: What is asked.
        columns: The source's columns, partition columns included.

    Raises:
        TaskError: Terminal. A slot is no column, or a column that a function reads is none.
    """

    def __init__(self, task: ClaudeTask, columns: Collection[str]) -> None:
        wanted = [task.column] if task.column is not None else task.prompt_columns or ()
        missing = next((column for column in wanted if column not in columns), None)
        if missing is not None:
            raise TaskError(
                f"Task {task.name!r} reads the column {missing!r}, which the source does not have; it has {', '.join(sorted(columns))}. "
                f"Nothing was sent. {suggest(missing, columns)}"
            )
        self._task = task
        head = msgspec.json.encode(task.static_params(), order="sorted")[:-1] + b',"messages":'
        self.between: tuple[bytes, ...] = ()
        """What stands between the slots of a template, as UTF-8."""
        self.tail = b""
        """What follows the last slot of a template in every row's params."""
        if isinstance(task.prompt, str):
            template = parse_template(task.prompt, columns if task.column is None else [PRESET_SLOT])
            names = template.columns if task.column is None else (task.column,) * len(template.columns)
            first, *between, last = template.literals
            head += b'[{"content":"' + _encode_text(first)[1:-1]
            self.between = tuple(text.encode() for text in between)
            self.tail = _encode_text(last)[1:-1] + b'","role":"user"}]}'
        else:
            names = tuple(columns if task.prompt_columns is None else task.prompt_columns)
        self.columns: tuple[str, ...] = names
        """What `render` takes: the columns of the slots, in the order in which they stand in the prompt (one may stand in it twice), or those
        that a function reads."""
        self.frame = LineFrame(task.name, head)
        """What the requests share."""
        self._head_hash = hashlib.sha256(head)

    def render(self, rows: Iterable[Sequence[object]]) -> Iterator[Request | None]:
        """Yield each row's request, None for a row that asks nothing (its slots are null or blank).

        Args:
            rows: The values of `columns`, row by row.
        """
        rendered = self.render_columns([list(column) for column in zip(*rows, strict=True)] or [[] for _ in self.columns])
        for at, rest in enumerate(rendered.rests):
            yield Request(rendered.keys[KEY_BYTES * at : KEY_BYTES * (at + 1)], rendered.head + rest) if rest else None

    def render_columns(self, columns: Sequence[Sequence[object]]) -> RenderedRows:
        """Return the requests of some rows.

        Args:
            columns: The values of each of `columns`, of equally many rows.

        Raises:
            TaskError: Terminal. A value has no text, or the prompt function failed; its context says at which `row` of these.
        """
        prompt = self._task.prompt
        rests = self._fill_slots(columns) if isinstance(prompt, str) else self._call(prompt, columns)
        hashes = self.hash(rests)
        keys = b"".join(hashed[:KEY_BYTES] if rest else bytes(KEY_BYTES) for hashed, rest in zip(hashes, rests, strict=True))
        return RenderedRows(head=self.frame.head, rests=rests, keys=keys)

    def hash(self, rests: Iterable[bytes | memoryview]) -> list[bytes]:
        """Return the SHA-256 of each row's params: of these HASH_BYTES its key is the first KEY_BYTES.

        Args:
            rests: What follows the head of the params, a row each.
        """
        begin = self._head_hash.copy
        hashes: list[bytes] = []
        note = hashes.append
        for rest in rests:
            hashing = begin()
            hashing.update(rest)
            note(hashing.digest())
        return hashes

    def _call(self, prompt: PromptFunction, columns: Sequence[Sequence[object]]) -> list[bytes]:
        rests = []
        for at, row in enumerate(zip(*columns, strict=True)):
            try:
                messages = encode_messages(self._task.name, prompt, dict(zip(self.columns, row, strict=True)))
            except TaskError as error:
                raise TaskError(str(error), row=at) from error
            rests.append(messages + b"}" if messages else b"")
        return rests

    def _fill_slots(self, columns: Sequence[Sequence[object]]) -> list[bytes]:
        texts = [[value if type(value) is str else render_value(value) for value in column] for column in columns]
        # Twice as fast as msgspec's for long texts, and the same bytes.
        encoded = [[quoted[1:-1] for quoted in map(orjson.dumps, column)] for column in texts]
        tails = [*(_encode_text(text.decode())[1:-1] for text in self.between), self.tail]
        slots = chain.from_iterable(zip(encoded, map(repeat, tails), strict=True))
        rests = list(map(b"".join, zip(*slots)))  # noqa: B905 - the tails repeat for ever
        # One column without a blank text is enough, and soon seen.
        if not any(all(text and not text.isspace() for text in column) for column in texts):
            for at, row in enumerate(zip(*texts, strict=True)):
                if is_blank(row):
                    rests[at] = b""
        return rests
