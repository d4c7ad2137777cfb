"""The nearest of the names that there are, for a name that is none of them."""

import difflib
from collections.abc import Collection


def suggest(name: str, known: Collection[str]) -> str:
    """Return the next step after a name that is unknown: the one that was meant, where one is near.

    >>> suggest("txt", ["id", "text"]), suggest("body", ["id", "text"])
    ("Did you mean 'text'?", 'Name one of these.')
    """
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"Did you mean {folded[near[0]]!r}?" if near else "Name one of these."
