"""Every error that this project raises.

ClaudeBatchError
├── TerminalError               the same again ends the same way
│   ├── UsageError              arguments that contradict each other
│   ├── TaskError               a task that cannot be asked as defined
│   ├── SourceError             a source that cannot be read as described
│   ├── OutputError             an output that must not be written
│   ├── RootError               a root that is not the one it should be, or cannot be written
│   ├── CostError               the worst case exceeds the cap, or cannot be computed
│   ├── CredentialsError        no key, or one that the API does not accept
│   ├── RefusedError            the API rejected a request for good (a 4xx that creates nothing)
│   ├── SpendLimitError         the account may not spend more; nothing was created
│   └── RunError                a batch run ended without its answers
└── TransientError              worth trying again
    ├── VendorUnavailableError  429, 5xx, a connection that failed before anything could be accepted
    └── TemporalUnavailableError  no Temporal server, or no worker
"""

from collections.abc import Callable


class ClaudeBatchError(Exception):
    """A message for people: what failed, observed against limit, consequence, next step.

    Args:
        message: The whole text.
        context: Facts for programs (ids, numbers); they survive pickling.
    """

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context

    def __reduce__(self) -> tuple[Callable[..., "ClaudeBatchError"], tuple[object, ...], dict[str, object]]:
        # The attributes come last, as state: subclasses have more of them than their context.
        return _rebuild_error, (type(self), str(self), self.context), vars(self)


def _rebuild_error(kind: type[ClaudeBatchError], message: str, context: dict[str, object]) -> ClaudeBatchError:
    return kind(message, **context)


class TerminalError(ClaudeBatchError):
    """The same again ends the same way."""


class UsageError(TerminalError):
    """Arguments that contradict each other, or that name nothing."""


class TaskError(TerminalError):
    """A task that cannot be asked as defined."""


class SourceError(TerminalError):
    """A source that cannot be read as described."""


class OutputError(TerminalError):
    """An output that must not be written."""


class RootError(TerminalError):
    """A root that is not the one it should be, or that cannot be written."""


class CostError(TerminalError):
    """The worst case exceeds the cap, or cannot be computed."""


class CredentialsError(TerminalError):
    """No key, or one that the API does not accept."""


class RefusedError(TerminalError):
    """The API rejected a request for good; nothing was created."""


class SpendLimitError(TerminalError):
    """The account may not spend more; nothing was created."""


class RunError(TerminalError):
    """A batch run ended without its answers."""


class TransientError(ClaudeBatchError):
    """Worth trying again.

    Args:
        message: The whole text.
        retry_after_s: Seconds that the vendor asked to wait, None where it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **context: object) -> None:
        super().__init__(message, **context)
        self.retry_after_s = retry_after_s


class VendorUnavailableError(TransientError):
    """The API did not answer, or said that it cannot now."""


class TemporalUnavailableError(TransientError):
    """No Temporal server at the address, or no worker on the task queue."""
