"""`python -m claude_batch_dagster.embedded ROOT [--simulate]`: the supervisor. Clients start it; people do not need to."""

import sys

from claude_batch_dagster.embedded.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
