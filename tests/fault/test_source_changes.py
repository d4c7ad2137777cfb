"""The source is rewritten while its batch is out: what is new in it is asked, and no answer lands on another text."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.request import Renderer
from tests.fault.judge import CommandLine, answered_twice, last_object
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]
ROWS = 12


def write_source(command: CommandLine, generation: int) -> None:
    """Half of the rows change with each generation; the file is replaced whole."""
    texts = [f"Review {n}, {generation if n % 2 else 'as ever'}: the tent kept us dry for a week of rain." for n in range(ROWS)]
    new = command.folder / ".new"
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), new)
    new.replace(command.folder / "source.parquet")


def assert_answers_are_the_texts(command: CommandLine) -> None:
    """Each row's request_key is that of the text that the row has now."""
    texts = pq.read_table(command.folder / "source.parquet")["text"].to_pylist()
    task = Summarize(name="summaries", column="text", model="claude-haiku-5-5")
    requests = Renderer(task, ["text"]).render((text,) for text in texts)
    for row, request in zip(command.rows(), requests, strict=True):
        assert request is not None
        if row["status"] == "succeeded":
            assert row["request_key"] == request.key.hex()


def wait_for_batches(simulator: RunningSimulator, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(simulator.batches()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_changed_meanwhile_is_asked_in_the_same_command(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Only the changed rows are asked again."""
    simulator = start_simulator("hold")
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.folder.mkdir()
    write_source(command, 1)
    bench.start_worker(simulator)
    finished: list[subprocess.CompletedProcess[str]] = []
    client = threading.Thread(target=lambda: finished.append(command.run()))
    client.start()
    wait_for_batches(simulator, 1)
    write_source(command, 2)
    simulator.clear()
    client.join(120)

    assert finished[0].returncode == 0, finished[0].stderr
    assert "The source changed meanwhile" in finished[0].stderr
    assert last_object(finished[0])["rows"]["succeeded"] == ROWS
    assert sorted(sum(batch["outcomes"].values()) for batch in simulator.batches()) == [ROWS // 2, ROWS]
    assert answered_twice(simulator) == {}
    assert_answers_are_the_texts(command)


def test_a_source_that_keeps_changing_ends_with_pending_rows(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """It is planned again three times; what changed even then is pending, and the others have their answers."""
    simulator = start_simulator(seconds=1.0)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.folder.mkdir()
    write_source(command, 1)
    bench.start_worker(simulator)
    finished: list[subprocess.CompletedProcess[str]] = []
    client = threading.Thread(target=lambda: finished.append(command.run()))
    client.start()
    for generation in range(1, 5):
        wait_for_batches(simulator, generation)
        write_source(command, generation + 1)
    client.join(120)

    assert finished[0].returncode == 3, finished[0].stderr
    told = last_object(finished[0])["rows"]
    assert (told["succeeded"], told["pending"]) == (ROWS // 2, ROWS // 2)
    assert "rows are pending" in finished[0].stderr
    assert len(simulator.batches()) == 4
    assert answered_twice(simulator) == {}
    assert_answers_are_the_texts(command)
