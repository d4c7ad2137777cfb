"""`python -m claude_batch_dagster.cli`."""

from claude_batch_dagster.cli.app import main

if __name__ == "__main__":
    main()
