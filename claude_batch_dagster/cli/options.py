"""Commands whose help shows its options in groups, and the options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., object])


class GroupedOption(click.Option):
    """An option that belongs under a heading of the help."""

    def __init__(self, *arguments: Any, heading: str = "Other", **attributes: Any) -> None:
        self.heading = heading
        super().__init__(*arguments, **attributes)


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings, and its examples as they are typed.

    Args:
        examples: (comment, command line) pairs.
    """

    def __init__(self, *arguments: Any, examples: tuple[tuple[str, str], ...] = (), **attributes: Any) -> None:
        self._examples = examples
        super().__init__(*arguments, **attributes)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, before the options."""
        arguments = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Argument)]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(one.make_metavar(ctx), one.help or "") for one in arguments])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group in the order of their definition."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                groups.setdefault(getattr(parameter, "heading", "Other"), []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self._examples:
            with formatter.section("Examples"):
                for comment, line in self._examples:
                    formatter.write(f"{'':{formatter.current_indent}}# {comment}\n{'':{formatter.current_indent}}{line}\n")
        super().format_epilog(ctx, formatter)


def option(heading: str, *declarations: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds an option under a heading."""
    return click.option(*declarations, cls=GroupedOption, heading=heading, **attributes)


def add_options(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Return a decorator that adds several options, in this order."""

    def decorate(function: Decorated) -> Decorated:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


root_option = option(
    "Where",
    "--root",
    metavar="URI",
    help="Folder or URL (s3://, gs://, az://) of the records and answers.  [default: $CLAUDE_BATCH_ROOT, else .claude_batch]",
)
simulate_option = option(
    "How",
    "--simulate",
    is_flag=True,
    help="Ask a simulator instead of Claude: no key, no cost, answers marked [simulated]. CLAUDE_BATCH_SIMULATE=1 does the same.",
)
existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
