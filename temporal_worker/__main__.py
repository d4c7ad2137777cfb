"""`python -m temporal_worker`: the worker as a process."""

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence

from claude_batch_dagster.core.errors import ClaudeBatchError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop. Exit 0; 1 when it cannot start; 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="claude-batch worker",
        description="Carries batch runs out: takes work from a Temporal task queue, calls the Message Batches API.",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args(argv)
    # Modules leave no garbage while they load: looking for it is a quarter of the start.
    gc.disable()
    from temporal_worker.worker import read_settings, run_worker

    gc.freeze()
    gc.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # Both repeat each failed attempt with a stack trace of many lines; the failure itself is in the run's history.
    logging.getLogger("temporalio").setLevel(logging.ERROR)
    try:
        asyncio.run(run_worker(read_settings(os.environ, exit_with_parent=arguments.exit_with_parent)))
    except ClaudeBatchError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The interpreter's own end can hang in Temporal's native threads: https://github.com/temporalio/sdk-python/issues/300
    os._exit(code)
