"""The Temporal dev server, the worker and (for simulated work) the simulator of one root, for whoever has no Temporal of their own.

    with attach(root, simulate=True) as stack:
        run_job(job, stack.connection)

The first client starts a supervisor process, which starts the rest; others attach; it ends everything with the last client, however
that one ends. Nothing here starts a thread or touches a signal handler of the calling process.
"""

from claude_batch_dagster.embedded.client import Stack, attach, find_stack, has_ended, stop_stack
from claude_batch_dagster.embedded.folder import stack_folder

__all__ = ["Stack", "attach", "find_stack", "has_ended", "stack_folder", "stop_stack"]
