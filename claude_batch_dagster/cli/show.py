"""`show`: one row of an output: the request, the answer, every attempt, what it cost."""

import json
import os
from datetime import datetime
from typing import TYPE_CHECKING

import click

from claude_batch_dagster.cli.options import GroupedCommand, option, root_option
from claude_batch_dagster.cli.report import Known
from claude_batch_dagster.cli.request_view import cut_text, request_lines
from claude_batch_dagster.cli.run import json_option
from claude_batch_dagster.cli.wording import SIMULATED, command, count, nano_usd, to_usd
from claude_batch_dagster.storage.store import absolute_uri
from claude_batch_dagster.verbs.endpoint import SIMULATOR, default_root

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.show import Attempt, RowStory

SHOWN_CHARACTERS = 4_000
LATER = {
    "pending": "it has no answer yet; the same run command asks, or waits, for it",
    "skipped": "its text is null or blank, so nothing was asked and nothing paid",
    "expired": "the same run command asks it again",
    "canceled": "the same run command asks it again",
    "truncated": "it is asked again with --retry-failed, or --ask-again and its key; a larger max_tokens is another task",
    "invalid": "it is asked again with --retry-failed, or --ask-again and its key",
    "refused": "Claude declined; it is asked again only with --ask-again and its key",
    "errored": "the same run command asks it again where that may help; --retry-failed always does",
}


@click.command(
    cls=GroupedCommand,
    short_help="Show one row: request, answer, attempts, cost.",
    examples=(
        ("one row", "claude-batch show out/ 17"),
        ("one row of a day", "claude-batch show out/ 17 --partition 2026-11-02"),
        ("a key of two columns", "claude-batch show out/ 2026-11-02,17"),
    ),
)
@click.argument("output", help="The folder that `run --output` was given.")
@click.argument("key", help="The row's key; the columns of one key are joined by commas.")
@option("What", "--partition", metavar="VALUE", help="The row's partition, where several have the key.")
@option("What", "--key", "key_columns", multiple=True, metavar="NAME", help="The key's columns, where the output carries more than them.")
@root_option
@option("How", "--simulate", is_flag=True, hidden=True, expose_value=False, help="Nothing: an output knows whose answers it holds.")
@json_option
@click.pass_obj
def show(
    known: Known, /, output: str, key: str, partition: str | None, key_columns: tuple[str, ...], root: str | None, as_json: bool
) -> int:
    """Show the row of OUTPUT whose key is KEY: the request as Claude got it, the answer, every attempt with its tokens, cost and batch.

    Rows that failed, were skipped or are pending are shown too. Reads only.
    """
    from claude_batch_dagster.verbs.show import show_row

    base = absolute_uri(root or default_root(os.environ))
    known.root, known.output = base, absolute_uri(output)
    story = show_row(known.output, key, base, partition=partition, key_columns=key_columns)
    if as_json:
        click.echo(json.dumps(story_object(story), default=_jsonable, ensure_ascii=False))
    else:
        click.echo("\n".join(story_lines(story)))
    return 0


def story_lines(story: "RowStory") -> list[str]:
    """Return what people read."""
    status, row = str(story.row["status"]), story.row
    key = ", ".join(f"{column}={value}" for column, value in story.key.items())
    lines = [f"Row       {key}" + (f"   {SIMULATED}" if story.endpoint == SIMULATOR else "")]
    lines.append(f"Output    {story.file}" + (f" (only the first {story.limit:,} rows of its source)" if story.limit is not None else ""))
    lines.append(f"Status    {status}" + (f": {row['error']}" if row["error"] else ""))
    lines += [f"          {LATER[status]}"] if status in LATER else []
    if story.waits_for:
        lines.append(f"          asked now by batch run {story.waits_for}: {command('status', story.root, story.waits_for)}")
    lines += [
        f"Task      {story.task}, task key {row['task_key']}",
        f"Request   {row['request_key'] or 'none'}, {story.request_origin}",
    ]
    if story.request is not None:
        lines += [f"          {line}".rstrip() for line in request_lines(story.request, SHOWN_CHARACTERS)]
    lines += _answer_lines(story)
    lines.append(f"Attempts  {count(len(story.attempts), 'answer')} in {story.root}, {nano_usd(story.cost_nano_usd)} in all")
    for attempt in story.attempts:
        lines += [f"          {line}" for line in _attempt_lines(attempt)]
    published = f"batch run {story.run}" if story.run else "a command that asked nothing new"
    return [*lines, f"Published by {published}, from {story.source}"]


def story_object(story: "RowStory") -> dict[str, object]:
    """Return the JSON object of `show`."""
    return {
        "root": story.root,
        "output": story.output,
        "file": story.file,
        "partition": story.partition,
        "key": story.key,
        "status": story.row["status"],
        "row": story.row,
        "task": story.task,
        "endpoint": story.endpoint,
        "source": story.source,
        "run": story.run,
        "limit": story.limit,
        "waits_for": story.waits_for,
        "request": story.request,
        "request_origin": story.request_origin,
        "attempts": [_attempt_object(attempt) for attempt in story.attempts],
        "cost_usd": to_usd(story.cost_nano_usd),
        "exit_code": 0,
        "error": None,
    }


def _answer_lines(story: "RowStory") -> list[str]:
    answer = next((attempt.answer for attempt in story.attempts if attempt.shown), None)
    if answer is None:
        return []
    fields = _decoded(answer)
    if not isinstance(fields, dict):
        return ["Answer", *(f"          {line}".rstrip() for line in cut_text(answer, SHOWN_CHARACTERS).splitlines())]
    width = max((len(name) for name in fields), default=0) + 2
    return [
        "Answer",
        *(
            f"          {name:<{width}}{cut_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), SHOWN_CHARACTERS)}"
            for name, value in fields.items()
        ),
    ]


def _attempt_lines(attempt: "Attempt") -> list[str]:
    when = attempt.answered_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if attempt.answered_at else "unknown time"
    whose = f"batch run {attempt.run}, shard {attempt.shard}" if attempt.run else "a run that this root has no record of"
    lines = [
        f"{when}  {attempt.outcome}{': ' + attempt.error if attempt.error else ''}" + ("   <- in the output" if attempt.shown else ""),
        f"  {whose}, batch {attempt.batch_id}, round {attempt.round}",
    ]
    cached = attempt.cache_read_tokens or attempt.cache_write_tokens
    tokens = f"{attempt.input_tokens or 0:,} input, {attempt.output_tokens or 0:,} output"
    tokens += (
        f", {attempt.cache_read_tokens or 0:,} read from the cache, {attempt.cache_write_tokens or 0:,} written to it" if cached else ""
    )
    stop = f", stop reason {attempt.stop_reason}" if attempt.stop_reason else ""
    lines.append(f"  {tokens} tokens, {nano_usd(attempt.cost_nano_usd)}, {attempt.model or 'no model answered'}{stop}")
    return lines


def _attempt_object(attempt: "Attempt") -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(attempt, name) for name in attempt.__slots__}
    fields["cost_usd"] = to_usd(attempt.cost_nano_usd)
    del fields["cost_nano_usd"]
    return fields


def _decoded(answer: str) -> object:
    try:
        found: object = json.loads(answer)
    except json.JSONDecodeError:
        return answer
    return found


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
