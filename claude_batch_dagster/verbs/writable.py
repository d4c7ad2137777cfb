"""Whether a job's outputs and root can be written: found out before anything is asked and paid for. Leaves nothing behind."""

import tempfile
from contextlib import suppress
from pathlib import Path

from claude_batch_dagster.core.errors import ClaudeBatchError, OutputError, RootError, TerminalError
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job

PROBE = "_claude_batch_writable.json"
"""One name for all probes: where nothing may be deleted a single small object stays, which readers of datasets pass over."""


def check_writable(job: Job) -> None:
    """Refuse a job whose answers could not be kept.

    Raises:
        OutputError: Terminal. An output cannot be written.
        RootError: Terminal. The root cannot be written.
        TransientError: An object store does not answer.
    """
    for target in job.targets:
        reason = _find_obstacle(target.output)
        if reason is not None:
            raise OutputError(
                f"The output {target.output} cannot be written: {reason}. Nothing was sent. Choose another folder, or mend its permissions."
            )
    reason = _find_obstacle(job.root)
    if reason is not None:
        raise RootError(
            f"The root {job.root} cannot be written: {reason}. Nothing was sent. Choose another (--root, CLAUDE_BATCH_ROOT, in Dagster the "
            "resource's root), or mend its permissions."
        )


def _find_obstacle(uri: str) -> str | None:
    store = Store(uri)
    if store.folder is not None:
        return _find_local_obstacle(store.folder)
    try:
        store.put(PROBE, b"{}")
    except TerminalError as error:
        return str(error).partition(" cannot be written: ")[2].partition(". ")[0] or str(error)
    with suppress(ClaudeBatchError):
        store.delete(PROBE)
    return None


def _find_local_obstacle(folder: Path) -> str | None:
    try:
        # A folder that is missing is not made: to remove it again would take it from under a client that begins at the same moment.
        place = next(one for one in (folder, *folder.parents) if one.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
