"""What a run tells people while it works: one sentence, and the details of the Temporal UI."""

from collections.abc import Sequence

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.contract import QUESTION_MEMO, Progress

OPENING = "opening the run"
OPENING_AND_SENDING = "opening the run and sending its first batch"
MOST_MEMO_CHARS = 1_500
"""Temporal warns of memos over 2 KiB."""


def count_batches(count: int) -> str:
    """Return a number of batches in words."""
    return f"{count:,} batch" if count == 1 else f"{count:,} batches"


def tell_note(*, live: int, canceling: bool, failed: bool, asks: bool, drains: bool, settles: bool) -> str:
    """Return what a run does now, in one sentence.

    Args:
        live: Batches submitted and not collected.
        asks: Whether it waits for a person.
        settles: Whether it finds out what became of a submit.
    """
    if canceling and not asks:
        return "canceling: batches are stopped, what they answered is kept"
    if failed:
        return "nothing more is sent, what was sent is collected"
    if asks:
        return "waiting for a person"
    if drains:
        return "settling what is open, buying nothing"
    if settles:
        return "finding out whether a batch was created: its reply got lost"
    return f"{count_batches(live)} in progress, usually under 1 h, at most 24 h"


def show(progress: Progress, failure: str | None) -> None:
    """Show where a run stands in the Temporal UI; keep its open question in the memo, which a list of workflows has without asking each."""
    workflow.set_current_details(tell_details(progress, failure))
    question = tell_question(progress.questions)
    if question != workflow.memo_value(QUESTION_MEMO, ""):
        workflow.upsert_memo({QUESTION_MEMO: question})


def tell_question(questions: Sequence[str]) -> str:
    """Return the first of what a person has to decide, and how many more there are; empty for nothing."""
    first, more = "".join(questions[:1]), len(questions) - 1
    first = first if len(first) <= MOST_MEMO_CHARS else f"{first[:MOST_MEMO_CHARS]}..."
    return first if more < 1 else f"{first} (and {more:,} more: claude-batch status)"


def tell_details(progress: Progress, failure: str | None) -> str:
    """Return where a run stands, as Markdown."""
    ended = f"**{progress.collected}/{max(progress.submitted, progress.collected)}** batches ended"
    lines = [f"{ended} · round {progress.round} · {progress.note}"]
    # Markdown takes a list only after an empty line.
    lines += ["", *(f"- {name}: {count:,}" for name, count in sorted(progress.counts.by_outcome.items()))]
    lines += [f"\n**Failed**: {failure}"] if failure else []
    lines += [f"\n**Question**: {question}" for question in progress.questions]
    return "\n".join(lines)
