"""The fenced blocks of a page, and what they say about how they are run.

A block's info string is its language and, for a file, `title="NAME"`. A comment right before the fence, `<!-- not run: REASON -->`, keeps
a block from being run; the reason stands in the report.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RUN_LANGUAGES = ("sh", "console", "python", "yaml", "sql", "json")
SHOWN_LANGUAGES = ("text",)
"""For what is only looked at: a message, a layout of folders."""
_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>.*)$")
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')
_NOT_RUN = re.compile(r"^<!-- not run: (?P<reason>.+) -->$")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of the fence, from 1.
        title: The file that it is, None where it is not one.
        not_run: Why it is not run, None where it is.
    """

    page: str
    line: int
    language: str
    text: str
    title: str | None
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a `console` block and what it prints; `...` in a line stands for any text, alone in a line for any lines."""

    line: str
    printed: tuple[str, ...]

    @property
    def typed(self) -> bool:
        """Whether somebody types while it runs, so that it needs a terminal."""
        return any(text.startswith("^C") for text in self.printed)

    def describes(self, output: str) -> bool:
        """Tell whether this is what the command printed."""
        return re.fullmatch(_pattern(self.printed), f"{_clean(output)}\n".lstrip("\n")) is not None


def pages() -> list[Path]:
    """Return the pages whose blocks are run."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "examples").glob("*/README.md"))]


def read_blocks(page: Path) -> list[Block]:
    """Return a page's blocks, in order."""
    blocks: list[Block] = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        found = _FENCE.match(lines[at])
        if found is None:
            at += 1
            continue
        end = next(number for number in range(at + 1, len(lines)) if lines[number].rstrip() == found["fence"])
        language, _, rest = found["info"].strip().partition(" ")
        title = _TITLE.search(rest)
        above = next((line for line in reversed(lines[:at]) if line.strip()), "")
        reason = _NOT_RUN.match(above.strip())
        blocks.append(
            Block(
                page=page.relative_to(REPOSITORY).as_posix() if page.is_relative_to(REPOSITORY) else page.name,
                line=at + 1,
                language=language,
                text="\n".join(lines[at + 1 : end]) + "\n",
                title=title["title"] if title else None,
                not_run=reason["reason"] if reason else None,
            )
        )
        at = end + 1
    return blocks


def read_commands(block: Block) -> list[Command]:
    """Return the commands of a `console` block: lines that begin with `$ `, continued after a backslash."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if commands and commands[-1][0].endswith("\\"):
            commands[-1] = (f"{commands[-1][0]}\n{line.removeprefix('> ')}", [])
        elif line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            assert commands, f"{block}: output before the first command"
            commands[-1][1].append(line)
    return [Command(line=line, printed=tuple(printed)) for line, printed in commands]


def _clean(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _pattern(printed: tuple[str, ...]) -> str:
    parts: list[str] = []
    for line in _clean("\n".join(printed)).splitlines():
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*".join(re.escape(piece) for piece in line.split("...")) + r"\n")
    return "".join(parts)
