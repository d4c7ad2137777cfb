"""Keeps the index of the answers small, new and right."""

import logging

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errors import RootError, TransientError
from claude_batch_dagster.storage.check import check_index
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.plans import read_root
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.stored import list_task_keys
from claude_batch_dagster.verbs.job import Job

log = logging.getLogger(__name__)


def keep_up_answers(job: Job) -> None:
    """Do what is due for the answers to a job's tasks. The answers are right without it, so what fails here is only told to the log."""
    store = Store(job.root)
    for task_key in dict.fromkeys(target.task.task_key for target in job.targets):
        try:
            maintain_responses(store, job.endpoint, task_key)
        except (RootError, TransientError, OSError) as error:
            log.warning("The index of the answers was not brought up to date: %s", error)


def examine_indexes(root: str) -> tuple[Finding, ...]:
    """Compare a root's indexes with its responses, row by row; a wrong one is made again. Nothing is found where there is no index."""
    store = Store(root)
    record = read_root(store)
    keys = rows = wrong = 0
    found: list[Finding] = []
    for task_key in list_task_keys(store, record.endpoint) if record else ():
        try:
            check = check_index(store, record.endpoint, task_key) if record else None
        except RootError as error:
            found.append(Finding(name="index", status=Health.FAIL, detail=str(error)))
            continue
        if check is not None:
            keys, rows, wrong = keys + check.keys, rows + check.rows, wrong + check.wrong
    if wrong:
        detail = f"It said something else than the responses of {wrong:,} {'request' if wrong == 1 else 'requests'}, and was made again."
        found.append(Finding(name="index", status=Health.WARN, detail=detail, remedy="What was published in between: run it again."))
    elif rows:
        found.append(Finding(name="index", status=Health.OK, detail=f"It agrees with {rows:,} responses to {keys:,} requests."))
    return tuple(found)
