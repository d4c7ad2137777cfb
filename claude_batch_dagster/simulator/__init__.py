"""A loopback simulator of Anthropic's Message Batches API, for trying things out and for tests.

As a program::

    python -m claude_batch_dagster.simulator --port 0 --books DIR --seconds 2 --fault expire=0.1

In a test, on the running event loop or beside a synchronous test::

    async with serve(books=tmp_path, seconds=0.2) as simulator: ...      # simulator.url
    with serve_in_thread(books=tmp_path, faults=["429=2"]) as simulator: ...

It answers in plausible, extractive text that is prefixed `[simulated]`, keeps books that survive `kill -9`, refuses what the real
API refuses, and fails on demand (`faults.py`). Importing the package is cheap: the server is loaded on first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_batch_dagster.simulator.server import Simulator, serve, serve_in_thread

__all__ = ["VERSION", "Simulator", "serve", "serve_in_thread"]

VERSION = "1.0.0"


def __getattr__(name: str) -> object:
    if name in {"Simulator", "serve", "serve_in_thread"}:
        from claude_batch_dagster.simulator import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
