"""What every fault test asks in the end: are all rows there, and was anything answered twice? The simulator's books know."""

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.prefork import run
from tests.stack import Bench, RunningSimulator

ROWS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """Runs `claude-batch` as a process against the bench's server, task queue and root."""

    bench: Bench
    simulator: RunningSimulator
    folder: Path

    def write_source(self, rows: int = ROWS) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = [f"Review {n}: the tent kept us dry for a week of rain, its poles are light." for n in range(rows)]
        pq.write_table(pa.table({"id": range(rows), "text": texts}), self.folder / "source.parquet")

    def run(self, *options: str, timeout_s: float = 120, **environ: str) -> "subprocess.CompletedProcess[str]":
        arguments = [
            "run",
            "--source",
            "source.parquet",
            "--task",
            "summarize",
            "--column",
            "text",
            "--key",
            "id",
            "--output",
            "out",
            "--json",
        ]
        return self.call(*arguments, *options, timeout_s=timeout_s, **environ)

    def call(self, *arguments: str, timeout_s: float = 120, **environ: str) -> "subprocess.CompletedProcess[str]":
        return run(
            [sys.executable, "-m", "claude_batch_dagster.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environ(), **environ},
            timeout=timeout_s,
        )

    def environ(self) -> dict[str, str]:
        # The root's own part for simulated work is appended by the command line.
        return {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TEMPORAL_ADDRESS": self.bench.address,
            "CLAUDE_BATCH_TASK_QUEUE": self.bench.task_queue,
            "CLAUDE_BATCH_ROOT": str(Path(self.bench.store.uri).parent / "root"),
            "ANTHROPIC_BASE_URL": self.simulator.url,
            "ANTHROPIC_API_KEY": "any",
        }

    def rows(self) -> list[dict[str, Any]]:
        return list(pq.read_table(self.folder / "out" / "part-0.parquet").to_pylist())


def last_object(finished: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the object that ends standard output."""
    assert finished.stdout.strip(), finished.stderr
    return dict(json.loads(finished.stdout.strip().splitlines()[-1]))


def rows_by_status(finished: "subprocess.CompletedProcess[str]") -> dict[str, int]:
    """Return the rows of the object that ends standard output, those that are none left out."""
    return {name: count for name, count in last_object(finished)["rows"].items() if count}


def sent(simulator: RunningSimulator) -> list[int]:
    """Return the requests of each batch that was ever created, oldest first."""
    return [batch["count"] for batch in reversed(simulator.batches())]


def answered_twice(simulator: RunningSimulator) -> dict[str, int]:
    """Return the requests, by name and key, that succeeded in more than one batch."""
    with urllib.request.urlopen(simulator.url + "/simulator/outcomes", timeout=10) as reply:
        outcomes = [json.loads(line) for line in reply.read().splitlines()]
    counts = Counter(outcome["custom_id"][:-9] for outcome in outcomes if outcome["outcome"] == "succeeded")
    return {custom_id: count for custom_id, count in counts.items() if count > 1}


def assert_whole(command: CommandLine, rows: int = ROWS) -> None:
    """Every source row is in the output, in order, with an answer; nothing was answered twice."""
    written = command.rows()
    assert [row["id"] for row in written] == list(range(rows))
    assert {row["status"] for row in written} == {"succeeded"}
    assert answered_twice(command.simulator) == {}
