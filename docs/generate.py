"""Writes `reference.md`, `api.md` and `errors.md` from the code: `make docs-reference`. A test fails where they are stale.

What the code cannot say (what a variable or a key is for) stands in the tables of meanings.py; a name that the code has and a table has not, or
the other way round, is an error.
"""

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import click
import msgspec
from pydantic.fields import FieldInfo

import claude_batch_dagster
from claude_batch_dagster import ClaudeBatchIOManager, ClaudeBatchResource, Moderate, Summarize
from claude_batch_dagster.assets.decorator import RUN_CONFIG
from claude_batch_dagster.cli.app import SECTIONS, commands
from claude_batch_dagster.cli.options import GroupedCommand
from claude_batch_dagster.core import submission
from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.core.schema import Field
from claude_batch_dagster.core.status import FAILED_STATUSES, STATUS_DESCRIPTIONS, STATUSES
from claude_batch_dagster.simulator.__main__ import _parser as simulator_parser
from claude_batch_dagster.simulator.faults import FAULTS
from claude_batch_dagster.storage.output import STATUS_FIELDS, Marker, arrow_field

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
sys.path.insert(0, str(DOCS))
from meanings import (  # noqa: E402 - it lies beside this file, in no package
    EXIT_CODES,
    METADATA,
    NOT_FOR_USERS,
    OTHER_KEYS,
    RECORDS,
    STATUS_MEANINGS,
    VARIABLES,
)
from messages import CLASSES, Message, find_messages, other_messages  # noqa: E402 - it lies beside this file, in no package

GENERATED = "<!-- Written by docs/generate.py from the code: `make docs-reference`. Do not edit. -->"
NOT_OURS = {
    "claude_batch/",
    "dagster/data_version",
    "dagster/asset_partition_range_end",
    "dagster/asset_partition_range_start",
    "dagster/backfill",
    "dagster/parent_run_id",
}
"""Keys of the code that nobody looks up: a prefix, and Dagster's own tags."""
METADATA_FILES = (
    "assets/asked.py",
    "assets/decorator.py",
    "reporting/metadata.py",
    "reporting/report.py",
    "resources/deferring.py",
    "resources/resource.py",
    "resources/waiting.py",
    "sensors/deferred.py",
)
SOURCES = [path for package in ("claude_batch_dagster", "temporal_worker") for path in sorted((REPOSITORY / package).rglob("*.py"))]


class StaleError(Exception):
    """A table of this file and the code do not name the same things."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or with `--check` say which of them are stale."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    stale = [name for name, text in generate().items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    if not check:
        for name, text in generate().items():
            (DOCS / name).write_text(text)
    if stale:
        print(f"{'Stale' if check else 'Written'}: {', '.join(f'docs/{name}' for name in stale)}")
    return int(check and bool(stale))


def generate() -> dict[str, str]:
    """Return the pages by file name."""
    pages = {"reference.md": reference_page(), "api.md": api_page(), "errors.md": errors_page()}
    return {name: "\n".join([GENERATED, "", *lines]).rstrip() + "\n" for name, lines in pages.items()}


def reference_page() -> Iterator[str]:
    """Yield the lines of the reference."""
    yield "# Reference"
    yield ""
    yield "[Commands](#commands) · [exit codes](#exit-codes) · [`--json`](#the-json-line) · [environment](#environment) · "
    yield "[output](#output) · [statuses](#statuses) · [Dagster](#dagster) · [root](#the-root) · [simulator](#the-simulator)"
    yield ""
    yield "## Commands"
    for heading, members in SECTIONS:
        yield ""
        yield f"**{heading}**: " + ", ".join(f"[`{member.name}`](#claude-batch-{member.name})" for member in members)
    for _, members in SECTIONS:
        for member in members:
            yield from command_section(member)
    yield from table("## Exit codes", ("code", "meaning"), EXIT_CODES)
    yield from json_section()
    yield from environment_section()
    yield from output_section()
    yield from dagster_section()
    yield from root_section()
    yield from table(
        "## The simulator",
        ("fault", "what it does"),
        [(f"`{name}`", fault.says) for name, fault in FAULTS.items()],
        "`claude-batch simulator --fault NAME`, `NAME=N` for the next N times. After a name of a call, `@` and the call: `529@get=3`.",
    )


def command_section(command: click.Command) -> Iterator[str]:
    """Yield the lines of one command."""
    name = f"claude-batch {command.name}"
    yield from ("", f"### {name}", "")
    yield from paragraphs(command.help or command.short_help or "")
    if command.name == "simulator":
        rows = [
            (
                ", ".join(f"`{text}`" for text in action.option_strings),
                str(action.default if action.default not in (None, []) else ""),
                _format_help(action),
            )
            for action in simulator_parser()._actions
            if action.dest != "help"
        ]
        yield from table("", ("option", "default", "meaning"), rows)
        return
    if command.name == "worker":
        return
    with click.Context(command, info_name=name, parent=click.Context(commands, info_name="claude-batch")) as context:
        shown = [parameter for parameter in command.get_params(context) if "--help" not in parameter.opts]
        arguments = [parameter for parameter in shown if isinstance(parameter, click.Argument)]
        options = [parameter for parameter in shown if isinstance(parameter, click.Option) and not parameter.hidden]
        yield from ("", f"`{' '.join([name, *(one.make_metavar(context) for one in arguments), *(['[OPTIONS]'] if options else [])])}`")
        rows = []
        for one in options:
            record = one.get_help_record(context)
            if record is None:
                continue
            names, text = record
            extra = re.findall(r"\[default: ([^\]]*)\]", text)
            meaning = re.sub(r"\s*\[default: [^\]]*\]", "", text)
            default = extra[0].partition(";")[0] if extra else "required" if one.required else ""
            rows.append((f"`{names}`", default, re.sub(r"\s*\[required\]", "", meaning)))
        if arguments:
            described = [(f"`{one.make_metavar(context)}`", one.help or "") for one in arguments]
            yield from table("", ("argument", "meaning"), described)
        yield from table("", ("option", "default", "meaning"), rows)
        if isinstance(command, GroupedCommand) and command._examples:
            yield from ("", "Examples:", "")
            yield from (f"- {comment}: `{line}`" for comment, line in command._examples)


def json_section() -> Iterator[str]:
    """Yield what the last line of `--json` holds."""
    from claude_batch_dagster.cli.report import Known, failure_object

    rows = []
    meanings = {
        "run": "`r42`; null where nothing was asked.",
        "run_id": "The run's id in the records.",
        "workflow_id": "The run's id in Temporal.",
        "root": "Where the records are.",
        "output": "The output's folder.",
        "rows": "Source rows by status.",
        "requests": "Distinct requests.",
        "batches": "Of this invocation.",
        "tokens": "That this invocation paid for.",
        "cost_usd": "That this invocation paid; null where the model has no known price. `plan`: `expected` and `worst`.",
        "exit_code": "As the process'.",
        "error": "null, or `type` and `message`, see [errors](errors.md).",
    }
    found = failure_object(Known(), "", "", 1)
    _same("the JSON object", meanings, found)
    for key, value in found.items():
        rows.append((f"`{key}`", ", ".join(f"`{name}`" for name in value) if isinstance(value, dict) else "", meanings[key]))
    yield from table(
        "## The JSON line",
        ("key", "has", "meaning"),
        rows,
        "With `--json` the last line of standard output is one JSON object, also on failure; progress goes to standard error. "
        "`plan --json` has, instead of what became of the rows, what would be asked, and besides: `reasons`, `changed_parts`, `assumption`, `example`.",
    )


def environment_section() -> Iterator[str]:
    """Yield the environment variables, all that the code reads."""
    pattern = re.compile(r"[\"']((?:CLAUDE_BATCH|ANTHROPIC|TEMPORAL|DAGSTER|XDG)_[A-Z_]*[A-Z])[\"']")
    found = {name for path in SOURCES for name in pattern.findall(path.read_text())}
    _same("the environment variables", VARIABLES, found - NOT_FOR_USERS)
    rows = [(f"`{name}`", reader, meaning, default) for name, (reader, meaning, default) in VARIABLES.items()]
    yield from table(
        "## Environment",
        ("variable", "read by", "meaning", "default"),
        rows,
        "Temporal's other variables (`TEMPORAL_API_KEY`, `TEMPORAL_TLS_...`, `TEMPORAL_PROFILE`) work as Temporal documents them.",
    )


def output_section() -> Iterator[str]:
    """Yield the columns and statuses of an output."""
    yield from ("", "## Output", "")
    yield from paragraphs(
        "`--output out/` becomes `out/part-0.parquet`, or `out/day=X/part-0.parquet` with partitions by `day`; in Dagster "
        "`{output}/{asset key}/[day=X/]part-0.parquet`. Each file is replaced whole. Beside them `_claude_batch.json` says whose folder it is "
        f"({_fields(Marker)}); a folder with Parquet files and without it is refused.\n\n"
        "Rows are the source's, in its order. Columns: those carried from the source (`--columns`), the task's, and these."
    )
    _same("the output's columns", STATUS_DESCRIPTIONS, [field.name for field in STATUS_FIELDS])
    yield from table(
        "", ("column", "type", "meaning"), [(f"`{one.name}`", str(one.type), STATUS_DESCRIPTIONS[one.name]) for one in STATUS_FIELDS]
    )
    yield from ("", "The presets' columns:")
    presets = (
        ("summarize", Summarize(name="summaries", column="text", model="claude-haiku-5-5").fields),
        ("moderate", Moderate(name="labels", column="text", model="claude-haiku-5-5", labels=("ok", "spam")).fields),
    )
    rows = [(task, f"`{field.name}`", _arrow_type(field), field.description or "") for task, fields in presets for field in fields]
    yield from table("", ("task", "column", "type", "meaning"), rows)
    yield from paragraphs(
        "\nIn each file's key-value metadata, under `claude_batch`: task, task_key, run, endpoint, source, limit, and rows by status.",
        before=True,
    )
    _same("the statuses", STATUS_MEANINGS, STATUSES)
    _same("the outcomes", [name for name in STATUS_MEANINGS if name != "skipped"], list(Outcome))
    yield from table(
        "## Statuses",
        ("status", "meaning", "asked again by the next run", "counts as failed"),
        [(f"`{name}`", meaning, again, "yes" if name in FAILED_STATUSES else "no") for name, (meaning, again) in STATUS_MEANINGS.items()],
        "Failed rows end a command with exit code 3, fail the check `rows_answered`, and count for `fail_above`.",
    )


def dagster_section() -> Iterator[str]:
    """Yield what Dagster is given and shows."""
    yield from ("", "## Dagster", "", "Arguments of the decorator: [api](api.md#claude_batch_assets).")
    yield from table("### Resource `claude_batch`", ("field", "type", "default", "meaning"), _config_rows(ClaudeBatchResource.model_fields))
    yield from table(
        "### IO manager `claude_batch_io_manager`", ("field", "type", "default", "meaning"), _config_rows(ClaudeBatchIOManager.model_fields)
    )
    rows = [(f"`{name}`", field.description or "") for name, field in RUN_CONFIG.items()]
    yield from table(
        "### Run config", ("key", "meaning"), rows, "Below `ops: {body's name}: config:`. It wins over the resource, for one run."
    )
    keys = {key for path in METADATA_FILES for key in _keys_in(REPOSITORY / "claude_batch_dagster" / path)}
    named = {key for key in keys if "{" not in key and key not in NOT_OURS}
    known = {key: text for key, text in METADATA.items() if key in named or "/" not in key}
    _same("the metadata keys", {*known, *OTHER_KEYS}, {*named, "chart", "preview"})
    rows = [(f"`{name}`", text) for name, text in known.items()]
    rows += [
        ("`claude_batch/{status}`", "Rows of this status, for each status."),
        *((f"`{name}`", text) for name, text in OTHER_KEYS.items()),
    ]
    yield from table("### Metadata", ("key", "meaning"), rows)


def root_section() -> Iterator[str]:
    """Yield the records of a root."""
    yield from table(
        "## The root",
        ("record", "written", "says"),
        [(f"`{path}`", when if kind else "whole", _says(kind) or when) for path, kind, when in RECORDS],
        "JSON but for the Parquet files; each is written whole, and none is changed. What rests on them: [reliability](reliability.md).",
    )
    yield from table(
        "### Submission records",
        ("kind", "says", "fields"),
        [
            (f"`{kind.__struct_config__.tag}`", first_sentence(kind), _fields(kind))
            for kind in (submission.Send, submission.Accepted, submission.NotAccepted, submission.Closed)
        ],
    )


def api_page() -> Iterator[str]:
    """Yield the lines of the Python API."""
    yield from ("# Python API", "", "Everything here is imported from `claude_batch_dagster`.", "")
    yield " · ".join(f"[`{name}`](#{name.lower()})" for name in claude_batch_dagster.__all__)
    for name in claude_batch_dagster.__all__:
        found = getattr(claude_batch_dagster, name)
        yield from ("", f"## {name}", "")
        if isinstance(found, type) and issubclass(
            found, claude_batch_dagster.ClaudeBatchResource | claude_batch_dagster.ClaudeBatchIOManager
        ):
            yield f"Fields: [reference](reference.md#{'resource-claude_batch' if name == 'ClaudeBatchResource' else 'io-manager-claude_batch_io_manager'})."
            yield ""
            yield from docstring(found)
            own = ("run",) if name == "ClaudeBatchResource" else ("load_input",)
        elif name == "ClaudeBatchComponent":
            yield from docstring(found)
            yield from ("", "Attributes, in YAML as in Python:", "")
            yield from (f"- `{field}`: {info.description}" for field, info in found.model().model_fields.items())
            own = ("get_asset_spec", "execute")
        else:
            yield from ("```text", *_signature(name, found), "```", "")
            yield from docstring(found)
            own = ("fields", "schema", "task_key") if name == "ClaudeTask" else ("key_columns", "uri") if name == "ParquetDataset" else ()
            own = ("get_asset_spec",) if name == "ClaudeBatchTranslator" else own
        for member in own:
            value = inspect.getattr_static(found, member)
            taken = f"({', '.join(list(inspect.signature(value).parameters)[1:])})" if inspect.isfunction(value) else ""
            yield from ("", f"### {name}.{member}{taken}", "")
            yield from docstring(value.func if hasattr(value, "func") else value)


def errors_page() -> Iterator[str]:
    """Yield the lines of the list of errors."""
    yield from ("# Errors", "")
    yield from paragraphs(
        "Every error that this product raises. `{name}` stands for what is filled in. On the command line an error is one line on standard error, "
        "and with `--json` the object's `error`; in Dagster it is the failed step's description, its class in `claude_batch/error`.\n\n"
        "A *terminal* error ends the same way again until something is changed. A *transient* one may pass: the worker tries again by itself, and a "
        "Dagster retry policy applies to it.\n\nExit code: 2 for `UsageError`, else 1."
    )
    messages = find_messages(SOURCES, REPOSITORY)
    for kind in CLASSES:
        rows = sorted({(one.when, one.text, one.remedy) for one in messages if one.kind == kind.__name__})
        if rows:
            yield from table(
                f"## {kind.__name__}",
                ("when", "message", "what to do"),
                [(when, text, remedy) for when, text, remedy in rows],
                f"{'Transient' if _is_transient(kind) else 'Terminal'}. {first_sentence(kind)}",
            )
    for heading, intro, rows in other_messages(SOURCES, REPOSITORY):
        yield from table(f"## {heading}", ("message", "what to do"), _message_rows(rows), intro)


def docstring(found: object) -> Iterator[str]:
    """Yield a Google docstring as Markdown: its sections become lists."""
    section = None
    for line in inspect.cleandoc(inspect.getdoc(found) or "").splitlines():
        if line.rstrip(":") in ("Args", "Attributes", "Raises", "Returns", "Yields") and line.endswith(":"):
            section = line.rstrip(":")
            yield from ({"Args": "Arguments"}.get(section, section) + ":", "")
        elif section is None or not line.startswith("    "):
            section = None if line else section
            yield line
        elif re.match(r"    [\w.*]+: ", line) and section not in ("Returns", "Yields"):
            name, _, text = line.strip().partition(": ")
            yield f"- `{name}`: {text}"
        else:
            yield f"  {line.strip()}" if section not in ("Returns", "Yields") else line.strip()


def paragraphs(text: str, *, before: bool = False) -> Iterator[str]:
    """Yield a text's paragraphs, each in one line."""
    if before:
        yield ""
    for number, paragraph in enumerate(inspect.cleandoc(text).split("\n\n")):
        if number:
            yield ""
        yield " ".join(paragraph.split())


def table(heading: str, head: Sequence[str], rows: Iterable[Sequence[str]], intro: str = "") -> Iterator[str]:
    """Yield a heading, a sentence and a table."""
    if heading:
        yield from ("", heading)
    if intro:
        yield from ("", intro)
    yield from ("", f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |")
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def first_sentence(found: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(found) or "").partition("\n")[0]


def _says(kind: type[msgspec.Struct] | None) -> str:
    return "" if kind is None else f"{first_sentence(kind).partition(': ')[2]} ({_fields(kind)})"


def _fields(kind: type[msgspec.Struct]) -> str:
    return ", ".join(f"`{name}`" for name in kind.__struct_fields__)


def _config_rows(fields: Mapping[str, FieldInfo]) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", _type_name(field.annotation), "" if field.default is None else f"{field.default}", field.description or "")
        for name, field in fields.items()
    ]


def _signature(name: str, found: Any) -> list[str]:
    hints = get_type_hints(found.__init__ if inspect.isclass(found) else found) if name == "ParquetDataset" else {}
    lines = []
    marked = False
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            lines.append(f"    **{parameter.name}: {_type_name(parameter.annotation)},")
            continue
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not marked:
            marked = True
            lines.append("    *,")
        kind = hints.get(parameter.name, parameter.annotation)
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_default(parameter.default)}"
        lines.append(f"    {parameter.name}: {_type_name(kind)}{default},")
    return [f"{name}(", *lines, ")"]


def _default(value: object) -> str:
    return "{}" if "factory" in repr(value) else repr(value)


def _type_name(kind: object) -> str:
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    return (
        re.sub(r"\b(?:typing|collections\.abc|dagster(?:\.\w+)*|claude_batch_dagster(?:\.\w+)*)\.", "", text).strip("'\"").replace('"', "")
    )


def _arrow_type(field: Field) -> str:
    kind = str(arrow_field(field).type)
    return re.sub(r"list<\w+: (\w+)>", r"list<\1>", kind)


def _format_help(action: argparse.Action) -> str:
    return (action.help or "").replace(" (%(default)s)", "")


def _keys_in(path: Path) -> set[str]:
    return set(re.findall(r"[\"']((?:claude_batch|dagster)/[^\"' ]*)[\"']", path.read_text()))


def _is_transient(kind: type) -> bool:
    return any(base.__name__ == "TransientError" for base in kind.__mro__)


def _message_rows(rows: Iterable[Message]) -> list[tuple[str, str]]:
    return [(one.text, one.remedy) for one in rows]


def _same(what: str, described: Iterable[str], found: Iterable[str]) -> None:
    missing, gone = sorted(set(found) - set(described)), sorted(set(described) - set(found))
    if missing or gone:
        raise StaleError(
            f"docs/meanings.py: {what}: not described: {', '.join(missing) or 'none'}; no more in the code: {', '.join(gone) or 'none'}."
        )


if __name__ == "__main__":
    sys.exit(main())
