"""How numbers and commands read: the same on every screen."""

import os
import shlex

from claude_batch_dagster.core.money import usd as usd
from claude_batch_dagster.verbs.endpoint import SIMULATED_FOLDER, default_root, is_simulated

SIMULATED = "SIMULATED: no request reaches Claude, nothing is paid"
USUAL_DURATION = "usually under 1 h, at most 24 h"
NANO = 1_000_000_000


def nano_usd(amount: int | None) -> str:
    """Return integer nano-USD as money."""
    return usd(to_usd(amount))


def to_usd(amount: int | None) -> float | None:
    """Return integer nano-USD as USD."""
    return None if amount is None else amount / NANO


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> duration(4.2), duration(125), duration(3_700), duration(90_000)
    ('4 s', '2 min 5 s', '1 h 1 min', '25 h 0 min')
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    >>> count(1, "row"), count(1_200, "row"), count(2, "batch", "batches")
    ('1 row', '1,200 rows', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def batches(number: int) -> str:
    """Return a number of batches."""
    return count(number, "batch", "batches")


def command(verb: str, root: str, *arguments: str) -> str:
    """Return the line to type for a verb on a root, with no option that its reader's environment makes superfluous."""
    base = root.removesuffix(f"/{SIMULATED_FOLDER}")
    words = ["claude-batch", verb, *arguments]
    if base != default_root(os.environ):
        words += ["--root", base]
    if base != root and not is_simulated(os.environ):
        words.append("--simulate")
    return shlex.join(words)
