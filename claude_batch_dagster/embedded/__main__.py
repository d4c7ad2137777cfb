"""`python -m claude_batch_dagster.embedded ROOT [--simulate]`: the supervisor. Clients start it; people do not need to."""

import os
import sys

from claude_batch_dagster.embedded.supervisor import main

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Temporal's client may hang or abort while the interpreter shuts down (github.com/temporalio/sdk-python/issues/300).
    os._exit(code)
