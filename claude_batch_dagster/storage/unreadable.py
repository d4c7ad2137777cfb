"""Values that Parquet holds and Python cannot: times outside its calendar, time zones that it does not know, text that is not UTF-8."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

UNREADABLE = (OverflowError, ValueError, LookupError)
"""What pyarrow raises where Python has no such value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The first such value among some rows.

    Attributes:
        row: From 0.
        what: It is, in words.
        reason: As Python says it.
    """

    row: int
    column: str
    what: str
    reason: str

    def explain(self, file: str, row: int, key: str | None = None) -> str:
        """Return the message.

        Args:
            file: Its name, for people.
            row: In the file, from 0.
            key: The row's, where it is known.
        """
        place = f"row {row + 1:,}" + ("" if key is None else f" (key {key})")
        return f"{file} has {self.what} in {self.column}, {place}: {self.reason}. Nothing was sent from it. Write it again."


def find_unreadable(columns: Mapping[str, pa.Array]) -> Unreadable | None:
    """Return the first value of these columns that Python cannot hold, None where there is none."""
    found = [one for name, column in columns.items() if (one := _find(name, column)) is not None]
    return min(found, key=lambda one: one.row, default=None)


def _find(name: str, column: pa.Array) -> Unreadable | None:
    for row, value in enumerate(column):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            return Unreadable(row=row, column=name, what="text that is not UTF-8", reason=error.reason)
        except LookupError:
            return Unreadable(row=row, column=name, what=f"a {column.type}", reason="no such time zone is known")
        except UNREADABLE as error:
            return Unreadable(row=row, column=name, what=f"a {column.type} out of range", reason=str(error))
    return None
