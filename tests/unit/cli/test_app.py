"""The command line as programs see it: exit codes, the JSON object, what it loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from claude_batch_dagster.cli.app import commands, run_command_line
from claude_batch_dagster.core.status import STATUSES

RUN = ["run", "--source", "missing.parquet", "--task", "summarize", "--column", "text", "--key", "id", "--output", "out"]
OBJECT_KEYS = {"run", "run_id", "workflow_id", "root", "output", "rows", "requests", "batches", "tokens", "cost_usd", "exit_code", "error"}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def last_object(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_help_of_every_command_is_shown(capsys):
    for name in commands.commands:
        if name in ("worker", "simulator"):
            continue
        assert run_command_line([name, "--help"]) == 0
        assert f"Usage: claude-batch {name}" in capsys.readouterr().out


def test_help_of_run_groups_options_and_shows_examples(capsys):
    run_command_line(["run", "--help"])
    text = capsys.readouterr().out
    places = [text.index(heading) for heading in ("\nWhat:", "\nWhere:", "\nCost:", "\nHow:", "\nExamples:")]
    assert places == sorted(places)
    assert "claude-batch run --source reviews.parquet" in text


def test_help_loads_no_framework():
    code = (
        "import sys; from claude_batch_dagster.cli.app import run_command_line; run_command_line(['--help']); "
        "bad = {'pyarrow', 'temporalio', 'dagster', 'pandas', 'numpy', 'rich', 'genai_prices', 'anthropic'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_unknown_option_is_a_usage_error(capsys):
    assert run_command_line(["run", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_json_object_is_the_last_line_also_for_a_usage_error(capsys):
    assert run_command_line(["run", "--json"]) == 2
    found = last_object(capsys.readouterr().out)
    assert set(found) == OBJECT_KEYS
    assert found["exit_code"] == 2
    assert found["error"]["type"] == "UsageError"


def test_missing_key_is_refused_and_both_ways_out_are_named(capsys):
    assert run_command_line([*RUN, "--json"]) == 1
    captured = capsys.readouterr()
    assert last_object(captured.out)["error"]["type"] == "CredentialsError"
    assert "ANTHROPIC_API_KEY" in captured.err
    assert "--simulate" in captured.err
    assert not list(Path().iterdir())


def test_missing_source_is_not_written_and_says_where_the_root_is(capsys, tmp_path):
    assert run_command_line([*RUN, "--simulate", "--json"]) == 1
    found = last_object(capsys.readouterr().out)
    assert found["error"]["type"] == "SourceError"
    assert found["rows"] == dict.fromkeys(("total", *STATUSES), 0)


def test_plan_needs_no_key(capsys):
    assert run_command_line(["plan", *RUN[1:]]) == 1
    assert "missing.parquet does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (["--task", "gone.yaml"], 2),
        (["--task", "gone.py:task"], 2),
        (["--model", "claude-3-opus"], 2),
        (["--task", "sumarize"], 2),
        ([], 1),
    ],
)
def test_a_wrong_task_is_wrong_usage_and_a_wrong_source_is_not(capsys, change, code):
    arguments = [*RUN, "--simulate", "--json", *change]
    if change[:1] == ["--task"]:
        del arguments[arguments.index("--column") : arguments.index("--column") + 2]
    assert run_command_line(arguments) == code
    assert last_object(capsys.readouterr().out)["exit_code"] == code


def test_options_are_checked_before_the_key(capsys):
    assert run_command_line([*RUN, "--labels", "a,b"]) == 2
    assert "ANTHROPIC_API_KEY" not in capsys.readouterr().err


def test_arguments_have_a_section_of_their_own(capsys):
    assert run_command_line(["show", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("Arguments:") == 1
    assert text.index("Arguments:") < text.index("What:")
    assert "OUTPUT  The folder" in text


def test_contradicting_options_are_refused(capsys):
    assert run_command_line([*RUN, "--simulate", "--labels", "a,b"]) == 2
    assert "only --task moderate has labels" in capsys.readouterr().err


def test_status_and_stop_start_nothing_and_write_nothing(capsys, tmp_path):
    assert run_command_line(["status"]) == 0
    assert run_command_line(["stop"]) == 0
    assert "No run yet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_unknown_run_is_a_usage_error(capsys):
    assert run_command_line(["status", "r7"]) == 2
    assert "no batch run r7" in capsys.readouterr().err
