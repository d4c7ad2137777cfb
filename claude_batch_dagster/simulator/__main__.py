"""`python -m claude_batch_dagster.simulator`: the simulator as a process."""

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence

from claude_batch_dagster.simulator.books import BooksInUseError
from claude_batch_dagster.simulator.faults import FAULTS, parse_switch
from claude_batch_dagster.simulator.server import WORKSPACE, AddressError, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal, or the end of standard input if so asked. Exit 0; 1 when it cannot start; 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        asyncio.run(_run(arguments))
    except AddressError as error:
        print(f"simulator: {error} Nothing was started. Choose another with --port, 0 for a free one.", file=sys.stderr)
        return 1
    except (BooksInUseError, OSError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="claude-batch simulator",
        description="A loopback simulator of Anthropic's Message Batches API. Any key works but `wrong`. Answers are prefixed [simulated].",
        epilog="faults:\n" + "\n".join(f"  {name:20} {fault.says}" for name, fault in FAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8787, help="port, 0 picks a free one (%(default)s)")
    parser.add_argument("--books", metavar="DIR", help="folder of the books, kept over restarts (default: a temporary one)")
    parser.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="how long a batch takes to end (%(default)s)")
    parser.add_argument("--fault", action="append", default=[], type=_switch, metavar="NAME[=N]", help="switch a fault on; repeatable")
    parser.add_argument(
        "--workspace",
        default=os.environ.get("CLAUDE_BATCH_SIMULATOR_WORKSPACE", WORKSPACE),
        help="value of the anthropic-workspace-id header (%(default)s)",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when standard input ends")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _switch(text: str) -> str:
    try:
        parse_switch(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.exit_with_parent:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    async with serve(
        books=arguments.books,
        host=arguments.host,
        port=arguments.port,
        seconds=arguments.seconds,
        faults=arguments.fault,
        workspace=arguments.workspace,
    ) as simulator:
        print(f"simulator ready on {simulator.url}", flush=True)
        await stop.wait()
    # A thread that still parses an upload would hold the exit up; the books are safe against a kill at any moment.
    os._exit(0)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    sys.exit(main())
