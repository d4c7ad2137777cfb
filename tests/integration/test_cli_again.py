"""`--retry-failed`, `--ask-again` and `--no-preflight` from the command line to the vendor; the simulator's books say what was paid."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.records import TriedRecord
from tests.fault.judge import CommandLine, last_object
from tests.stack import Bench, RunningSimulator

ROWS = 5
TOO_SHORT = """\
name: words
model: claude-haiku-5-5
prompt: "{text}"
thinking: {type: disabled}
max_tokens: 3
"""


@pytest.fixture
def command(bench: Bench, start_simulator: Callable[..., RunningSimulator], tmp_path: Path) -> CommandLine:
    simulator = start_simulator()
    bench.start_worker(simulator)
    line = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    line.write_source(ROWS)
    return line


def ask(command: CommandLine, *options: str, code: int = 0) -> dict[str, Any]:
    finished = command.run(*options)
    assert finished.returncode == code, finished.stderr + finished.stdout
    return last_object(finished)


def asked_by_batch(command: CommandLine) -> list[list[str]]:
    """Return the request_keys that each batch was asked about, the oldest batch first."""
    with urllib.request.urlopen(command.simulator.url + "/simulator/outcomes", timeout=10) as reply:
        lines = [json.loads(line) for line in reply.read().splitlines()]
    batches: dict[str, list[str]] = {}
    for line in lines:
        batches.setdefault(line["batch_id"], []).append(line["custom_id"].split("-")[-2])
    return list(reversed([sorted(keys) for keys in batches.values()]))


def tried(command: CommandLine) -> list[TriedRecord]:
    root = Path(command.environ()["CLAUDE_BATCH_ROOT"]) / "simulated"
    return [msgspec.json.decode(path.read_bytes(), type=TriedRecord) for path in root.glob("plans/*/tried-*.json")]


def test_rows_that_failed_for_good_are_paid_again_only_with_retry_failed(command: CommandLine) -> None:
    command.simulator.switch_on("invalid", "all")
    failed = ask(command, code=3)
    assert (failed["requests"]["asked"], failed["rows"]["invalid"]) == (ROWS, ROWS)
    command.simulator.clear()
    command.write_source(ROWS + 2)
    grown = ask(command, code=3)
    assert (grown["requests"]["asked"], grown["rows"]["invalid"], grown["rows"]["succeeded"]) == (2, ROWS, 2)
    before = asked_by_batch(command)
    failed_keys = sorted(row["request_key"] for row in command.rows() if row["status"] == "invalid")

    retried = ask(command, "--retry-failed")

    assert (retried["requests"]["asked"], retried["rows"]["succeeded"]) == (ROWS, ROWS + 2)
    assert asked_by_batch(command) == [*before, failed_keys]
    assert ask(command, "--retry-failed")["requests"]["asked"] == 0
    assert len(asked_by_batch(command)) == len(before) + 1


def test_exactly_the_named_rows_are_paid_again_and_show_their_new_answer(command: CommandLine) -> None:
    ask(command)
    first = {row["id"]: row for row in command.rows()}

    again = ask(command, "--ask-again", "1", "--ask-again", "3")

    assert again["requests"] == {"asked": 2, "already_answered": ROWS - 2, "in_flight": 0}
    second = {row["id"]: row for row in command.rows()}
    assert asked_by_batch(command)[1:] == [sorted(first[id_]["request_key"] for id_ in (1, 3))]
    assert [id_ for id_ in first if first[id_]["batch_id"] != second[id_]["batch_id"]] == [1, 3]
    assert {row["status"] for row in second.values()} == {"succeeded"}
    plain = ask(command)
    assert (plain["requests"]["asked"], command.simulator.books()["requests"]) == (0, ROWS + 2)
    assert {row["id"]: row for row in command.rows()} == second


def test_a_row_that_is_not_there_is_not_asked_again(command: CommandLine) -> None:
    ask(command)
    refused = command.run("--ask-again", "1", "--ask-again", "99")
    assert refused.returncode == 2, refused.stderr
    assert "99" in last_object(refused)["error"]["message"]
    assert command.simulator.books()["requests"] == ROWS


def test_without_a_preflight_no_single_call_is_made(command: CommandLine) -> None:
    done = ask(command, "--no-preflight")
    assert done["rows"]["succeeded"] == ROWS
    assert "message" not in command.simulator.books()["calls"]
    assert tried(command) == []
    assert done["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in command.rows()))


def test_a_preflight_is_paid_once_and_counts_in_what_its_run_cost(command: CommandLine) -> None:
    first = ask(command)
    assert command.simulator.books()["calls"]["message"] == 1
    (record,) = tried(command)
    assert record.usage is not None
    assert record.usage.cost_nano_usd == 100 * record.usage.input_tokens + 500 * record.usage.output_tokens > 0
    rows = command.rows()
    assert first["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in rows) + record.usage.cost_nano_usd / 1e9)
    assert first["tokens"]["input"] == sum(row["input_tokens"] for row in rows) + record.usage.input_tokens
    assert first["tokens"]["output"] == sum(row["output_tokens"] for row in rows) + record.usage.output_tokens
    command.write_source(ROWS + 1)
    second = ask(command)
    assert second["cost_usd"] == pytest.approx(command.rows()[-1]["cost_usd"])
    assert command.simulator.books()["calls"]["message"] == 1


def test_a_preflight_that_fails_is_paid_for_and_stops_the_run(command: CommandLine) -> None:
    (command.folder / "short.yaml").write_text(TOO_SHORT)
    arguments = ("run", "--source", "source.parquet", "--task", "short.yaml", "--key", "id", "--output", "short", "--json")
    stopped = command.call(*arguments)
    assert stopped.returncode == 1, stopped.stderr
    told = last_object(stopped)
    assert "max_tokens is 3" in told["error"]["message"]
    assert "--no-preflight" in told["error"]["message"]
    assert command.simulator.batches() == []
    (record,) = tried(command)
    assert record.usage is not None
    assert (record.outcome, told["tokens"]["output"], told["cost_usd"]) == ("truncated", 3, (record.usage.cost_nano_usd or 0) / 1e9)

    sent = command.call(*arguments, "--no-preflight")

    assert sent.returncode in (0, 3), sent.stderr
    assert command.simulator.books()["calls"]["message"] == 1
    assert len(command.simulator.batches()) >= 1
    assert pq.read_table(command.folder / "short" / "part-0.parquet").num_rows == ROWS


def test_the_cap_counts_the_try_of_a_new_task(command: CommandLine) -> None:
    """Between the rows' worst case and that with the try, a cap refuses, and lets pass without the try."""
    plan = ("plan", "--source", "source.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out", "--json")
    with_try = last_object(command.call(*plan))["cost_usd"]["worst"]
    without = last_object(command.call(*plan, "--no-preflight"))["cost_usd"]["worst"]
    assert without < with_try
    between = f"{(without + with_try) / 2:.9f}"
    refused = command.run("--max-cost-usd", between)
    assert refused.returncode == 1, refused.stderr
    assert "over the cap" in last_object(refused)["error"]["message"]
    assert not {"message", "create"} & command.simulator.books()["calls"].keys()
    assert ask(command, "--max-cost-usd", between, "--no-preflight")["rows"]["succeeded"] == ROWS
