"""Which root a command works on, and how it reaches Temporal."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from claude_batch_dagster.verbs.endpoint import SIMULATOR, default_root, has_credentials, is_simulated, resolve_endpoint, root_for

if TYPE_CHECKING:
    from claude_batch_dagster.embedded import Stack
    from claude_batch_dagster.verbs.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a command works.

    Attributes:
        base: The root as a person names it.
        root: Where the records are: below `base` for simulated work.
        endpoint: Whose answers.
        simulate: Whether the embedded worker is given a simulator.
    """

    base: str
    root: str
    endpoint: str
    simulate: bool

    @property
    def simulated(self) -> bool:
        """Whether no request reaches Claude."""
        return self.endpoint == SIMULATOR


class Reach:
    """A way to Temporal: the user's own server, else the root's embedded stack, which starts when it is first needed.

    Use as a context manager; the stack stays at least as long as the block.

    Args:
        place: Where the command works.
        say: Takes a line for people.
        detach: The stack stays after a block that raised nothing, until no run of the root is open.
    """

    def __init__(self, place: Place, say: Callable[[str], None], *, detach: bool = False) -> None:
        self.stack: Stack | None = None
        self._place = place
        self._say = say
        self._detach = detach
        self._exits = ExitStack()

    def __enter__(self) -> "Connection":
        """Return the connection."""
        from claude_batch_dagster.verbs.connection import external_connection, lazy_connection

        return external_connection(os.environ) or lazy_connection(self._start, revive=self._revive)

    def __exit__(self, *exception: Any) -> None:
        """Leave the stack; the last client waits for its end."""
        self._exits.__exit__(*exception)

    def _start(self) -> str:
        from claude_batch_dagster.embedded import attach, find_stack

        if self.stack is None:
            runs_already = find_stack(self._place.root) is not None
            self._say(f"{'Using the' if runs_already else 'Starting a'} local Temporal server and worker.")
            self.stack = self._exits.enter_context(attach(self._place.root, simulate=self._place.simulate, detach=self._detach))
            self._say(f"Temporal UI {self.stack.temporal_ui_url}")
        return self.stack.connection.address

    def _revive(self) -> None:
        if self.stack is not None and self.stack.connection.revive is not None:
            self.stack.connection.revive()


def find_place(root: str | None, *, simulate: bool, needs_key: bool) -> Place:
    """Return where a command works.

    Args:
        root: As typed, None for the default.
        simulate: Whether simulated work was asked for on the command line.
        needs_key: Whether the command sends something: then a missing key is refused, unless the worker is somebody else's.

    Raises:
        CredentialsError: Terminal. There is no key.
    """
    if needs_key and not simulate and not is_simulated(os.environ) and not has_credentials(os.environ):
        from claude_batch_dagster.verbs.connection import external_connection

        needs_key = external_connection(os.environ) is None
    endpoint = resolve_endpoint(simulate=simulate, environ=os.environ, needs_key=needs_key)
    base = root or default_root(os.environ)
    return Place(base=base, root=root_for(base, endpoint), endpoint=endpoint, simulate=simulate or is_simulated(os.environ))


def find_connection(root: str) -> "Connection | None":
    """Return the way to Temporal where there is one now; start nothing."""
    from claude_batch_dagster.embedded import find_stack
    from claude_batch_dagster.verbs.connection import external_connection

    stack = None if (external := external_connection(os.environ)) else find_stack(root)
    return external or (stack.connection if stack else None)
