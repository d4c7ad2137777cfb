"""`claude-batch sql` as a process: what it prints, its exit codes, its prompt, an object store."""

import csv
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.storage.store import Store
from tests.fault.object_store import run_object_store
from tests.stack import REPOSITORY
from tests.unit.verbs.conftest import HAIKU, Lake

COMMAND = [sys.executable, "-m", "claude_batch_dagster.cli", "sql"]


def environ(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def sql(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"env": environ(), "input": "", **options}
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path)
    made.texts("one", "two", 'a, "b"\nc [red]x[/red]', None)
    answers = {"one": '{"summary": "1"}', "two": '{"summary": "2"}'}

    def answer(asked: Any) -> dict[str, Any]:
        text = next((answer for word, answer in answers.items() if word in asked.text), None)
        return {"answer": text, "cost_nano_usd": 1_000} if text else {"outcome": "errored", "error": "api_error: [red]x[/red]"}

    job = made.job(Summarize(name="summaries", column="text", model=HAIKU), columns=["id", "text"])
    made.finish(job, answer)
    made.publish(job)
    return made


def test_a_query_is_printed_as_a_table_with_the_rows_as_they_are(lake: Lake) -> None:
    done = sql("FROM failures", "--root", "root", cwd=lake.folder)
    assert (done.returncode, done.stderr) == (0, "")
    line = next(line for line in done.stdout.splitlines() if "api_error" in line)
    assert line.split("  ")[0].strip() == "summaries"
    assert "api_error: [red]x[/red]" in line
    assert all("\x1b" not in line for line in done.stdout)


def test_csv_and_json_hold_all_rows(lake: Lake) -> None:
    query = "SELECT id, text, status, cost_usd FROM summaries ORDER BY id"
    done = sql(query, "--root", "root", "--output", "out", "--csv", cwd=lake.folder)
    rows = list(csv.DictReader(done.stdout.splitlines(keepends=True)))
    assert [row["status"] for row in rows] == ["succeeded", "succeeded", "errored", "skipped"]
    assert rows[2]["text"] == 'a, "b"\nc [red]x[/red]'
    assert rows[3]["text"] == ""
    done = sql(query, "--root", "root", "--output", "out", "--json", cwd=lake.folder)
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["columns"] == ["id", "text", "status", "cost_usd"]
    assert found["rows"][0] == [0, "one", "succeeded", 1e-6]
    assert (found["rows"][3][1], found["exit_code"], found["error"]) == (None, 0, None)
    strange = "SELECT 'Infinity'::DOUBLE AS n, {'a': 1, 'b': ['x']} AS s, '\\xAB'::BLOB AS b, 0.1::DOUBLE + 0.2 AS f"
    (row,) = json.loads(sql(strange, "--root", "root", "--json", cwd=lake.folder).stdout, parse_constant=pytest.fail)["rows"]
    assert row == [None, {"a": 1, "b": ["x"]}, "ab", 0.1 + 0.2]
    assert next(csv.reader(sql(strange, "--root", "root", "--csv", cwd=lake.folder).stdout.splitlines()[1:])) == [
        "inf",
        '{"a": 1, "b": ["x"]}',
        "ab",
        "0.30000000000000004",
    ]
    assert sql(strange, "--root", "root", cwd=lake.folder).stdout.split()[-2:] == ["ab", "0.3"]
    many = sql("--root", "root", "--csv", "FROM range(30000)", cwd=lake.folder)
    assert len(many.stdout.splitlines()) == 30_001
    some = sql("--root", "root", "FROM range(30000)", cwd=lake.folder)
    assert "The first 200 rows; --csv prints all of them." in some.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["SELEC 1"], 2, 'Parser Error: syntax error at or near "SELEC"'),
        (["SELECT nix FROM runs"], 2, 'Referenced column "nix" not found'),
        (["COPY runs TO 'x.csv'"], 2, "only what reads is carried out"),
        (["FROM out", "--output", "nowhere"], 2, "holds no output"),
        (["FROM runs", "--csv", "--json"], 2, "exclude each other"),
        ([], 2, "There is no statement"),
        (["FROM read_parquet('nowhere.parquet')"], 1, "No files found"),
    ],
)
def test_mistakes_end_with_their_code_and_words_and_with_json_also_as_an_object(
    lake: Lake, arguments: Sequence[str], code: int, words: str
) -> None:
    done = sql(*arguments, "--root", "root", cwd=lake.folder)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if "--csv" not in arguments:
        told = json.loads(sql(*arguments, "--root", "root", "--json", cwd=lake.folder).stdout.splitlines()[-1])
        assert told["exit_code"] == code
        assert words in told["error"]["message"]
    assert not (lake.folder / "x.csv").exists()


def test_a_root_that_is_not_there_is_no_root_without_answers(lake: Lake) -> None:
    done = sql("FROM answers", "--root", "rot", "--json", cwd=lake.folder)
    assert done.returncode == 1
    assert f"There is no root at {lake.folder}/rot: it has no root.json" in json.loads(done.stdout)["error"]["message"]
    assert not (lake.folder / "rot").exists()
    of_output = sql("SELECT count(*) AS n FROM summaries", "--root", "rot", "--output", "out", "--csv", cwd=lake.folder)
    assert (of_output.returncode, of_output.stdout) == (0, "n\n4\n")


def test_the_views_are_listed_with_what_they_mean(lake: Lake) -> None:
    done = sql("--views", "--root", "root", "--output", "out", cwd=lake.folder)
    names = [line.partition(":")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert names == ["summaries", "responses", "answers", "failures", "cost_by_day", "batches", "runs"]
    listed = json.loads(sql("--views", "--json", "--root", "root", "--output", "out", cwd=lake.folder).stdout)["views"]
    assert [view["name"] for view in listed] == names
    without = [f"{view['name']}.{one['name']}" for view in listed[1:] for one in view["columns"] if not one["description"]]
    assert without == []
    assert "hugeint" not in done.stdout


def test_a_root_with_simulated_answers_alone_is_meant_with_a_word_about_it(lake: Lake) -> None:
    os.rename(lake.folder / "root", lake.folder / "simulated")
    (lake.folder / "root").mkdir()
    os.rename(lake.folder / "simulated", lake.folder / "root" / "simulated")
    done = sql("SELECT count(*) AS n FROM answers", "--root", "root", "--csv", cwd=lake.folder)
    assert done.stdout == "n\n3\n"
    assert "Simulated answers" in done.stderr
    assert sql("SELECT 1 AS n", "--root", "root", "--csv", "--simulate", cwd=lake.folder).stderr == ""
    assert sorted(path.name for path in (lake.folder / "root").iterdir()) == ["simulated"]


def test_standard_input_is_a_statement_and_a_reader_that_leaves_is_no_failure(lake: Lake) -> None:
    assert sql("--root", "root", "--csv", cwd=lake.folder, input="SELECT 7 AS n;\n").stdout == "n\n7\n"
    line = " ".join([*COMMAND, "--root root --csv 'FROM range(10000000)' | head -2"])
    done = subprocess.run(["bash", "-c", line], cwd=lake.folder, env=environ(), capture_output=True, text=True, timeout=120)
    assert done.stdout == "range\n0\n"
    assert "Traceback" not in done.stderr


def test_the_prompt_goes_on_after_a_mistake_and_ends_with_the_input(lake: Lake) -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--root", "root"], cwd=lake.folder, env=environ(TERM="dumb"), stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    typed = iter(["SELEC;\n", "SELECT count(*) + 40\n", "AS n FROM answers;\n", ".views\n", ".help\n", "\x04"])
    seen, asked = "", 0
    deadline = time.monotonic() + 90
    try:
        while time.monotonic() < deadline:
            prompts = seen.count("sql> ") + seen.count("...> ")
            if prompts > asked:
                asked = prompts
                os.write(main, next(typed, "\x04").encode())
            try:
                seen += os.read(main, 65_536).decode(errors="replace")
            except OSError:
                break
        assert process.wait(30) == 0, seen
    finally:
        process.kill()
        process.wait(10)
        os.close(main)
    assert "Parser Error" in seen
    assert "43" in seen
    assert "End a statement with `;`" in seen
    assert "What became of the request" in seen


def test_an_object_store_is_read_with_the_same_credentials_as_everything_else(lake: Lake) -> None:
    with run_object_store() as objects, pytest.MonkeyPatch.context() as patch:
        for name, value in objects.environ().items():
            patch.setenv(name, value)
        for place in ("root", "out"):
            local, remote = Store(str(lake.folder / place)), Store(f"s3://lake/team a/{place}")
            for path in local.list(""):
                remote.put(path, local.get(path) or b"")
        query = "SELECT outcome, count(*) AS n FROM answers JOIN summaries USING (request_key) GROUP BY ALL ORDER BY outcome"
        done = sql(query, "--root", "s3://lake/team a/root", "--output", "s3://lake/team a/out", "--csv", cwd=lake.folder, env=environ())
        assert (done.stdout, done.stderr) == ("outcome,n\nerrored,1\nsucceeded,2\n", "")
        assert {request.method for request in objects.requests[-5:]} <= {"GET", "HEAD"}
