"""`python -m bench`: all parts, a table of each, and the goals beside what was measured. It never fails for a figure."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.goals import judge, show_goals
from bench.measure import REPOSITORY, default_work, show_report

QUICK: tuple[tuple[str, ...], ...] = (
    ("start",),
    ("plan", "--rows", "100000"),
    ("plan", "--rows", "1000000", "--repeat", "1", "--only", "product", "--only", "unchanged", "--only", "rewritten"),
    ("submit", "--rows", "100000"),
    ("collect", "--rows", "100000"),
    ("end_to_end", "--rows", "100000"),
    ("lookup", "--rows", "1000000"),
    ("publish", "--rows", "1000000"),
    ("events",),
    ("soak", "--rows", "500000"),
)
"""About a quarter of an hour, the first time that the store is filled included."""
FULL: tuple[tuple[str, ...], ...] = (
    *QUICK[:-2],
    ("events", "--shards", "1000"),
    ("soak", "--rows", "10000000"),
)
"""The sizes that the goals are meant for: an hour, and 60 GB of disk."""
PACKAGES = ("anthropic", "dagster", "msgspec", "numpy", "orjson", "pandas", "pyarrow", "temporalio")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help="start, plan, submit, ...: all of them unless some are named")
    parser.add_argument("--full", action="store_true", help="the sizes that the goals are meant for")
    parser.add_argument("--rows", type=int, help="the same size for every part")
    parser.add_argument("--repeat", type=int, help="fresh processes for each case")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder of the data; what it holds is used again")
    parser.add_argument("--out", type=Path, help="file for all figures, as JSON")
    parser.add_argument("--json", action="store_true", help="print them too")
    options = parser.parse_args(argv)
    began_s = time.monotonic()
    reports = []
    for name, *arguments in FULL if options.full else QUICK:
        if options.parts and name not in options.parts:
            continue
        report = _run(name, arguments, options)
        reports.append(report)
        print(show_report(report), file=sys.stderr if options.json else sys.stdout, flush=True)
    judged = judge(reports)
    whole = {"machine": _describe_machine(), "seconds": round(time.monotonic() - began_s), "goals": judged, "reports": reports}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(whole) if options.json else f"\n{show_goals(judged)}\n\n{whole['seconds']:,} s")


def _run(name: str, arguments: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    # The last one of an option counts.
    forced = [f"--{option}={value}" for option, value in (("rows", options.rows), ("repeat", options.repeat)) if value is not None]
    command = [sys.executable, "-m", f"bench.{name}", *arguments, *forced, "--work", str(options.work), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.{name} ended with exit code {done.returncode}")
    return dict(json.loads(done.stdout))


def _describe_machine() -> dict[str, Any]:
    packages = {name: version(name) for name in PACKAGES}
    return {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version(), "packages": packages}


if __name__ == "__main__":
    main()
