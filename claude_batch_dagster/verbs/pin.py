"""The pin of a root: whose answers it holds, and in which Temporal namespace its runs live."""

import uuid_utils

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.plans import pin_root, read_root
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job


def pin_job_root(store: Store, job: Job, *, write: bool) -> None:
    """Pin the root for this job's endpoint and namespace, or refuse it.

    Raises:
        RootError: Terminal. The root is pinned to others.
    """
    found = pin_root(store, job.root_record(str(uuid_utils.uuid7()))) if write else read_root(store)
    if found is None:
        return
    for what, pinned, asked in (
        ("endpoint", found.endpoint, job.endpoint),
        ("Temporal namespace", found.temporal_namespace, job.temporal_namespace),
    ):
        if pinned != asked:
            raise RootError(
                f"The root {store.uri} belongs to the {what} {pinned!r}, and this run is for {asked!r}. Nothing was sent. "
                f"Use another root (--root, CLAUDE_BATCH_ROOT), or the {what} that it belongs to."
            )
