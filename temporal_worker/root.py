"""What every step checks before it writes: that the root is the run's own, and that this worker talks to the root's vendor."""

from dataclasses import dataclass

from claude_batch_dagster.core.errors import CredentialsError, RootError, TransientError
from claude_batch_dagster.core.records import LogEntry, RootRecord
from claude_batch_dagster.storage.plans import pin_workspace, read_entry, read_root
from claude_batch_dagster.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRoot:
    """A root and a run of it.

    Attributes:
        record: `root.json`.
        entry: The run's plan.
    """

    store: Store
    record: RootRecord
    entry: LogEntry


def open_root(store: Store, *, number: int, run_id: str) -> OpenRoot:
    """Return the root's records of a run.

    Raises:
        RootError: Terminal. The records are gone, or are those of another run: the root was replaced.
    """
    record = read_root(store)
    if record is None:
        raise RootError(
            f"{store.uri}/root.json is missing: the root lost its records. Nothing is sent. Restore the folder, or: claude-batch recover"
        )
    entry = read_entry(store, number)
    if entry.run_id != run_id:
        raise RootError(
            f"{store.uri}/log/{number}.json is of run {entry.run_id}, not of {run_id}: the root was replaced. Nothing is sent. Restore the folder, or: claude-batch recover"
        )
    return OpenRoot(store=store, record=record, entry=entry)


def check_endpoint(root: OpenRoot, endpoint: str) -> None:
    """Refuse to work for a root of another vendor; another worker of the queue may be the right one.

    Raises:
        TransientError: This worker talks to somebody else.
    """
    if root.record.endpoint != endpoint:
        raise TransientError(explain_endpoint(root, endpoint))


def explain_endpoint(root: OpenRoot, endpoint: str) -> str:
    """Say that this worker is not the root's."""
    return (
        f"The root {root.store.uri} holds answers of {root.record.endpoint!r}, this worker talks to {endpoint!r}. Nothing was sent. "
        "Set ANTHROPIC_BASE_URL of the worker, or use another root."
    )


def check_workspace(root: OpenRoot, workspace_id: str | None) -> None:
    """Pin the key's workspace on first use, refuse another one later; a reply that does not name one says nothing.

    Raises:
        CredentialsError: Terminal. The key belongs to another workspace than the batches of this root.
    """
    if workspace_id is None:
        return
    pinned = pin_workspace(root.store, workspace_id)
    if pinned != workspace_id:
        raise CredentialsError(
            f"The root {root.store.uri} belongs to the workspace {pinned}, the worker's key to {workspace_id}. Nothing was sent. "
            "Give the worker a key of that workspace, or use another root."
        )
