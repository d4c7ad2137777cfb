"""Finds the messages of the product's errors in its code, with what is filled in as `{name}`."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from claude_batch_dagster.core import errors

CLASSES: tuple[type[errors.ClaudeBatchError], ...] = tuple(
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.ClaudeBatchError) and kind not in (errors.ClaudeBatchError, errors.TerminalError)
)
RERAISED = ("_BadPartitionError",)
"""Ours, with the message of the error before."""
WHEN = (
    ("claude_batch_dagster/core/template", "a prompt is read, or filled in"),
    ("claude_batch_dagster/core/request", "a task meets its source"),
    ("claude_batch_dagster/core", "a task is defined"),
    ("claude_batch_dagster/assets", "the code location is loaded"),
    ("claude_batch_dagster/checks", "the code location is loaded"),
    ("claude_batch_dagster/component", "the code location is loaded"),
    ("claude_batch_dagster/sensors", "the code location is loaded"),
    ("claude_batch_dagster/resources/io_manager", "a downstream asset loads"),
    ("claude_batch_dagster/resources/loading", "a downstream asset loads"),
    ("claude_batch_dagster/resources", "an asset is materialized"),
    ("claude_batch_dagster/cli", "a command begins"),
    ("claude_batch_dagster/embedded", "the embedded stack starts"),
    ("claude_batch_dagster/verbs/publish", "the output is written"),
    ("claude_batch_dagster/verbs/execute", "a run is waited for"),
    ("claude_batch_dagster/verbs/show", "a row is shown"),
    ("claude_batch_dagster/verbs/doctor", "the doctor looks"),
    ("claude_batch_dagster/verbs/connection", "Temporal is reached"),
    ("claude_batch_dagster/verbs/run", "a run is waited for"),
    ("claude_batch_dagster/verbs", "a job is planned"),
    ("claude_batch_dagster/storage/source", "the source is read"),
    ("claude_batch_dagster/storage/output", "a job is planned"),
    ("claude_batch_dagster/storage", "the root is read or written"),
    ("temporal_worker/worker", "the worker starts"),
    ("temporal_worker", "the worker works on a run"),
)
_CONSEQUENCE = re.compile(
    r"^(Nothing|No output|It was not|It is (tried|read|not)|They are|They would|The worker did not|What was|The shard stays|The other|Its requests stay|"
    r"Batch \{batch_id\} is not collected|The batch is looked)"
)

_AGAIN = re.compile(r"\b(tried|read|looked at) again\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An error's message.

    Attributes:
        kind: The class' name.
        text: What failed, and the consequence.
        remedy: What to do.
        where: `path:line`.
    """

    kind: str
    text: str
    remedy: str
    where: str

    @property
    def when(self) -> str:
        """At which moment it comes."""
        return next((text for prefix, text in WHEN if self.where.startswith(prefix)), "")


def find_messages(sources: Sequence[Path], repository: Path) -> list[Message]:
    """Return the messages of all errors that are made in the sources, the simulator's apart."""
    names = {kind.__name__ for kind in CLASSES}
    found = []
    for path in sources:
        place = path.relative_to(repository).as_posix()
        if "/simulator/" in place:
            continue
        tree = ast.parse(path.read_text())
        for function in _functions(tree):
            for node in _own_nodes(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                    for text in _texts(node.args[0], function, tree):
                        if re.search(r"[a-z]{3}", re.sub(r"\{\w*\}", "", text)):
                            found.append(_split(node.func.id, text, f"{place}:{node.lineno}"))
    return found


def other_messages(sources: Sequence[Path], repository: Path) -> Iterator[tuple[str, str, list[Message]]]:
    """Yield (heading, introduction, messages) of what is no exception: why a run was not begun, what a parked shard asks, a row's error."""
    yield (
        "Why a run was not begun",
        "The worker compares a new run's tasks with what their models can, and tries a new task on a sample text. Where that fails, the run ends "
        "with `RunError`: `Batch run r42 failed:` and one of these.",
        [
            *_returned(repository / "temporal_worker" / "capabilities.py", repository),
            *_returned(repository / "temporal_worker" / "preflight.py", repository),
        ],
    )
    yield (
        "What a parked shard asks",
        "`claude-batch status` shows the question of a run that waits for a person.",
        _returned(repository / "temporal_worker" / "submit.py", repository, only=("explain_unknown",)),
    )


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield a function's nodes, those of functions in it apart."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from _own_nodes(child)


def _texts(node: ast.expr, function: ast.AST, tree: ast.Module) -> list[str]:
    """Return what an expression may read, each alternative."""
    if isinstance(node, ast.Name):
        values = [
            one.value
            for one in ast.walk(function)
            if isinstance(one, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in one.targets)
        ]
        texts = [text for value in values for text in _texts(value, function, tree)]
        return texts if len(values) == 1 and texts else [f"{{{node.id}}}"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        called = next((one for one in _functions(tree) if one.name == node.func.id), None)
        if called is not None:
            returned = [one.value for one in _own_nodes(called) if isinstance(one, ast.Return) and one.value is not None]
            return [text for value in returned for text in _texts(value, called, tree)]
    return [_text(node, function, tree)]


def _text(node: ast.expr, function: ast.AST, tree: ast.Module) -> str:
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.JoinedStr(values=values):
            return "".join(_text(value, function, tree) for value in values)
        case ast.FormattedValue(value=ast.Name() as name):
            texts = _texts(name, function, tree)
            return (
                texts[0]
                if len(texts) == 1 and " " in re.sub(r"\{[^}]*\}", "", texts[0])
                else _constant(name.id, tree) or f"{{{_name(name)}}}"
            )
        case ast.FormattedValue(value=value):
            return f"{{{_name(value)}}}"
        case _:
            return f"{{{_name(node)}}}"


def _constant(name: str, tree: ast.Module) -> str | None:
    """Return a constant of the module, None where it is none that is written out."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
        ):
            return f"{node.value.value}"
    return None


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower() if name.isupper() else name.strip("_")
        case ast.Call(
            func=ast.Name(id="len" | "sum" | "str" | "repr" | "min" | "max" | "sorted" | "next" | "type" | "set" | "getattr"),
            args=[first, *_],
        ):
            return _name(first)
        case ast.Call(func=ast.Attribute(attr="join"), args=[first]):
            return _name(first)
        case ast.Call(func=ast.Attribute(value=value, attr=attribute)):
            own = isinstance(value, ast.Name) and value.id == "self"
            return attribute.strip("_") if attribute == "name" or own else _name(value)
        case ast.Call(func=function):
            return _name(function)
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _name(value)
        case ast.BoolOp(values=[first, *_]):
            return _name(first)
        case ast.BinOp(left=left):
            return _name(left)
        case ast.IfExp(body=body):
            return _name(body)
        case ast.GeneratorExp(elt=element) | ast.ListComp(elt=element):
            return _name(element)
        case ast.Constant(value=str() as value):
            return value
        case _:
            return "..."


def _split(kind: str, text: str, where: str) -> Message:
    sentences = re.split(r"(?<=[.?!)}]) (?=[A-Z`'])|(?<=[.?!)]) (?=\{)", " ".join(text.split()))
    at = max((number for number, sentence in enumerate(sentences) if _CONSEQUENCE.match(sentence)), default=None)
    if at is None:
        at = len(sentences) - 2 if len(sentences) > 1 else 0
    if at == len(sentences) - 1 and at > 0 and _AGAIN.search(sentences[at]):
        # Then this is what happens next, and nobody has to do anything.
        at -= 1
    if at == 0 and text.endswith((": {error}", ": {reason}")):
        return Message(kind=kind, text=text, remedy="As the reason says.", where=where)
    return Message(kind=kind, text=" ".join(sentences[: at + 1]), remedy=" ".join(sentences[at + 1 :]), where=where)


def _returned(path: Path, repository: Path, only: Iterable[str] = ()) -> list[Message]:
    tree = ast.parse(path.read_text())
    found = []
    for function in _functions(tree):
        if only and function.name not in only:
            continue
        for node in _own_nodes(function):
            if isinstance(node, ast.Return) and isinstance(node.value, (ast.JoinedStr, ast.Constant)):
                for text in _texts(node.value, function, tree):
                    if re.search(r"[a-z]{3} ", re.sub(r"\{\w*\}", "", text)):
                        found.append(_split("", text, f"{path.relative_to(repository).as_posix()}:{node.lineno}"))
    return found
