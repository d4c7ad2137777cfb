"""The report's last lines: which blocks of the pages were not run, and why."""

import pytest

from tests.docs.blocks import pages, read_blocks


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List them."""
    blocks = [block for page in pages() for block in read_blocks(page)]
    left_out = [block for block in blocks if block.not_run is not None]
    terminalreporter.write_line(f"docs: {len(blocks)} blocks, {len(left_out)} not run:")
    for block in left_out:
        terminalreporter.write_line(f"  {block}  {block.not_run}")
