"""`answer`: what a person decides about a run that asks."""

import click

from claude_batch_dagster.cli.operate import find_run, place_of
from claude_batch_dagster.cli.options import GroupedCommand, root_option, simulate_option
from claude_batch_dagster.cli.reach import Reach

CHOICES = ("adopt", "resend", "abandon", "resume")


@click.command(
    cls=GroupedCommand,
    short_help="Answer the question of a run that waits for a person.",
    examples=(
        ("the batch of shard 2 was found in the Console", "claude-batch answer r42 2 adopt msgbatch_01ABC"),
        ("it is not there: send the shard again", "claude-batch answer r42 2 resend"),
        ("leave the shard's rows without an answer", "claude-batch answer r42 2 abandon"),
        ("the key, the limit or the disk is mended", "claude-batch answer r42 resume"),
    ),
)
@click.argument("run")
@click.argument("words", nargs=-1, required=True, metavar="[SHARD] CHOICE [BATCH]")
@root_option
@simulate_option
def answer(run: str, words: tuple[str, ...], root: str | None, simulate: bool) -> None:
    """Answer the question of RUN (r42, or its run_id), as `claude-batch status` shows it.

    CHOICE is adopt BATCH, resend, abandon or resume. SHARD counts from 0, and may be left out where only one waits. A batch is adopted only
    if its results prove that it is the shard's.
    """
    from claude_batch_dagster.storage.store import Store
    from claude_batch_dagster.verbs.answer import Choice, answer_run

    shard, choice, batch_id = _read_words(words)
    found = find_run(root, run, simulate=simulate)
    reach = Reach(place_of(found), lambda line: click.echo(line, err=True))
    with reach as connection:
        said = answer_run(connection, Store(found.root), found.entry, Choice(choice), shard=shard, batch_id=batch_id)
        if reach.stack is not None:
            # What it set going goes on without this command.
            reach.stack.stay()
    click.echo(said)


def _read_words(words: tuple[str, ...]) -> tuple[int | None, str, str | None]:
    shard = int(words[0]) if words[0].isdecimal() else None
    choice, *rest = (words[1:] if shard is not None else words) or ("",)
    if choice not in CHOICES:
        raise click.UsageError(f"{choice!r} is no answer. Answers are: adopt BATCH, resend, abandon, resume.")
    if len(rest) != (choice == "adopt"):
        raise click.UsageError("adopt takes the id of one batch: claude-batch answer RUN [SHARD] adopt BATCH. The other answers take none.")
    if choice == "resume" and shard is not None:
        raise click.UsageError("resume is for the whole run: claude-batch answer RUN resume")
    return shard, choice, rest[0] if rest else None
