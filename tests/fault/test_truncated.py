"""Answers that max_tokens cuts: asked again with twice the room under the same key, up to what the model and the cap allow."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from tests.fault.judge import ROWS, CommandLine, last_object, rows_by_status, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def start(bench: Bench, simulator: RunningSimulator, folder: Path, rows: int = ROWS) -> CommandLine:
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    command.write_source(rows)
    return command


def caps(command: CommandLine) -> list[tuple[int, str, int]]:
    """Return (round, outcome, max_tokens) of the responses in the root, each once."""
    files = (Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated" / "responses").rglob("*.parquet")
    columns = ["round", "outcome", "max_tokens"]
    return sorted({tuple(row[name] for name in columns) for file in files for row in pq.read_table(file, columns=columns).to_pylist()})


def test_a_cut_answer_is_asked_again_with_twice_the_room(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Each row ends with its whole answer, and the responses say what each attempt was allowed."""
    simulator = start_simulator("long-answers=300")
    command = start(bench, simulator, tmp_path / "work")

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert [(row["id"], row["status"]) for row in command.rows()] == [(n, "succeeded") for n in range(ROWS)]
    assert sent(simulator) == [ROWS, ROWS]
    [(_, _, first), (_, _, second)] = found = caps(command)
    assert found == [(1, "truncated", first), (2, "succeeded", second)]
    assert first < 300 <= second == 2 * first
    assert f"Round 2   {ROWS} truncated asked again\n" in command.call("status", "r1").stdout
    assert last_object(command.run())["requests"] == {"asked": 0, "already_answered": ROWS, "in_flight": 0}


def test_an_answer_that_no_room_is_enough_for_ends_truncated(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Three times in all, each with twice the room; then it is final until --retry-failed."""
    simulator = start_simulator("long-answers=9000000")
    command = start(bench, simulator, tmp_path / "work", rows=4)

    finished = command.run()

    assert finished.returncode == 3, finished.stderr
    assert rows_by_status(finished) == {"total": 4, "truncated": 4}
    assert sent(simulator) == [4, 4, 4]
    first = caps(command)[0][2]
    assert caps(command) == [(number, "truncated", first * times) for number, times in ((1, 1), (2, 2), (3, 4))]
    # Of the cut answers the longest is kept.
    assert {row["output_tokens"] for row in command.rows()} == {4 * first}

    assert last_object(command.run())["requests"]["asked"] == 0
    simulator.clear()
    retried = command.run("--retry-failed")

    assert last_object(retried)["requests"]["asked"] == 4
    assert rows_by_status(retried) == {"total": 4, "succeeded": 4}


def test_a_cap_at_the_models_own_is_not_raised(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Just below it, it is raised to it; the model's own is what the vendor says."""
    simulator = start_simulator("long-answers=9000000")
    command = start(bench, simulator, tmp_path / "work", rows=2)
    task = command.folder / "task.yaml"
    task.write_text('name: retold\nmodel: claude-haiku-4-5\nprompt: "Retell: {text}"\nmax_tokens: 63000\n')

    finished = command.call(
        "run", "--source", "source.parquet", "--task", "task.yaml", "--key", "id", "--output", "out", "--json", "--no-preflight"
    )

    assert finished.returncode == 3, finished.stderr
    assert rows_by_status(finished) == {"total": 2, "truncated": 2}
    assert caps(command) == [(1, "truncated", 63_000), (2, "truncated", 64_000)]
    assert sent(simulator) == [2, 2]


def test_more_room_that_the_cap_has_no_money_for_is_not_asked(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """What was spent and the same again would fit, twice the room does not: the rows end truncated, and the cap holds until it is lifted."""
    simulator = start_simulator("long-answers=300")
    command = start(bench, simulator, tmp_path / "work")
    planned = command.call(
        "plan", "--source", "source.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", "--json"
    )
    worst = last_object(planned)["cost_usd"]["worst"]

    finished = command.run("--max-cost-usd", f"{worst * 2.2:.6f}")

    assert finished.returncode == 3, finished.stderr
    assert rows_by_status(finished) == {"total": ROWS, "truncated": ROWS}
    assert 0 < last_object(finished)["cost_usd"] <= worst * 2.2
    assert sent(simulator) == [ROWS]

    assert f"Round 2   {ROWS} truncated not asked again: they may cost $" in command.call("status", "r1").stdout
    refused = command.run("--max-cost-usd", f"{worst * 1.01:.6f}")
    assert refused.returncode == 1, refused.stdout
    assert sent(simulator) == [ROWS]
    lifted = command.run()

    # Not as it was: it would be cut again.
    (_, _, second), (_, _, first) = caps(command)
    assert caps(command) == [(1, "succeeded", second), (1, "truncated", first)]
    assert second == 2 * first
    assert rows_by_status(lifted) == {"total": ROWS, "succeeded": ROWS}
    assert sent(simulator) == [ROWS, ROWS]
    assert last_object(command.run())["requests"]["asked"] == 0
