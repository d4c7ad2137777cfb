"""Planning and publishing partitions that are no hive folders of the source."""

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.storage.dataset import ListedDataset, ParquetDataset
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.show import show_row
from tests.unit.verbs.conftest import HAIKU, Lake

DAYS = [date(2026, 11, 1), date(2026, 11, 2)]


def job(lake: Lake, path: str, days: tuple[str, ...] | None = None, **more: Any) -> Job:
    source = ListedDataset(path=str(lake.folder / "source" / path), key="id", partition_column="day", only=days)
    return lake.job(**{"source": source, "partitions": days, **more})


def write_days(lake: Lake, second: str = "two") -> Path:
    days = [DAYS[0], DAYS[1], DAYS[0]]
    return lake.write({"id": [1, 1, 2], "day": days, "text": ["one", second, None]}, row_group_size=2)


def test_a_column_in_the_files_is_asked_and_published_by_partition(lake: Lake) -> None:
    write_days(lake)
    both = job(lake, "reviews.parquet", columns=["id", "day"])
    entry = lake.finish(both)
    assert entry is not None
    assert entry.keys.count == 2
    lake.publish(both, ["2026-11-01", "2026-11-02"])
    table = lake.read(path="day=2026-11-01/part-0.parquet")
    assert table.column_names[:2] == ["id", "summary"], "the column stands in the path"
    assert table.select(["id", "summary", "status"]).to_pylist() == [
        {"id": 1, "summary": "one", "status": "succeeded"},
        {"id": 2, "summary": None, "status": "skipped"},
    ]
    assert lake.read(path="day=2026-11-02/part-0.parquet")["summary"].to_pylist() == ["two"]
    story = show_row(str(lake.folder / "out" / "summaries"), "1", lake.store.uri, partition="2026-11-02")
    assert story.row["summary"] == "two"


def test_one_partition_of_a_column_asks_about_its_rows_only_and_a_changed_neighbour_changes_nothing(lake: Lake) -> None:
    write_days(lake)
    first = job(lake, "reviews.parquet", ("2026-11-01",))
    assert [one.text for shard in lake.requests(lake.plan(first)) for one in shard] == ["<document>\none\n</document>"]
    lake.finish(first)
    write_days(lake, second="another")
    assert lake.plan(first).total.asked == 0
    second = lake.plan(job(lake, "reviews.parquet", ("2026-11-02",)))
    assert (second.total.asked, second.total.rows) == (1, 1)
    lake.finish(job(lake, "reviews.parquet", ("2026-11-02",)))
    kept = lake.plan(job(lake, "reviews.parquet", ("2026-11-01", "2026-11-02")))
    assert (kept.total.asked, kept.total.already_answered, kept.total.rows) == (0, 2, 3)


def test_kept_keys_of_one_partition_are_not_taken_for_anothers(lake: Lake) -> None:
    """Both partitions come from one file of one version: only the partition tells their keys apart."""
    write_days(lake)
    both = job(lake, "reviews.parquet")
    lake.finish(both)
    lake.publish(both, ["2026-11-01", "2026-11-02"])
    lake.publish(both, ["2026-11-02", "2026-11-01"])
    assert lake.read(path="day=2026-11-02/part-0.parquet")["summary"].to_pylist() == ["two"]
    assert lake.read(path="day=2026-11-01/part-0.parquet")["summary"].to_pylist() == ["one", None]


def test_a_partition_that_is_in_no_row_is_left_out_with_the_reason(lake: Lake) -> None:
    write_days(lake)
    plan = lake.plan(job(lake, "reviews.parquet", ("2026-11-01", "2026-11-09")))
    assert plan.total.rows == 2
    assert "no row in" in plan.bad_partitions["2026-11-09"]


def test_a_template_is_asked_and_published_by_partition(lake: Lake) -> None:
    for day in ("01", "02"):
        lake.texts(f"of {day}", path=f"2026/11/{day}/part.parquet")
    days = ("2026-11-01", "2026-11-02", "2026-11-03")
    dated = job(lake, "{partition:%Y/%m/%d}/*.parquet", days)
    plan, _ = lake.admit(dated)
    assert list(plan.bad_partitions) == ["2026-11-03"]
    lake.finish(job(lake, "{partition:%Y/%m/%d}/*.parquet", days[:2]))
    lake.publish(dated, days[:2])
    assert (lake.folder / "out/summaries/day=2026-11-02/part-0.parquet").exists()


def test_tasks_on_the_output_of_tasks_ask_again_what_changed_upstream_and_skip_what_failed(lake: Lake) -> None:
    lake.texts("one", "two", "bad")

    def answer(asked: Any) -> dict[str, Any]:
        if "bad" in asked.text:
            return {"outcome": "refused", "error": "refusal: no category given"}
        text = asked.text.removeprefix("<document>\n").removesuffix("\n</document>")
        return {"answer": f'{{"summary": "{text}"}}'}

    first = lake.job()
    lake.finish(first, answer)
    lake.publish(first)
    second_task = Summarize(name="shorter", column="summary", model=HAIKU)
    second = lake.job(second_task, source=ParquetDataset(path=str(lake.folder / "out" / "summaries"), key="id"))
    plan = lake.plan(second)
    assert (plan.total.asked, plan.total.skipped) == (2, 1)
    lake.finish(second)
    lake.publish(second)
    assert lake.read("shorter")["status"].to_pylist() == ["succeeded", "succeeded", "skipped"]
    lake.texts("one", "changed", "bad")
    lake.finish(first, answer)
    lake.publish(first)
    assert lake.plan(second).total.asked == 1


def test_a_source_that_grows_is_asked_about_its_new_rows_only(lake: Lake) -> None:
    whole = lake.job(path="")
    lake.texts("one", path="a.parquet")
    lake.finish(whole)
    lake.write({"id": [10, 11], "text": ["two", "three"]}, "b.parquet")
    plan = lake.plan(whole)
    assert (plan.total.asked, plan.total.already_answered) == (2, 1)
    lake.finish(whole)
    lake.publish(whole)
    assert pq.read_table(lake.folder / "out/summaries/part-0.parquet")["id"].to_pylist() == [0, 10, 11]
    assert pa.compute.all(pa.compute.equal(lake.read()["status"], "succeeded")).as_py()
