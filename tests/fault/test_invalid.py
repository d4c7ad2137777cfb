"""Answers that break their schema: asked once more, then final."""

from collections.abc import Callable
from pathlib import Path

from tests.fault.judge import ROWS, CommandLine, answered_twice, last_object, rows_by_status, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]


def start(bench: Bench, simulator: RunningSimulator, folder: Path, rows: int = ROWS) -> CommandLine:
    bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=folder)
    command.write_source(rows)
    return command


def test_an_answer_that_broke_its_schema_is_asked_once_more(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Three of forty, in a round of their own; nothing else is paid twice."""
    simulator = start_simulator("invalid=3")
    command = start(bench, simulator, tmp_path / "work")

    finished = command.run()

    assert finished.returncode == 0, finished.stderr
    assert [(row["id"], row["status"]) for row in command.rows()] == [(n, "succeeded") for n in range(ROWS)]
    assert sent(simulator) == [ROWS, 3]
    assert len(answered_twice(simulator)) == 3


def test_an_answer_that_breaks_its_schema_again_is_final(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """Twice in all, not three times; then only --retry-failed asks it."""
    simulator = start_simulator("invalid=all")
    command = start(bench, simulator, tmp_path / "work", rows=4)

    finished = command.run()

    assert finished.returncode == 3, finished.stderr
    assert rows_by_status(finished) == {"total": 4, "invalid": 4}
    assert sent(simulator) == [4, 4]
    assert set(answered_twice(simulator).values()) == {2}

    simulator.clear()
    assert last_object(command.run())["requests"]["asked"] == 0
    retried = command.run("--retry-failed")

    assert rows_by_status(retried) == {"total": 4, "succeeded": 4}
    assert sent(simulator) == [4, 4, 4]


def test_refused_answers_and_refused_requests_are_not_asked_again(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """A refusal is an outcome; a request that the vendor calls invalid would be so again."""
    simulator = start_simulator("refusal=2")
    command = start(bench, simulator, tmp_path / "work", rows=4)
    wrong = command.folder / "wrong.yaml"
    wrong.write_text('name: wrong\nmodel: claude-haiku-5-5\nprompt: "Retell: {text}"\nmax_tokens: 500\nparams: {stop_sequences: [" "]}\n')

    refused = command.run()
    ask_wrong = ("run", "--source", "source.parquet", "--task", "wrong.yaml", "--key", "id", "--output", "ill", "--json", "--no-preflight")
    ill = command.call(*ask_wrong)

    assert refused.returncode == 0, refused.stderr
    assert rows_by_status(refused) == {"total": 4, "succeeded": 2, "refused": 2}
    assert rows_by_status(ill) == {"total": 4, "errored": 4}, ill.stderr
    assert sent(simulator) == [4, 4]

    assert last_object(command.run("--retry-failed"))["requests"]["asked"] == 0
    assert last_object(command.call(*ask_wrong))["requests"]["asked"] == 0
    assert last_object(command.call(*ask_wrong, "--retry-failed"))["requests"]["asked"] == 4
    assert sent(simulator) == [4, 4, 4]
