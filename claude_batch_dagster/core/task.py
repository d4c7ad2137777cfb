"""What Claude is asked to do to a row, and the document that says so canonically."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.models import is_retired
from claude_batch_dagster.core.prompt_function import PromptFunction, name_function
from claude_batch_dagster.core.schema import Field, FieldType, OutputModel, canonical_schema, schema_fields

OWN_PARAMETERS = {
    "model": "model",
    "messages": "prompt",
    "max_tokens": "max_tokens",
    "system": "system",
    "thinking": "thinking",
    "output_config": "output and effort",
}
REFUSED_PARAMETERS = {
    "stream": "results are never streamed by the Message Batches API",
    "temperature": "current models do not take it",
    "top_p": "current models do not take it",
    "top_k": "current models do not take it",
    "speed": "the Message Batches API does not take it",
    "store": "the Message Batches API does not take it",
    "previous_thread_event_id": "the Message Batches API does not take it",
    "cache_hint": "the Message Batches API does not take it",
    "context_hint": "the Message Batches API does not take it",
}
PRESET_SLOT = "document"
PLAIN_TEXT_FIELD = Field(name="answer", type=FieldType.STRING, description="Claude's answer, as text.")


@dataclass(frozen=True, kw_only=True)
class ClaudeTask:
    """A question to Claude about every row.

    Attributes:
        name: The asset key's last part, and the name in every `custom_id`. Renaming asks nothing again.
        model: A Claude model's id. There is no default: it decides what a run costs.
        prompt: The user message, with at least one slot `{column}`; `{{` is one literal brace, and so is every `}}`. Or a function of the
            row, for images, several turns or logic: it gets a dict and returns a text, content blocks, messages, or None to skip the row.
        system: The system prompt.
        output: A Pydantic model or a JSON Schema of an object: its properties become the columns. None for plain text in `answer`.
        max_tokens: Upper bound of the answer in tokens, thinking included; at least 1. An answer that needs more ends `truncated`.
        effort: low | medium | high | ..., as the model takes it (asked before a run sends anything); None leaves it to the model.
        thinking: The Messages parameter; None leaves it to the model.
        params: Further raw Messages parameters (`tools`, `metadata`, ...). All are part of the request's identity.
        kind: Set by presets.
        version: Required with a function, whose code is not compared: another number asks every row again. Of a preset's texts, set by it.
        prompt_columns: The columns that a function reads; None for all.
        column: Set by presets: the column that stands for the slot `{document}` of their prompt.

    Raises:
        TaskError: Terminal. The definition cannot be asked as it is.
    """

    name: str
    model: str
    prompt: str | PromptFunction
    max_tokens: int
    system: str | None = None
    output: "type[OutputModel] | Mapping[str, object] | None" = None
    effort: str | None = None
    thinking: Mapping[str, object] | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    kind: str = "task"
    version: int | None = None
    prompt_columns: Sequence[str] | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could never be asked."""
        if not self.name or not self.name.strip():
            raise TaskError("A task has no name. Nothing was sent. Give it one: it becomes the asset's key.")
        if not self.model:
            raise TaskError(f"Task {self.name!r} has no model. Nothing was sent. Name one, for instance claude-haiku-5-5.")
        if is_retired(self.model):
            raise TaskError(
                f"Task {self.name!r} asks {self.model}, which is retired. Nothing was sent. Name a current model, for instance claude-haiku-5-5."
            )
        if self.max_tokens < 1:
            raise TaskError(
                f"Task {self.name!r} has max_tokens={self.max_tokens}; the least is 1. Nothing was sent. Allow what an answer needs."
            )
        if callable(self.prompt) and self.version is None:
            raise TaskError(
                f"Task {self.name!r} has a function as its prompt and no version. Nothing was sent. Give it version=1, and another number "
                "whenever the function asks something else: its code is not compared."
            )
        if self.prompt_columns is not None and not callable(self.prompt):
            raise TaskError(
                f"Task {self.name!r} has prompt_columns, and a prompt that is a text. Nothing was sent. Leave them out: its slots say them."
            )
        if isinstance(self.prompt_columns, str):
            raise TaskError(
                f"Task {self.name!r} has prompt_columns={self.prompt_columns!r}. Nothing was sent. Write a list: [{self.prompt_columns!r}]."
            )
        if self.prompt_columns is not None and not self.prompt_columns:
            raise TaskError(
                f"Task {self.name!r} has no prompt_columns. Nothing was sent. Name those that its function reads, or leave them out."
            )
        for parameter in self.params:
            if parameter in OWN_PARAMETERS:
                raise TaskError(
                    f"Task {self.name!r} sets {parameter!r} in params. Nothing was sent. Use the task's argument {OWN_PARAMETERS[parameter]} instead."
                )
            if parameter in REFUSED_PARAMETERS:
                raise TaskError(
                    f"Task {self.name!r} sets {parameter!r} in params: {REFUSED_PARAMETERS[parameter]}. Nothing was sent. Leave it out."
                )
        for argument, value in (("params", self.params), ("thinking", self.thinking), ("output", self.schema)):
            strange = _find_no_json_number(value, argument)
            if strange is not None:
                raise TaskError(
                    f"Task {self.name!r}: {strange}, and JSON has no such number. Nothing was sent. Write a finite number, or leave it out."
                )
        _ = self.task_key

    @cached_property
    def schema(self) -> dict[str, object] | None:
        """The JSON Schema that goes to the API, None for plain text."""
        return None if self.output is None else canonical_schema(self.name, self.output)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The columns that this task adds, in the order of its definition."""
        return (PLAIN_TEXT_FIELD,) if self.output is None else schema_fields(self.name, self.output)

    def static_params(self) -> dict[str, object]:
        """Return the Messages parameters that are the same for every row; `messages` is not among them."""
        config: dict[str, object] = {}
        if self.effort is not None:
            config["effort"] = self.effort
        if self.schema is not None:
            config["format"] = {"type": "json_schema", "schema": self.schema}
        static: dict[str, object] = {**self.params, "model": self.model, "max_tokens": self.max_tokens}
        if config:
            static["output_config"] = config
        if self.system is not None:
            static["system"] = self.system
        if self.thinking is not None:
            static["thinking"] = dict(self.thinking)
        return static

    def document(self) -> dict[str, object]:
        """Return the canonical document: all that this task adds to a row, its name apart."""
        return {
            "format": 1,
            "kind": self.kind,
            "version": 1 if self.version is None else self.version,
            "column": self.column,
            "model": self.model,
            "prompt": self.prompt if isinstance(self.prompt, str) else self._describe_function(self.prompt),
            "system": self.system,
            "schema": self.schema,
            "max_tokens": self.max_tokens,
            "effort": self.effort,
            "thinking": None if self.thinking is None else dict(self.thinking),
            "params": dict(self.params),
            "decoding": 1,
        }

    def _describe_function(self, prompt: PromptFunction) -> dict[str, object]:
        return {"function": name_function(prompt), "columns": None if self.prompt_columns is None else list(self.prompt_columns)}

    @cached_property
    def task_key(self) -> str:
        """The first 128 bits of SHA-256 over the canonical document, in hex."""
        return hashlib.sha256(self.encode_document()).hexdigest()[:32]

    def encode_document(self) -> bytes:
        """Return the content of `tasks/{task_key}.json`."""
        try:
            return msgspec.json.encode(self.document(), order="sorted")
        except (TypeError, UnicodeEncodeError) as error:
            raise TaskError(
                f"Task {self.name!r} has an argument that is not JSON: {error}. Nothing was sent. Use text, numbers, booleans, lists and dicts."
            ) from error


def _find_no_json_number(value: object, path: str) -> str | None:
    """Return the first number without a JSON form and its place: encoded, it would silently become null."""
    match value:
        case float() if not math.isfinite(value):
            return f"{path} is {value}"
        case Mapping():
            items = [(f"{path}.{key}", item) for key, item in value.items()]
        case list() | tuple():
            items = [(f"{path}[{at}]", item) for at, item in enumerate(value)]
        case _:
            return None
    return next((found for place, item in items if (found := _find_no_json_number(item, place)) is not None), None)
