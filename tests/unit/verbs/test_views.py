"""Outputs, answers and runs in SQL."""

import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import RootError, UsageError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import pin_root
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.views import Views, open_views
from tests.unit.storage.responses_of import ALWAYS, HARD, LONG_AGO, NOON, OUTCOMES, write
from tests.unit.verbs.conftest import HAIKU, Lake

BUILT_IN = ["responses", "answers", "failures", "cost_by_day", "batches", "runs"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "root"))
    pin_root(made, RootRecord(root_id="r", endpoint="simulator", temporal_namespace="default"))
    return made


def ask(views: Views, sql: str) -> list[tuple[Any, ...]]:
    return list(views.query(sql).rows)


def published(lake: Lake) -> None:
    """A run of three rows, one of which is refused; published."""
    lake.texts("one", "two", "bad", None)

    def answer(asked: Any) -> dict[str, Any]:
        if "bad" in asked.text:
            return {"outcome": "refused", "error": "refusal: no category given", "cost_nano_usd": 500}
        return {"answer": '{"summary": "fine"}', "cost_nano_usd": 1_000, "input_tokens": 10, "output_tokens": 5}

    lake.finish(lake.job(), answer)
    lake.publish(lake.job())


def test_an_empty_root_has_the_views_and_no_rows_and_stays_empty(tmp_path: Path) -> None:
    with open_views(str(tmp_path / "root")) as views:
        assert [view.name for view in views.list()] == BUILT_IN
        assert all(ask(views, f"FROM {name}") == [] for name in BUILT_IN)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_a_view_by_its_assets_key_with_described_columns(lake: Lake) -> None:
    published(lake)
    with open_views(lake.store.uri, [str(lake.folder / "out")]) as views:
        assert ask(views, "SELECT id, summary, status FROM summaries ORDER BY id") == [
            (0, "fine", "succeeded"), (1, "fine", "succeeded"), (2, None, "refused"), (3, None, "skipped"),
        ]  # fmt: skip
        output = next(view for view in views.list() if view.name == "summaries")
        described = {name: text for name, _, text in output.columns}
        assert described["status"].startswith("What became of the row")
        assert (described["id"], output.description.partition(":")[0]) == ("", f"Output {lake.folder}/out/summaries")
    with open_views(lake.store.uri, [str(lake.folder / "out" / "summaries")]) as views:
        assert ask(views, "SELECT count(*) FROM summaries") == [(4,)]


def test_outputs_below_the_root_are_found_and_keys_of_several_parts_are_one_name(lake: Lake) -> None:
    published(lake)
    for below in ("output/team/summaries", "output/answers", "output/team_summaries"):
        target = lake.folder / "root" / below
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(lake.folder / "out" / "summaries", target)
    with open_views(lake.store.uri) as views:
        assert [view.name for view in views.list()] == ["answers_output", "team_summaries", "team_summaries_output", *BUILT_IN]
        assert ask(views, "SELECT count(*) FROM answers_output") == [(4,)]
        assert ask(views, "SELECT count(*) FROM answers") == [(3,)]


@pytest.mark.parametrize("last", ["2026-11-03", "a/b"])
def test_partitions_are_one_view_with_the_partition_as_text_whatever_each_file_has(lake: Lake, last: str) -> None:
    days = {"2026-11-01": "one", "2026-11-02": "two", last: "three"}
    for day, text in days.items():
        lake.texts(text, path=f"days/day={day.replace('/', '%2F')}/part-0.parquet")
    job = lake.job(path="days", partition_column="day")
    lake.finish(job)
    lake.publish(job, list(days))
    file = lake.folder / "out/summaries/day=2026-11-02/part-0.parquet"
    pq.write_table(pq.ParquetFile(file).read().drop_columns(["stop_reason"]), file)
    with open_views(lake.store.uri, [str(lake.folder / "out")]) as views:
        rows = ask(views, "SELECT day, summary, stop_reason FROM summaries ORDER BY day")
        assert rows == [(day, text, None) for day, text in days.items()]


def test_a_folder_whose_path_is_a_glob_is_read_as_it_is_written(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "a[b]*'c")
    published(lake)
    published(Lake(tmp_path / "ab'c"))
    published(Lake(tmp_path / "a[b]*'c" / "a[b]x'c"))
    with open_views(lake.store.uri, [str(lake.folder / "out")]) as views:
        assert ask(views, "SELECT count(*) FROM summaries") == [(4,)]
        assert ask(views, "SELECT count(*) FROM answers") == [(3,)]


def test_answers_join_with_outputs_and_say_what_failed_and_what_it_cost(lake: Lake) -> None:
    published(lake)
    with open_views(lake.store.uri, [str(lake.folder / "out")]) as views:
        assert ask(views, "SELECT count(*) FROM summaries JOIN answers USING (task_key, request_key)") == [(3,)]
        assert ask(views, "SELECT task, outcome, reason, requests, example, cost_usd FROM failures") == [
            ("summaries", "refused", "refusal", 1, "refusal: no category given", 5e-7)
        ]
        ((day, task, model, responses, tokens, cost),) = ask(
            views, "SELECT CAST(day AS VARCHAR), task, model, responses, input_tokens, cost_usd FROM cost_by_day"
        )
        assert (day, task, model, responses, tokens) == ("2026-11-22", "summaries", HAIKU, 3, 20)
        assert cost == pytest.approx(2.5e-6)
        assert ask(views, "SELECT tasks, responses, succeeded, failed FROM batches") == [("summaries", 3, 2, 0)]
        assert ask(views, "SELECT run, outcome, tasks, requests, batches, error FROM runs") == [("r1", "finished", "summaries", 3, 1, None)]


def test_an_open_run_and_a_task_of_two_names_are_told(lake: Lake) -> None:
    published(lake)
    lake.texts("one", "new")
    renamed = lake.job(Summarize(name="short", column="text", model=HAIKU))
    lake.admit(renamed)
    with open_views(lake.store.uri) as views:
        assert ask(views, "SELECT run, outcome, tasks, requests, batches FROM runs ORDER BY run") == [
            ("r1", "finished", "summaries", 3, 1),
            ("r2", "open", "short", 1, None),
        ]
        assert ask(views, "SELECT DISTINCT task FROM responses") == [("short",)]


def random_responses(numbers: random.Random) -> Iterator[tuple[bytes, Response]]:
    for key in HARD:
        if numbers.random() < 0.6:
            (outcome, error) = numbers.choice(list(OUTCOMES))
            yield key, Response(request_key=key, outcome=outcome, error=error, answer=str(numbers.random()), cost_nano_usd=1)


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_those_that_publishing_would_take(store: Store, seed: int) -> None:
    """Of many responses to few requests, in files that are compacted half way."""
    numbers = random.Random(seed)
    for batch in range(12):
        responses = [response for _, response in random_responses(numbers)]
        write(store, f"batch-{numbers.randrange(10**6)}", responses, minutes=numbers.choice((0, 0, 1, 2)), number=numbers.choice((1, 2)))
        if batch == 6:
            maintain_responses(store, "simulator", "t", now=NOON + LONG_AGO, limits=ALWAYS)
    taken = Answers(store, "simulator", "t")
    keys = pack_keys(HARD)
    places = taken.find(keys)
    table = taken.fetch(places[places >= 0])
    wanted = {
        HARD[at].hex(): (row["outcome"], row["answer"], row["batch_id"])
        for at, row in zip(np.flatnonzero(places >= 0).tolist(), table.to_pylist(), strict=True)
    }
    with open_views(store.uri) as views:
        found = {row[0]: row[1:] for row in ask(views, "SELECT request_key, outcome, answer, batch_id FROM answers")}
        total = ask(views, "SELECT count(*), count(DISTINCT (request_key, batch_id)) FROM responses")
    assert found == wanted
    assert total[0][0] == total[0][1] > len(found)


def test_a_response_that_is_in_two_files_is_one_row(store: Store) -> None:
    responses = [response for _, response in random_responses(random.Random(1))]
    for name in ("a", "b"):
        write(store, f"batch-{name}", responses)
    maintain_responses(store, "simulator", "t", now=NOON + LONG_AGO, limits=ALWAYS)
    assert [path for path in store.list("responses") if "compacted-" in path]
    # Collected once more, by a worker that was late.
    write(store, "batch-a", [*responses, Response(request_key=b"z" * 16, outcome="succeeded")])
    with open_views(store.uri) as views:
        assert ask(views, "SELECT count(*) FROM responses") == [(2 * len(responses) + 1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "COPY runs TO '{file}'",
        "EXPLAIN ANALYZE COPY runs TO '{file}'",
        "explain (analyze) copy runs to '{file}'",
        "ATTACH '{file}'",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW runs",
        "SET threads = 1",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "CALL start_ui()",
        "EXPORT DATABASE '{file}'",
        "SELECT 1; SELECT 2",
        "-- nothing",
    ],
)
def test_what_does_more_than_read_is_refused(store: Store, tmp_path: Path, sql: str) -> None:
    file = tmp_path / "written"
    with open_views(store.uri) as views, pytest.raises(UsageError, match="Nothing was read"):
        views.query(sql.format(file=file))
    assert not file.exists()


@pytest.mark.parametrize(
    "sql", ["SELECT 1", "FROM runs", "WITH a AS (SELECT 1) FROM a", "DESCRIBE runs", "SUMMARIZE runs", "SHOW TABLES", "EXPLAIN FROM runs",
            "EXPLAIN ANALYZE SELECT 1", "PIVOT (SELECT 1 AS a, 'x' AS b) ON b USING sum(a)", "VALUES (1);"],
)  # fmt: skip
def test_what_reads_is_carried_out(store: Store, sql: str) -> None:
    with open_views(store.uri) as views:
        assert views.query(sql).columns


def test_mistakes_are_told_with_duckdbs_words_and_files_that_are_gone_apart(store: Store) -> None:
    write(store, "batch-a", [response for _, response in random_responses(random.Random(1))])
    with open_views(store.uri) as views:
        for sql, words in (("SELEC 1", "syntax error"), ("SELECT nix FROM runs", "nix"), ("SELECT 'a'::INT", "Could not convert")):
            with pytest.raises(UsageError, match=words):
                list(views.query(sql).rows)
        for path in store.list("responses"):
            store.delete(path)
        with pytest.raises(RootError, match="batch-a"):
            list(views.query("SELECT answer FROM responses").rows)


def test_a_folder_without_an_output_and_a_missing_duckdb_say_what_to_do(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"holds no output: there is no _claude_batch.json"), open_views(store.uri, [str(tmp_path / "no")]):
        pass
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(RootError, match=r"pip install 'claude-batch-dagster\[duckdb\]'"), open_views(store.uri):
        pass


def test_the_connection_is_the_callers(store: Store) -> None:
    with open_views(store.uri) as views:
        assert isinstance(views.connection, duckdb.DuckDBPyConnection)
        assert views.connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)
