"""Named points at which a test can stop this process: before and after every put, list and POST.

`CLAUDE_BATCH_FAULT_POINTS="put:log.after=kill,post.before=stop@2"` kills the process right after its first put under `log/` and
suspends it before its second POST. Without the variable a point costs one look at an empty tuple.
"""

import os
import signal
from dataclasses import dataclass

VARIABLE = "CLAUDE_BATCH_FAULT_POINTS"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(slots=True, kw_only=True)
class _Trap:
    name: str
    action: str
    passes: int


def _parse_traps(text: str) -> tuple[_Trap, ...]:
    traps = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = entry.partition("=")
        action, _, nth = action.partition("@")
        nth = nth or "1"
        if action not in SIGNALS or not nth.isdecimal() or int(nth) < 1:
            raise ValueError(f"{VARIABLE}: {entry!r} does not end in =kill or =stop. Nothing was started. Write NAME=kill[@N].")
        traps.append(_Trap(name=name, action=action, passes=int(nth)))
    return tuple(traps)


_traps = _parse_traps(os.environ.get(VARIABLE, ""))


def reach(name: str) -> None:
    """Pass the point of this name, or end here where a test says so."""
    for trap in _traps:
        if trap.name == name:
            trap.passes -= 1
            if trap.passes == 0:
                # To this thread: one that is sent to the process may be taken by another, and this one goes on until that runs.
                signal.raise_signal(SIGNALS[trap.action])
