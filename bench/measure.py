"""Runs the cases of a bench, each in a fresh process, turn by turn so that noise hits all alike; prints medians."""

import argparse
import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
MB = 1 << 20
FOREIGN_VARIABLES = ("ANTHROPIC_", "CLAUDE_BATCH_", "TEMPORAL_")
MEASURES = ("wall_s", "cpu_s", "peak_mb", "over_start_mb")

Context = dict[str, Any]
Facts = Mapping[str, float | str] | None


class UnavailableError(Exception):
    """What a case measures is not there: the reason stands in the report."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that a goal is compared with."""

    value: float
    unit: str


@dataclass(kw_only=True)
class Result:
    """What a bench measured: by case, the runs in the order of the rounds."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __contains__(self, case: str) -> bool:
        return bool(self.runs.get(case))

    def median(self, case: str, measure: str) -> float:
        """Return a measure's median over the rounds."""
        return float(statistics.median(run[measure] for run in self.runs[case]))

    def ratio(self, case: str, against: str, measure: str) -> float:
        """Return the median of a measure's ratio, each taken within one round."""
        pairs = zip(self.runs[case], self.runs[against], strict=True)
        return float(statistics.median(one[measure] / max(other[measure], 1e-9) for one, other in pairs))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One part of the bench.

    Attributes:
        cases: Each prepares, which is not measured, and returns what is.
        setup: Gives what the cases share: files, servers. Runs once, in the parent.
        figures: What the goals are compared with.
        arguments: Adds options of its own.
        rows: Default size.
    """

    name: str
    cases: Mapping[str, Callable[[argparse.Namespace, Context], Callable[[], Facts]]]
    figures: Callable[[argparse.Namespace, Result], dict[str, Figure]]
    setup: Callable[[argparse.Namespace], AbstractContextManager[Context]] = lambda options: nullcontext({})
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    rows: int = 100_000
    repeat: int = 3


def parse_options(bench: Bench, argv: Sequence[str]) -> argparse.Namespace:
    """Return a bench's options."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{bench.name}", description=sys.modules[bench.setup.__module__].__doc__)
    parser.add_argument("--rows", type=int, default=bench.rows)
    parser.add_argument("--repeat", type=int, default=bench.repeat, help="fresh processes for each case")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder of the data; what it holds is used again")
    parser.add_argument("--only", action="append", choices=list(bench.cases), help="this case; may be given several times")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--context", help=argparse.SUPPRESS)
    bench.arguments(parser)
    return parser.parse_args(argv)


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Give a folder to be filled, which is then renamed to this one; None where this one is there already."""
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as making:
        yield Path(making)
        # Somebody else may have been faster.
        with contextlib.suppress(OSError):
            Path(making).rename(folder)


def default_work() -> Path:
    """Return the folder where data lies unless another is named."""
    return Path(tempfile.gettempdir()) / "claude-batch-bench"


def forget_machine() -> None:
    """Drop the variables with which a machine's own settings, proxies among them, would decide what is measured."""
    for name in [name for name in os.environ if name.startswith(FOREIGN_VARIABLES) or name.lower().endswith("_proxy")]:
        del os.environ[name]


def main(bench: Bench, argv: Sequence[str] | None = None) -> None:
    """Run a bench from its command line."""
    forget_machine()
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(bench, arguments)
    if options.case:
        print(json.dumps(_run_case(bench, options)))
        return
    report = run_bench(bench, arguments)
    print(json.dumps(report, indent=1) if options.json else show_report(report))


def run_bench(bench: Bench, argv: Sequence[str]) -> dict[str, Any]:
    """Run a bench's cases; return its report, which is JSON."""
    options = parse_options(bench, argv)
    options.work.mkdir(parents=True, exist_ok=True)
    result, load = Result(), os.getloadavg()[0]
    names = options.only or list(bench.cases)
    with bench.setup(options) as context:
        for turn in range(options.repeat):
            for name in names:
                if name in result.skipped:
                    continue
                run = _start_case(bench, argv, name, context)
                if "unavailable" in run:
                    result.skipped[name] = run["unavailable"]
                else:
                    result.runs.setdefault(name, []).append(run)
                print(f"{bench.name} {turn + 1}/{options.repeat} {name}: {_brief(run)}", file=sys.stderr, flush=True)
    figures = bench.figures(options, result)
    return {
        "bench": bench.name,
        "rows": options.rows,
        "repeat": options.repeat,
        "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "cases": {name: _summarize(runs) for name, runs in result.runs.items()},
        "skipped": result.skipped,
        "figures": {name: {"value": figure.value, "unit": figure.unit} for name, figure in figures.items()},
    }


def show_report(report: Mapping[str, Any]) -> str:
    """Return a bench's report as a table."""
    cases = report["cases"]
    extra = list(dict.fromkeys(name for case in cases.values() for name in case if name not in (*MEASURES, "runs")))
    columns = [*MEASURES, *extra]
    rows = [[report["bench"], *columns]]
    rows += [[name, *(_show(case.get(column)) for column in columns)] for name, case in cases.items()]
    lines = [f"{report['bench']}: {report['rows']:,} rows, medians of {report['repeat']}, load {report['load'][0]} to {report['load'][1]}"]
    lines += align(rows)
    lines += [f"  {name}: left out, {reason}" for name, reason in report["skipped"].items()]
    lines += [f"  {name} = {_show(figure['value'])} {figure['unit']}" for name, figure in report["figures"].items()]
    return "\n".join(lines)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with their columns below each other, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


@contextmanager
def measured(into: dict[str, Any]) -> Iterator[None]:
    """Measure a block: seconds, user and system seconds of this process and its ended children, peak memory."""
    gc.collect()
    _reset_peak()
    start_mb, wall_s, cpu_s = memory_mb("VmRSS"), time.perf_counter(), _cpu_s()
    yield
    into["wall_s"] = time.perf_counter() - wall_s
    into["cpu_s"] = _cpu_s() - cpu_s
    into["peak_mb"] = memory_mb("VmHWM")
    into["over_start_mb"] = into["peak_mb"] - start_mb


def memory_mb(field_name: str, pid: int | str = "self") -> float:
    """Return a process' VmRSS or VmHWM; without /proc this process' peak."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MB if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(field_name))


def process_cpu_s(pid: int) -> float:
    """Return the user and system seconds of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run_case(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    run: dict[str, Any] = {}
    try:
        work = bench.cases[options.case](options, json.loads(options.context or "{}"))
        with measured(run):
            facts = work()
    except UnavailableError as error:
        return {"unavailable": str(error)}
    return run | dict(facts or {})


def _start_case(bench: Bench, argv: Sequence[str], name: str, context: Context) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{bench.name}", *argv, "--case", name, "--context", json.dumps(context)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.{bench.name}: the case {name} ended with exit code {done.returncode}; what it said stands above.")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    medians = {
        name: statistics.median(run[name] for run in runs) if isinstance(value, int | float) else value for name, value in runs[0].items()
    }
    return {**medians, "runs": list(runs)}


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _reset_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def _brief(run: Mapping[str, Any]) -> str:
    return (
        str(run["unavailable"])
        if "unavailable" in run
        else f"{run['wall_s']:.2f} s, cpu {run['cpu_s']:.2f} s, +{run['over_start_mb']:.0f} MB"
    )


def _show(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)
