"""What a stranger types in the first hour, and the day after: a few rows, one row, a changed prompt, the doctor, the usual mistakes."""

import json
import os
import socket
import tempfile

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.embedded import find_stack
from tests.cli_shell import ROWS

TASK = """\
name: topics
model: claude-haiku-5-5
prompt: "Which topic? {text}"
output:
  type: object
  properties: {topic: {type: string}}
  required: [topic]
  additionalProperties: false
max_tokens: 100
"""


def test_a_few_rows_first_are_not_paid_again_and_never_replace_all_of_them(shell):
    out = shell.type(*shell.run_arguments("--simulate", "--limit", "5"))
    assert "only the first 5 rows of 12 (--limit 5); the output says so" in out
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == 5
    assert "the first ones of its source: it was written with limit 5" in shell.type_failing("show", "out", "9", code=2)
    planned = json.loads(shell.type("plan", *shell.job_arguments("--simulate", "--json")))
    assert planned["requests"] == {"asked": ROWS - 6, "already_answered": 5, "in_flight": 0}
    assert (planned["reasons"]["new"], planned["limit"]) == (ROWS - 6, None)
    full = json.loads(shell.type(*shell.run_arguments("--simulate", "--json")))
    assert (full["requests"]["asked"], full["rows"]["total"]) == (ROWS - 6, ROWS)
    assert "holds all rows, and --limit 5" in shell.type_failing(*shell.run_arguments("--simulate", "--limit", "5"))
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == ROWS
    shell.type(*shell.run_arguments("--simulate", "--limit", "5", "--replace"))
    assert pq.read_table(shell.folder / "out" / "part-0.parquet").num_rows == 5


def test_task_of_a_yaml_file_runs_is_shown_row_by_row_and_a_changed_prompt_is_named(shell):
    (shell.folder / "topics.yaml").write_text(TASK)
    arguments = ("--source", "in.parquet", "--task", "topics.yaml", "--key", "id", "--output", "topics", "--simulate")
    shell.type("run", *arguments)
    shown = shell.type("show", "topics", "3")
    for part in ("id=3", "SIMULATED", "Which topic? Review 3", "as it was staged for batch run r1", "batch run r1, shard 1-0", "end_turn"):
        assert part in shown
    story = json.loads(shell.type("show", "topics", "3", "--json"))
    assert (story["status"], story["run"], len(story["attempts"]), story["exit_code"]) == ("succeeded", "r1", 1, 0)
    shell.type("run", *arguments, "--ask-again", "3", "--ask-again", "4")
    again = json.loads(shell.type("show", "topics", "3", "--json"))
    assert [one["run"] for one in again["attempts"]] == ["r1", "r2"]
    assert [one["shown"] for one in again["attempts"]] == [False, True]
    (shell.folder / "topics.yaml").write_text(TASK.replace("Which topic?", "What is it about?"))
    planned = shell.type("plan", *arguments)
    assert f"{ROWS - 1} because the task changed" in planned
    assert "what changed in topics: prompt" in planned
    assert "What is it about? Review 0" in planned


def test_simulated_answers_are_not_replaced_by_real_ones_unless_told(shell):
    shell.type(*shell.run_arguments("--simulate"))
    before = (shell.folder / "out" / "part-0.parquet").read_bytes()
    shell.environ["ANTHROPIC_API_KEY"] = "any"
    for verb in ("run", "plan"):
        err = shell.type_failing(verb, *shell.job_arguments())
        assert "holds answers of 'simulator', and would get answers of 'anthropic'. Nothing was sent." in err
        assert "--replace" in err
    assert (shell.folder / "out" / "part-0.parquet").read_bytes() == before
    assert json.loads(shell.type("plan", *shell.job_arguments("--replace", "--json")))["requests"]["asked"] == ROWS - 1


def test_real_answers_are_not_replaced_by_simulated_ones_unless_told(shell):
    (shell.folder / "out").mkdir()
    marker = {"format": 1, "source": "s", "endpoint": "anthropic", "partition_column": None}
    (shell.folder / "out" / "_claude_batch.json").write_text(json.dumps(marker))
    err = shell.type_failing(*shell.run_arguments("--simulate"))
    assert "holds answers of 'anthropic', and would get answers of 'simulator'" in err
    shell.type(*shell.run_arguments("--simulate", "--replace"))


def test_doctor_finds_nothing_wrong_and_leaves_nothing_running(shell):
    out = shell.type("doctor", "--simulate")
    assert "Nothing stands in the way of a run" in out
    assert "model claude-haiku-5-5" in out
    assert sum("GB free" in line for line in out.splitlines()) == len(
        {os.stat(place).st_dev for place in (shell.folder, tempfile.gettempdir())}
    )
    assert find_stack(shell.root) is None
    shell.wait_until_nothing_runs()


def test_doctor_says_what_to_do_and_ends_with_1_where_a_run_would_not_work(shell):
    shell.environ["TEMPORAL_ADDRESS"] = "127.0.0.1:9"
    found = json.loads(shell.type("doctor", "--simulate", "--json", code=1))
    failed = {one["name"]: one for one in found["findings"] if one["status"] == "fail"}
    assert "TEMPORAL_ADDRESS" in failed["temporal"]["remedy"]
    assert found["exit_code"] == 1
    shell.environ.pop("TEMPORAL_ADDRESS")
    out = shell.type("doctor", code=1)
    assert out.count("FAIL") == 1
    assert "ANTHROPIC_API_KEY" in out
    assert "1 thing stands in the way of a run" in out


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("status", "r99"), 2, ("no batch run r99", "claude-batch status")),
        (("cancel", "r99"), 2, ("no batch run r99",)),
        (("show", "out", "1"), 1, ("out does not exist", "run --output")),
        (("runn",), 2, ("Did you mean 'run'?",)),
    ],
)
def test_usual_mistakes_say_what_to_do(shell, arguments, code, parts):
    err = shell.type_failing(*arguments, code=code)
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("--task", "sumarize"), ("Did you mean summarize?",)),
        (("--column", "txt"), ("'txt'", "id, text", "Did you mean 'text'?")),
        (("--key", "idd"), ("no column 'idd'", "id, text", "Did you mean 'id'?")),
        (("--columns", "key,txet"), ("no column 'txet'", "Did you mean 'text'?")),
        (("--source", "none.parquet"), ("none.parquet does not exist",)),
        (("--output", "/dev/null/out"), ("cannot be written: Not a directory", "Nothing was sent")),
        (("--ask-again", "99"), ("has the key to ask again: 99.", "Nothing was sent")),
        (("--model", "claude-3-opus"), ("retired",)),
    ],
)
def test_usual_mistakes_of_a_run_send_nothing(shell, change, parts):
    arguments = list(shell.job_arguments("--simulate"))
    if change[0] in arguments:
        arguments[arguments.index(change[0]) + 1] = change[1]
    else:
        arguments += change
    process = shell.start("run", *arguments)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    for part in parts:
        assert part in err
    assert "Traceback" not in err
    assert not list(shell.folder.rglob("log/*.json"))


def test_wrong_temporal_address_is_an_error_and_nothing_is_sent(shell):
    shell.environ["TEMPORAL_ADDRESS"] = "127.0.0.1:9"
    err = shell.type_failing(*shell.run_arguments("--simulate"))
    assert "127.0.0.1:9" in err
    assert "TEMPORAL_ADDRESS" in err
    assert not list(shell.folder.rglob("log/*.json"))


def test_port_in_use_is_refused_by_dev_before_anything_starts(shell):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        err = shell.type_failing("dev", "--port", str(bound.getsockname()[1]), code=2)
    assert "Address already in use. Nothing was started. Choose another" in err
    assert find_stack(shell.root) is None
