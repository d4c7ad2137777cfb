"""Start: how long the command line, the package and a code location take to load, and which heavy libraries come with them."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Bench, Context, Facts, Figure, Result, main

HEAVY = ("anthropic", "dagster", "pandas", "pyarrow", "temporalio")
ASK = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"


@contextmanager
def setup(options: argparse.Namespace) -> Iterator[Context]:
    """Give a folder that is no project: what is imported is what is installed."""
    with tempfile.TemporaryDirectory() as folder:
        yield {"folder": folder}


def bare_python(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """An interpreter that does nothing: what all others include."""
    return _start(context, [sys.executable, "-c", "pass"], "pass")


def show_help(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """`claude-batch --help`."""
    command = [str(Path(sys.executable).with_name("claude-batch")), "--help"]
    return _start(context, command, "from claude_batch_dagster.cli.app import run_command_line; run_command_line(['--help'])")


def import_package(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """`import claude_batch_dagster`."""
    return _start(context, [sys.executable, "-c", "import claude_batch_dagster"], "import claude_batch_dagster")


def import_dagster(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """`import dagster` alone: what a code location costs without the product."""
    return _start(context, [sys.executable, "-c", "import dagster"], "import dagster")


def load_location(options: argparse.Namespace, context: Context) -> Callable[[], Facts]:
    """A code location with an asset of the product's: the demo's."""
    code = "from claude_batch_dagster.demo.definitions import defs; defs.get_repository_def()"
    return _start(context, [sys.executable, "-c", code], code)


def figures(options: argparse.Namespace, result: Result) -> dict[str, Figure]:
    """Give seconds of wall time; of the import also without the interpreter's own."""
    found = {f"{case}_s": Figure(value=result.median(case, "wall_s"), unit="s") for case in ("help", "location") if case in result}
    if "import" in result and "python" in result:
        found["import_s"] = Figure(value=result.median("import", "wall_s") - result.median("python", "wall_s"), unit="s over python")
    return found


def _start(context: Context, command: list[str], code: str) -> Callable[[], Facts]:
    asked = f"import contextlib, io\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    {code}\n{ASK}"
    # Also writes what Python compiles: nobody starts it for the first time twice.
    done = subprocess.run([sys.executable, "-c", asked], cwd=context["folder"], stdout=subprocess.PIPE, text=True, check=True)
    loaded = " ".join(json.loads(done.stdout)) or "none"

    def work() -> Facts:
        subprocess.run(command, cwd=context["folder"], stdout=subprocess.DEVNULL, check=True)
        return {"loads": loaded}

    return work


BENCH = Bench(
    name="start",
    cases={"python": bare_python, "help": show_help, "import": import_package, "dagster": import_dagster, "location": load_location},
    figures=figures,
    setup=setup,
    rows=0,
    repeat=5,
)

if __name__ == "__main__":
    main(BENCH)
