"""Strings of a given format or simple regular expression. Pure; what it cannot do, it says by None."""

import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Roll = Callable[[str, int], int]

_CLASSES = {"d": string.digits, "w": string.ascii_letters + string.digits + "_", "s": " "}
_PRINTABLE = string.ascii_letters + string.digits + " -_.,"
_LITERAL_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


def format_string(name: str, roll: Roll) -> str:
    """A valid string of one of the formats that structured outputs know."""
    number = roll("format", 10_000)
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number % 7000, seconds=number)
    values = {
        "date-time": moment.isoformat(),
        "date": moment.date().isoformat(),
        "time": moment.timetz().isoformat(),
        "duration": f"P{number % 30 + 1}D",
        "email": f"simulated{number}@example.com",
        "hostname": f"simulated-{number}.example.com",
        "uri": f"https://example.com/simulated/{number}",
        "ipv4": f"192.0.2.{number % 255}",
        "ipv6": f"2001:db8::{number % 9999:x}",
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
    }
    return values.get(name, "[simulated]")


def match_pattern(pattern: str, roll: Roll) -> str | None:
    """A string that the pattern matches, None where the pattern is beyond simple."""
    parser = _Parser(pattern, roll)
    try:
        text = parser.alternatives()
    except (_TooHardError, IndexError, RecursionError):
        return None
    return text if parser.at == len(pattern) else None


class _TooHardError(Exception):
    pass


class _Parser:
    """Reads a pattern and writes one match of it in the same pass."""

    def __init__(self, pattern: str, roll: Roll) -> None:
        self.pattern = pattern
        self.roll = roll
        self.at = 0

    def alternatives(self) -> str:
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence())
        return options[self.roll(f"or{self.at}", len(options))]

    def sequence(self) -> str:
        out = []
        while (char := self.peek()) not in ("", "|", ")"):
            if char in "^$":
                self.at += 1
                continue
            start = self.at
            piece = self.atom()
            after = self.at
            least, most = self.quantifier()
            for turn in range(self.roll(f"times{start}", most - least + 1) + least):
                if turn == 0:
                    out.append(piece)
                    continue
                end = self.at
                self.at = start
                out.append(self.atom(turn))
                if self.at != after:
                    raise _TooHardError
                self.at = end
        return "".join(out)

    def atom(self, turn: int = 0) -> str:
        char = self.take()
        salt = f"{self.at}-{turn}"
        if char == "(":
            if self.peek() == "?":
                if self.pattern[self.at : self.at + 2] != "?:":
                    raise _TooHardError
                self.at += 2
            inner = self.alternatives()
            if self.take() != ")":
                raise _TooHardError
            return inner
        if char == "[":
            return self.pick(self.char_class(), salt)
        if char == ".":
            return self.pick(string.ascii_lowercase, salt)
        if char == "\\":
            return self.pick(self.escape(), salt)
        if char in "*+?{":
            raise _TooHardError
        return char

    def escape(self) -> str:
        char = self.take()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            return "".join(other for other in _PRINTABLE if other not in _CLASSES[char.lower()])
        if char.isalnum() and char not in _LITERAL_ESCAPES:
            raise _TooHardError
        return _LITERAL_ESCAPES.get(char, char)

    def char_class(self) -> str:
        negated = self.peek() == "^"
        self.at += negated
        members = ""
        first = True
        while first or self.peek() != "]":
            first = False
            char = self.take()
            if char == "\\":
                members += self.escape()
            elif self.peek() == "-" and self.pattern[self.at + 1] != "]":
                self.at += 1
                end = self.take()
                if end == "\\":
                    raise _TooHardError
                members += "".join(map(chr, range(ord(char), min(ord(end), ord(char) + 255) + 1)))
            else:
                members += char
        self.at += 1
        return "".join(char for char in _PRINTABLE if char not in members) if negated else members

    def quantifier(self) -> tuple[int, int]:
        char = self.peek()
        if char in ("*", "+", "?"):
            self.at += 1
            bounds = {"*": (0, 3), "+": (1, 4), "?": (0, 1)}[char]
        elif char == "{":
            end = self.pattern.find("}", self.at)
            if end < 0:
                raise _TooHardError
            low, comma, high = self.pattern[self.at + 1 : end].partition(",")
            if not low.isdigit() or not (high.isdigit() or high == ""):
                raise _TooHardError
            self.at = end + 1
            bounds = (int(low), int(high) if high else int(low) + (3 if comma else 0))
        else:
            return 1, 1
        if self.peek() == "?":
            self.at += 1
        if bounds[1] > 1000 or bounds[0] > bounds[1]:
            raise _TooHardError
        return bounds

    def pick(self, members: str, salt: str) -> str:
        if not members:
            raise _TooHardError
        return members[self.roll(salt, len(members))]

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        char = self.pattern[self.at]
        self.at += 1
        return char
