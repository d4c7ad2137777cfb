"""Runs a command in a terminal and types into it, as a `console` block says: `python terminal.py COMMAND < printed`.

`^C` alone in a line is Ctrl-C, pressed once the line before it is seen. In a line with `? [choices] answer` the answer is typed.
"""

import os
import pty
import re
import select
import sys
import time

TIMEOUT_S = 60.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
QUESTION = re.compile(r"^(?P<question>.*\? \[.*\]) (?P<answer>\S+)$")


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: str) -> None:
        pid, self.descriptor = pty.fork()
        if pid == 0:
            os.execvp("bash", ["bash", "-c", f"exec {command}"])
        self.pid = pid
        self.text = ""
        self.shown = 0

    def read(self, until_s: float) -> bool:
        """Take what comes; tell whether the command still has the terminal."""
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, until_s - time.monotonic()))
        if not ready:
            return True
        try:
            content = os.read(self.descriptor, 65_536)
        except OSError:
            return False
        self.text += ESCAPES.sub("", content.decode(errors="replace"))
        return bool(content)

    def await_line(self, pattern: str) -> None:
        """Read until a line like this came after what was seen before."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while (found := re.compile(pattern).search(self.text, self.shown)) is None:
            if not self.read(deadline_s) or time.monotonic() > deadline_s:
                sys.exit(f"{self.text}\n{pattern!r} did not come")
        self.shown = found.end()

    def type(self, text: str) -> None:
        """Type."""
        os.write(self.descriptor, text.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.read(deadline_s):
            if time.monotonic() > deadline_s:
                sys.exit(f"{self.text}\nit did not end")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def main() -> int:
    """Run it."""
    lines = sys.stdin.read().splitlines()
    terminal = Terminal(sys.argv[1])
    for number, line in enumerate(lines):
        if line == "^C":
            seen = next(text for text in reversed(lines[:number]) if text.strip() not in ("", "..."))
            terminal.await_line(r"[^\n]*".join(re.escape(part) for part in seen.split("...")))
            terminal.type("\x03")
        elif question := QUESTION.match(line):
            terminal.await_line(re.escape(question["question"]))
            terminal.type(f"{question['answer']}\n")
    code = terminal.end()
    print(terminal.text.replace("^C", "\n^C\n"), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
