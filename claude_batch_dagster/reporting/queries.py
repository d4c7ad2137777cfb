"""Queries for the rows to look at, in DuckDB's SQL, and the command that asks them.

A line for each clause: Dagster's UI does not wrap a block of code, and a long line pushes the page apart.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

SHOWN_ROWS = 20
_PLAIN = re.compile(r"[a-z]+(_[a-z0-9]+)+|status|error|label")
"""Columns that need no quotes: hardly a word of SQL has an underscore in it."""
_WORDS_OF_SQL = frozenset(("grouping_id", "try_cast", "pivot_longer", "pivot_wider"))
_SPECIAL = re.compile(r"""(["$`\\])""")


def select_rows(columns: Sequence[str], file: str, where: str) -> str:
    """Return a query for rows of a file."""
    return f"SELECT {', '.join(map(quote_name, columns))}\nFROM {quote_text(file)}\nWHERE {where} LIMIT {SHOWN_ROWS}"


def quote_name(name: str) -> str:
    """Return a column as it stands in a query; it may be a word of SQL."""
    if _PLAIN.fullmatch(name) and name not in _WORDS_OF_SQL:
        return name
    return '"' + name.replace('"', '""') + '"'


def quote_text(text: str) -> str:
    """Return a text as it stands in a query."""
    return "'" + text.replace("'", "''") + "'"


def show_command(sql: str) -> str:
    """Return the command that asks a query, as a block of Markdown, with the paths as they are seen from this folder."""
    here = f"{Path.cwd()}{os.sep}"
    command = quote_shell(sql.replace(f"'{here}", "'"))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"{fence}sh\nclaude-batch sql {command}\n{fence}"


def quote_shell(text: str) -> str:
    """Return a text as one word of a shell, in double quotes where these do."""
    if "!" in text:
        return shlex.quote(text)
    return '"' + _SPECIAL.sub(r"\\\1", text) + '"'
