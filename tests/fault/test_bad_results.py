"""Results that lie, lack or are gone: each request ends with one response, and no answer is taken for another's."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import ROWS, CommandLine, answered_twice, assert_whole, last_object, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def test_odd_results_cost_their_own_rows_and_no_others(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Missing, doubled, foreign, of an unknown type, with half a surrogate pair, cut in mid-line: all rows are there, the next run mends them."""
    simulator = start_simulator(
        "missing-result=2", "duplicate-result=3", "foreign-result=3", "unknown-type=2", "surrogate=3", "cut-results=2"
    )
    worker = bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()

    finished = command.run()

    assert finished.returncode == 3, finished.stderr
    assert sent(simulator) == [ROWS]
    rows = command.rows()
    assert [row["id"] for row in rows] == list(range(ROWS))
    bad = {row["id"]: row["error"].partition(":")[0] for row in rows if row["status"] == "errored"}
    assert {row["status"] for row in rows if row["id"] not in bad} == {"succeeded"}
    assert set(bad.values()) == {"result_missing", "unknown_result_type"}
    assert 3 <= len(bad) <= 4
    assert any("\ufffd" in row["summary"] for row in rows if row["summary"])
    assert "have no result" in worker.output

    again = command.run()

    assert again.returncode == 0, again.stderr
    assert sent(simulator) == [ROWS, len(bad)]
    assert len(answered_twice(simulator)) == len(bad)
    assert [row["status"] for row in command.rows()] == ["succeeded"] * ROWS


def test_rows_of_an_archived_batch_are_asked_again_after_saying_so(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """The results were gone before anybody came: each row says so, the plan says why it is asked, the run asks it."""
    simulator = start_simulator("archive")
    worker = bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()
    assert command.run("--detach").returncode == 0
    deadline = time.monotonic() + 60
    done = Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated" / "done" / "1.json"
    while not done.exists():
        assert time.monotonic() < deadline, worker.output
        time.sleep(0.2)
    assert f'"errored":{ROWS}' in done.read_text()
    assert sent(simulator) == [ROWS]

    planned = command.call(
        "plan", "--source", "source.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out"
    )
    assert f"{ROWS} failed before" in " ".join(planned.stdout.split())
    simulator.clear()
    again = command.run()

    assert again.returncode == 0, again.stderr
    assert last_object(again)["requests"]["asked"] == ROWS
    assert sent(simulator) == [ROWS, ROWS]
    written = command.rows()
    assert [(row["id"], row["status"]) for row in written] == [(n, "succeeded") for n in range(ROWS)]


def test_a_stream_that_is_always_cut_is_read_later(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Half of a file is no file: nothing of it is stored, the batch is read again until it comes whole, and never sent again."""
    simulator = start_simulator("cut-results=7")
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source()

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert_whole(command)
    assert sent(simulator) == [ROWS]
    assert simulator.books()["calls"]["results"] == 8
