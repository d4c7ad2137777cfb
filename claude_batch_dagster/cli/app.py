"""The entry point: the list of commands, exit codes, and the last line of `--json`.

Exit codes: 0 done, 1 not written, 2 usage (the options or the task are wrong), 3 written but rows failed, 130 interrupted.
"""

import contextlib
import gc
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

import click

from claude_batch_dagster.cli.answer import answer
from claude_batch_dagster.cli.doctor import doctor
from claude_batch_dagster.cli.local import demo, dev, simulator, worker
from claude_batch_dagster.cli.operate import cancel, status, stop
from claude_batch_dagster.cli.recover import recover
from claude_batch_dagster.cli.report import Known, failure_object, read_paid
from claude_batch_dagster.cli.run import plan, run
from claude_batch_dagster.cli.show import show
from claude_batch_dagster.cli.sql import sql
from claude_batch_dagster.core.errors import ClaudeBatchError, TaskError, UsageError

NOT_WRITTEN, USAGE, INTERRUPTED = 1, 2, 130
SECTIONS = (
    ("Ask Claude", (run, plan)),
    ("Look after runs", (status, show, sql, answer, cancel, recover, stop, doctor)),
    ("Try it", (demo, dev)),
    ("Processes", (worker, simulator)),
)


class Commands(click.Group):
    """The group; its help lists the commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        for heading, commands in SECTIONS:
            with formatter.section(heading):
                formatter.write_dl([(command.name or "", command.get_short_help_str(90)) for command in commands])


def _version() -> str:
    try:
        return version("claude-batch-dagster")
    except PackageNotFoundError:
        return "unknown"


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Environment: ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL, TEMPORAL_ADDRESS (unset: a local server is started), CLAUDE_BATCH_ROOT, "
    "CLAUDE_BATCH_SIMULATE=1. First steps without a key: claude-batch demo. Something does not work: claude-batch doctor.",
)
@click.version_option(_version(), prog_name="claude-batch")
def commands() -> None:
    """Parquet in, Claude's answers out, through the Message Batches API at half price.

    Every row is accounted for, no answer is paid for twice: what was answered once is never asked again.
    """


for _, _members in SECTIONS:
    for _member in _members:
        commands.add_command(_member)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit code. Errors are on standard error, with `--json` also on standard output."""
    known = Known()
    try:
        result = commands.main(list(arguments), prog_name="claude-batch", standalone_mode=False, obj=known)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        failure, code = error.format_message(), USAGE if isinstance(error, click.UsageError) else NOT_WRITTEN
        kind = "UsageError" if code == USAGE else type(error).__name__
    except (click.Abort, KeyboardInterrupt):
        failure, code, kind = "Interrupted.", INTERRUPTED, "KeyboardInterrupt"
        if not known.interruption_told:
            click.echo("Interrupted.", err=True)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): nothing is left to say, and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_WRITTEN
    except ClaudeBatchError as error:
        failure, code, kind = str(error), USAGE if isinstance(error, (UsageError, TaskError)) else NOT_WRITTEN, type(error).__name__
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {failure}", err=True)
    except Exception as error:  # noqa: BLE001 - the last resort: programs get their JSON line, people the whole traceback
        traceback.print_exc()
        failure, code, kind = str(error), NOT_WRITTEN, type(error).__name__
    if "--json" in arguments:
        click.echo(json.dumps(failure_object(known, kind, failure, code, read_paid(known))))
    return code


def main() -> NoReturn:
    """Run the process's command line and end the process.

    `os._exit` because Temporal's client may hang or abort while the interpreter shuts down (github.com/temporalio/sdk-python/issues/300).
    """
    # A command is short, and most of what it makes are modules: looking for garbage as often as Python does is a quarter of its time.
    gc.set_threshold(50_000, 20, 100)
    code = run_command_line(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
