"""Queries for the rows to look at: DuckDB reads them, and a shell reads the command."""

import subprocess
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.reporting.queries import quote_name, quote_shell, quote_text, select_rows, show_command


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("review_id", "review_id"),
        ("status", "status"),
        ("order", '"order"'),
        ("try_cast", '"try_cast"'),
        ("Review", '"Review"'),
        ("a b", '"a b"'),
        ('a"b', '"a""b"'),
        ("1st", '"1st"'),
    ],
)
def test_names_are_quoted_where_they_need_it(name: str, quoted: str) -> None:
    assert quote_name(name) == quoted


def test_no_word_of_sql_stands_without_quotes() -> None:
    words = duckdb.sql("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'").fetchall()
    assert [word for (word,) in words if quote_name(word) == word] == []


@pytest.mark.parametrize("text", ["it's", 'a "name"', "$HOME `id` \\ x", "wow!", "two\nlines", ""])
def test_a_shell_reads_what_was_quoted(text: str) -> None:
    said = subprocess.run(["sh", "-c", f"printf %s {quote_shell(text)}"], capture_output=True, text=True, check=True)
    assert said.stdout == text


def test_the_command_names_the_file_as_it_is_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake").mkdir()
    pq.write_table(pa.table({"review_id": [1, 2], "order": [7, 8], "status": ["succeeded", "it's"]}), tmp_path / "lake" / "part-0.parquet")
    sql = select_rows(["review_id", "order"], f"{tmp_path}/lake/part-0.parquet", "status = " + quote_text("it's"))
    assert duckdb.sql(sql).fetchall() == [(2, 8)]
    assert str(tmp_path) in show_command(sql), "from elsewhere, whole"
    monkeypatch.chdir(tmp_path)
    assert show_command(sql).splitlines() == [
        "```sh",
        'claude-batch sql "SELECT review_id, \\"order\\"',
        "FROM 'lake/part-0.parquet'",
        "WHERE status = 'it''s' LIMIT 20\"",
        "```",
    ]
    command = "\n".join(show_command(sql).splitlines()[1:-1]).replace("claude-batch sql", "printf %s")
    asked = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert asked.stdout == sql.replace(f"{tmp_path}/", "")
    assert duckdb.sql(asked.stdout).fetchall() == [(2, 8)]


def test_a_text_cannot_end_the_block() -> None:
    fence, command, end = show_command("SELECT '```!'").splitlines()
    assert (fence, end) == ("````sh", "````")
    assert "```!" in command
