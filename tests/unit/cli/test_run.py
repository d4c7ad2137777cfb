"""From options to a job, and the question before much is spent."""

import io
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.cli import run
from claude_batch_dagster.cli.progress import PlainProgress
from claude_batch_dagster.cli.reach import Place
from claude_batch_dagster.cli.report import Known

ARGUMENTS = {
    **{"task": "summarize", "column": "text", "model": None, "labels": None, "max_words": None, "keys": ("id",), "columns": "key"},
    **{"limit": None, "ask_again": (), "retry_failed": False, "no_preflight": False},
    **{"partition_column": None, "max_cost_usd": None, "max_requests_per_batch": 100, "max_in_flight_batches": 2, "replace": False},
}


def build(folder: Path, *, endpoint: str = "anthropic", **given):
    place = Place(base=str(folder), root=str(folder / "root"), endpoint=endpoint, simulate=False)
    return run.build_job(place, {**ARGUMENTS, "source": str(folder / "in"), "output": str(folder / "out"), **given})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in ("2026-11-01", "2026-11-02"):
        file = tmp_path / "in" / f"day={day}" / "part-0.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [1], "text": ["a"]}), file)
    return tmp_path


def ask(monkeypatch, job, *, is_terminal: bool):
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(run.sys, stream, SimpleNamespace(isatty=lambda: is_terminal, write=str, flush=str))
    return run.confirm_above(PlainProgress(io.StringIO()), job, Known())


def planned(worst_nano_usd: int | None):
    return SimpleNamespace(
        worst_nano_usd=worst_nano_usd,
        expected_nano_usd=1,
        total=SimpleNamespace(asked=5, rows=7),
        batches=1,
        reasons={"new": 2, "task_changed": 3},
        changed_parts={"summaries": ("model: a -> b", "prompt")},
    )


def test_partition_column_is_found_where_there_is_one_hive_column(folder):
    assert build(folder).source.partition_column == "day"
    assert build(folder, source=str(folder / "in" / "day=2026-11-01" / "part-0.parquet")).source.partition_column is None


def test_columns_are_a_word_or_a_list(folder):
    assert build(folder, columns="all").targets[0].columns == "all"
    assert build(folder, columns="id, text").targets[0].columns == ("id", "text")


def test_nobody_is_asked_without_terminal_with_a_cap_or_where_nothing_is_paid(folder, monkeypatch):
    assert ask(monkeypatch, build(folder), is_terminal=False) is None
    assert ask(monkeypatch, build(folder, max_cost_usd=50.0), is_terminal=True) is None
    assert ask(monkeypatch, build(folder, endpoint="simulator"), is_terminal=True) is None


def test_person_at_a_terminal_is_asked_above_ten_dollars_and_where_the_price_is_unknown(folder, monkeypatch):
    confirm = ask(monkeypatch, build(folder), is_terminal=True)
    assert confirm is not None
    questions = []
    monkeypatch.setattr(run, "ask_line", lambda text: questions.append(text) or ("y" if len(questions) == 1 else ""))
    assert confirm(planned(10_000_000_000))
    assert questions == []
    assert confirm(planned(10_000_000_001))
    assert questions == ["Send them? [y/N] "]
    with pytest.raises(run.NotConfirmedError, match=r"none of 5 requests was sent\. Nothing was written\..*--limit 20"):
        confirm(planned(None))


def test_question_says_rows_cost_and_why_so_many(folder):
    text = "\n".join(run.question_lines(build(folder), planned(10_000_000_001)))
    for part in (
        "5 requests of 7 rows to claude-haiku-5-5 in 1 batch",
        "2 new, 3 because the task changed",
        "what changed in summaries: model: a -> b, prompt",
        "at most $10.00",
    ):
        assert part in text


def test_flags_of_which_rows_are_the_jobs(folder):
    job = build(folder, limit=5, ask_again=("1,a", "2"), retry_failed=True, no_preflight=True)
    assert (job.limit, job.ask_again, job.retry_failed, job.preflight) == (5, ("1,a", "2"), True, False)
