"""A request's identity: the canonical bytes of its `params`, their hash, and the `custom_id` that carries it to the vendor.

These bytes are an API: if they drift, every answer is asked, and paid, again. Golden tests freeze them.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import msgspec

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.spelling import suggest
from claude_batch_dagster.core.task import PRESET_SLOT, ClaudeTask
from claude_batch_dagster.core.template import is_blank, parse_template, render_value

KEY_BYTES = 16
NAME_LENGTH = 22
TAG_LENGTH = 8
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


def submission_tag(run_id: str, round_number: int, shard: int) -> str:
    """Return the 8 hex digits that tell one submission's requests from any other's."""
    return hashlib.sha256(f"{run_id}/{round_number}-{shard}".encode()).hexdigest()[:TAG_LENGTH]


class Renderer:
    """Turns rows into requests for one task over one source's columns.

    Args:
        task: What is asked.
        columns: The source's columns, partition columns included.

    Raises:
        TaskError: Terminal. A slot is no column.
    """

    def __init__(self, task: ClaudeTask, columns: Collection[str]) -> None:
        if task.column is not None and task.column not in columns:
            raise TaskError(
                f"Task {task.name!r} reads the column {task.column!r}, which the source does not have; it has {', '.join(sorted(columns))}. "
                f"Nothing was sent. {suggest(task.column, columns)}"
            )
        template = parse_template(task.prompt, columns if task.column is None else [PRESET_SLOT])
        static = msgspec.json.encode(task.static_params(), order="sorted")
        literals = [_encode_text(text)[1:-1] for text in template.literals]
        literals[0] = static[:-1] + b',"messages":[{"content":"' + literals[0]
        literals[-1] += b'","role":"user"}]}'
        self.columns: tuple[str, ...] = template.columns if task.column is None else (task.column,) * len(template.columns)
        """The columns of the slots, in the order in which they stand in the prompt; one may stand in it twice."""
        self._head = literals[0]
        self._tails = literals[1:]
        self._head_hash = hashlib.sha256(self._head)

    def render(self, rows: Iterable[Sequence[object]]) -> Iterator[Request | None]:
        """Yield each row's request, None for a row that asks nothing (its slots are null or blank).

        Args:
            rows: The values of `columns`, row by row.
        """
        head, tails, head_hash = self._head, self._tails, self._head_hash
        only_tail = tails[0] if len(tails) == 1 else None
        for row in rows:
            texts = [value if type(value) is str else render_value(value) for value in row]
            if is_blank(texts):
                yield None
                continue
            if only_tail is not None:
                rest = _encode_text(texts[0])[1:-1] + only_tail
            else:
                rest = b"".join([part for text, tail in zip(texts, tails, strict=True) for part in (_encode_text(text)[1:-1], tail)])
            digest = head_hash.copy()
            digest.update(rest)
            yield Request(digest.digest()[:KEY_BYTES], head + rest)


def encode_line(task_name: str, request: Request, tag: str) -> bytes:
    """Return the request as it stands in a POST body."""
    return b'{"custom_id":"%b","params":%b}' % (custom_id(task_name, request.key.hex(), tag).encode(), request.params)


def line_bytes(task_name: str, request: Request) -> int:
    """Return the length of what `encode_line` makes."""
    return len(b'{"custom_id":"","params":}') + len(short_name(task_name)) + 2 * KEY_BYTES + TAG_LENGTH + 2 + len(request.params)
