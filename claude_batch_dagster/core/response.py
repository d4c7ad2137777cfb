"""Decodes result lines of a Message Batch: what Claude answered to one request, by the type of the result.

The `type` is dispatched on here: the vendor's SDK builds a type that it does not know as a success without a message.
Source: platform.claude.com batch processing, "Retrieve batch results"; `anthropic` 2.12.0 types (checked 2026-11-22).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any, Protocol, TypeVar, cast

import jsonschema_rs
import msgspec

from claude_batch_dagster.core.answer_type import answer_type
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.result import Canceled, Errored, Expired, Message, ReadLine, Result, Succeeded, join_text

LONG_PROMPT_TOKENS = 100_000
"""Prompts above this many tokens are priced apart by some models."""
COMPLETE_STOPS = frozenset({"end_turn", "stop_sequence"})
TRUNCATED_STOPS = frozenset({"max_tokens", "model_context_window_exceeded"})
MAX_MESSAGE_CHARS = 500
UNPRICED = -1 << 63
"""Among prices: the model has none."""

T = TypeVar("T")


class PriceUsage(Protocol):
    """Returns the price of one answer in nano-USD at batch price, None for a model without a price."""

    def __call__(
        self,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int,
        cache_read_tokens: int,
        cache_write_5m_tokens: int,
        cache_write_1h_tokens: int,
    ) -> int | None:
        """Price one answer's usage; `input_tokens` is what was not read from or written to a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What became of one request.

    Attributes:
        request_key: 16 bytes.
        outcome: A word of `Outcome`.
        answer: The compact JSON text of a structured answer, else plain text; None unless succeeded.
        stop_reason: The vendor's word, None where no message came.
        error: `{type}: {message}`, None where succeeded. Only the type decides what becomes of the request.
        model: As the vendor names it, None where no message came.
        input_tokens: Prompt less cache reads and writes.
        max_tokens: What the request allowed, thinking included.
        cost_nano_usd: None where the model has no price; 0 where nothing is billed.
        retryable: Whether its run grants the request a further round: where none came, the next run asks it.
    """

    request_key: bytes
    outcome: str
    answer: str | None = None
    stop_reason: str | None = None
    error: str | None = None
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    max_tokens: int = 0
    cost_nano_usd: int | None = 0
    retryable: bool = False

    @property
    def cache_write_tokens(self) -> int:
        """Tokens written to caches of either lifetime."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def over_100k(self) -> bool:
        """Whether the whole prompt, caches included, exceeds 100,000 tokens."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens > LONG_PROMPT_TOKENS


class ResultLine(msgspec.Struct, frozen=True):
    """One line of a results file: whose it is, and its result, not yet decoded."""

    custom_id: str
    result: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of some of several results.

    Attributes:
        rows: Whose, as places among the results, ascending.
        messages: They stand in these.
        content: The answers, each with a line break behind it.
        sizes: Of each, in bytes; None where no answer has a line break in it.
    """

    rows: Sequence[int]
    messages: Sequence[Message]
    content: bytes
    sizes: Sequence[int] | None = None


def iter_result_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a results file, which has no line break at its end."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def read_result_line(line: bytes) -> ResultLine:
    """Split a line; raise ValueError where it is no result of any request."""
    try:
        return _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _convert_line(_load_leniently(line))
    except (ValueError, RecursionError):
        raise ValueError("a line without custom_id and result") from None


def read_result_lines(
    content: bytes, start: int = 0, end: int | None = None, *, breaks: int | None = None
) -> list[ReadLine | ResultLine | None]:
    """Return the lines of some whole lines, blank ones left out; None for a line that is no result of any request.

    A line whose result is unusual comes undecoded, and costs the others nothing.

    Args:
        content: Read from `start` to `end`.
        breaks: Line breaks there, None to have them counted.
    """
    try:
        lines = _decode_lines(memoryview(content)[start:end])
        breaks = content.count(b"\n", start, end) if breaks is None else breaks
        if len(lines) == breaks + (not content.endswith(b"\n", start, end)):
            return cast("list[ReadLine | ResultLine | None]", lines)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return [_read_line(line) for line in content[start:end].split(b"\n") if line.strip()]


def _read_line(line: bytes) -> ReadLine | ResultLine | None:
    try:
        return _decode_whole_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return read_result_line(line)
    except ValueError:
        return None


class Decoder:
    """Decodes the results of one task. Build it once a task: it compiles the schema.

    Args:
        document: The task's canonical document, as in `tasks/{task_key}.json`.
        price_usage: What an answer costs.
    """

    def __init__(self, document: Mapping[str, object], price_usage: PriceUsage) -> None:
        self._schema = cast("dict[str, object] | None", document.get("schema")) or {}
        self._validator = jsonschema_rs.validator_for(self._schema, offline=True) if self._schema else None
        kind = answer_type(self._schema) if self._schema else None
        self._is_typed = kind is not None
        self._texts = _Texts(Any if kind is None else kind)
        self._max_tokens = cast(int, document.get("max_tokens", 0))
        self.price_usage = price_usage

    def read_answers(self, results: Sequence[Result | msgspec.Raw]) -> "Answers":
        """Return the answers of those that succeeded without more ado; `decode_result` is for the others."""
        rows = [row for row, result in enumerate(results) if type(result) is Succeeded and result.message.stop_reason in COMPLETE_STOPS]
        messages = [cast(Succeeded, results[row]).message for row in rows]
        contents = [message.content for message in messages]
        texts = [blocks[0].text or "" if len(blocks) == 1 and blocks[0].type == "text" else join_text(blocks) for blocks in contents]
        if self._validator is None:
            good = [text.strip() != "" for text in texts]
            rows, messages, texts = _pick(rows, good), _pick(messages, good), _pick(texts, good)
            encoded = [text.encode() for text in texts]
            return Answers(rows, messages, b"\n".join([*encoded, b""]), list(map(len, encoded)))
        is_valid, values = self._validator.is_valid, self._texts.load_all(texts)
        good = [value is not _NO_JSON and (self._is_typed or is_valid(value)) for value in values]
        try:
            return Answers(_pick(rows, good), _pick(messages, good), _encode_lines(_pick(values, good)))
        except RecursionError:
            return Answers((), (), b"")

    def decode_result(self, request_key: bytes, result: bytes | msgspec.Raw | Result) -> Response:
        """Return what became of a request.

        Args:
            request_key: 16 bytes.
            result: The line's `result`; whatever is wrong with it becomes the outcome `errored`, never an exception.
        """
        try:
            found = _read_result(result) if isinstance(result, bytes | msgspec.Raw) else result
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, msgspec.ValidationError) else "not JSON"
            return self._without_answer(request_key, Outcome.ERRORED, f"unreadable_result: {reason}")
        match found:
            case Succeeded(message=message):
                return self._decode_message(request_key, message)
            case Errored(error=outer):
                inner = outer.error or outer
                return self._without_answer(request_key, Outcome.ERRORED, f"{inner.type}: {inner.message[:MAX_MESSAGE_CHARS]}")
            case Expired():
                return self._without_answer(request_key, Outcome.EXPIRED, "expired: the batch ended before this request was processed")
            case Canceled():
                return self._without_answer(request_key, Outcome.CANCELED, "canceled: the batch was canceled before this request's turn")
            case _Tagged(type=kind):
                return self._without_answer(request_key, Outcome.ERRORED, f"unknown_result_type: {kind[:64]}")

    def missing_result(self, request_key: bytes, why: str) -> Response:
        """Return the response of a request that the results do not speak of."""
        return self._without_answer(request_key, Outcome.ERRORED, f"result_missing: {why}")

    def _without_answer(self, request_key: bytes, outcome: Outcome, error: str) -> Response:
        return Response(request_key=request_key, outcome=outcome, error=error, max_tokens=self._max_tokens)

    def _decode_message(self, request_key: bytes, message: Message) -> Response:
        verdict = self._judge(message)
        usage = message.usage
        written_1h = usage.written_1h_tokens
        written_5m = usage.written_tokens - written_1h
        return Response(
            request_key=request_key,
            outcome=verdict.outcome,
            answer=verdict.answer,
            stop_reason=message.stop_reason,
            error=verdict.error,
            model=message.model,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.read_tokens,
            cache_write_5m_tokens=written_5m,
            cache_write_1h_tokens=written_1h,
            max_tokens=self._max_tokens,
            cost_nano_usd=self.price_usage(
                message.model,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.read_tokens,
                cache_write_5m_tokens=written_5m,
                cache_write_1h_tokens=written_1h,
            ),
        )

    def _judge(self, message: Message) -> "_Verdict":
        stop = message.stop_reason
        if stop == "refusal":
            category = message.stop_details.category if message.stop_details else None
            return _Verdict(Outcome.REFUSED, error=f"refusal: {category or 'no category given'}")
        if stop in TRUNCATED_STOPS:
            return _Verdict(Outcome.TRUNCATED, error=f"{stop}: the answer was cut after {message.usage.output_tokens:,} output tokens")
        if stop not in COMPLETE_STOPS:
            return _Verdict(Outcome.INVALID, error=f"stop_reason: {stop} is no complete answer")
        text = join_text(message.content)
        if self._validator is None:
            if not text.strip():
                return _Verdict(Outcome.INVALID, error="empty_answer: no text came")
            return _Verdict(Outcome.SUCCEEDED, answer=text)
        return self._judge_structured(text, self._validator)

    def _judge_structured(self, text: str, validator: jsonschema_rs.Validator) -> "_Verdict":
        if self._is_typed and (typed := self._texts.load(text)) is not _NO_JSON:
            # As `read_answers` spells it, whichever of them reads a line.
            return _Verdict(Outcome.SUCCEEDED, answer=msgspec.json.encode(typed).decode())
        try:
            value = _load(text.encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return _Verdict(Outcome.INVALID, error=f"not_json: {len(text):,} characters that are no JSON document")
        if not validator.is_valid(value):
            value = _spell_enums(value, self._schema, self._schema)
            broken = next(iter(validator.iter_errors(value)), None)
            if broken is not None:
                place = "/".join(("", *(str(step) for step in broken.instance_path)))
                rule = "/".join(("", *(str(step) for step in broken.schema_path)))
                return _Verdict(Outcome.INVALID, error=f"schema_violation: {place or '/'} breaks the rule {rule}")
        return _Verdict(Outcome.SUCCEEDED, answer=msgspec.json.encode(value).decode())


class _Texts:
    """Loads JSON documents of a type."""

    def __init__(self, kind: Any) -> None:
        self._decode: Callable[[str], object] = msgspec.json.Decoder(kind).decode
        self._decode_ones: Callable[[bytes], list[tuple[object, ...]]] = msgspec.json.Decoder(tuple[kind]).decode_lines

    def load_all(self, texts: list[str]) -> list[object]:
        """Return the values of some documents, _NO_JSON for what is none."""
        try:
            # Behind a closed bracket an opening one can only begin a document: no text reaches into its neighbour's, and as many
            # documents as texts are one each.
            ones = self._decode_ones(("[" + "]\n[".join(texts) + "]").encode())
            if len(ones) == len(texts):
                return list(chain.from_iterable(ones))
        except (msgspec.DecodeError, RecursionError):
            pass
        return list(map(self.load, texts))

    def load(self, text: str) -> object:
        """Return the value of a document, _NO_JSON where it is none, or another type's."""
        try:
            return self._decode(text)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return _NO_JSON


class _LooseLine(msgspec.Struct, frozen=True):
    custom_id: str
    result: object


class _Tagged(msgspec.Struct, frozen=True):
    type: str


@dataclass(frozen=True, slots=True)
class _Verdict:
    outcome: Outcome
    answer: str | None = None
    error: str | None = None


_decode_lines: Callable[[memoryview], list[ReadLine]] = msgspec.json.Decoder(ReadLine).decode_lines
_decode_whole_line: Callable[[bytes], ReadLine] = msgspec.json.Decoder(ReadLine).decode
_encode_lines: Callable[[Sequence[object]], bytes] = msgspec.json.Encoder().encode_lines
_NO_JSON = object()
_decode_line: Callable[[bytes], ResultLine] = msgspec.json.Decoder(ResultLine).decode


def _convert_line(found: object) -> ResultLine:
    line = msgspec.convert(found, _LooseLine)
    return ResultLine(line.custom_id, msgspec.Raw(msgspec.json.encode(line.result)))


def _read_result(content: bytes | msgspec.Raw) -> "Result | _Tagged":
    tagged = _read(content, _Tagged)
    match tagged.type:
        case "succeeded":
            return _read(content, Succeeded)
        case "errored":
            return _read(content, Errored)
        case "expired":
            return Expired()
        case "canceled":
            return Canceled()
        case _:
            return tagged


def _read(content: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.convert(_load_leniently(bytes(content)), kind)


def _pick(items: list[T], good: list[bool]) -> list[T]:
    return items if all(good) else list(compress(items, good))


def _load(content: bytes) -> object:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _load_leniently(content)


def _load_leniently(content: bytes) -> object:
    # A model can write half of a surrogate pair, which strict decoders refuse together with the whole line.
    return _replace_surrogates(json.loads(content.decode("utf-8", "replace"), parse_constant=_refuse_constant))


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _replace_surrogates(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_replace_surrogates(item) for item in value]
        case dict():
            return {cast(str, _replace_surrogates(key)): _replace_surrogates(item) for key, item in value.items()}
        case _:
            return value


def _spell_enums(value: object, schema: object, root: dict[str, object], depth: int = 0) -> object:
    if not isinstance(schema, dict) or depth > 64:
        return value
    reference = schema.get("$ref")
    if isinstance(reference, str):
        value = _spell_enums(value, _resolve(reference, root), root, depth + 1)
    for combined in ("allOf", "anyOf", "oneOf"):
        for option in schema.get(combined, ()):
            value = _spell_enums(value, option, root, depth + 1)
    match value:
        case str():
            spellings = schema.get("enum", [schema["const"]] if "const" in schema else [])
            if value not in spellings:
                alike = [word for word in spellings if isinstance(word, str) and word.casefold() == value.strip().casefold()]
                return alike[0] if len(alike) == 1 else value
        case list():
            return [_spell_enums(item, schema.get("items"), root, depth + 1) for item in value]
        case dict():
            properties = schema.get("properties", {})
            return {name: _spell_enums(item, properties.get(name), root, depth + 1) for name, item in value.items()}
    return value


def _resolve(reference: str, root: dict[str, object]) -> object:
    found: object = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
