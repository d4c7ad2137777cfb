"""Errors of the verbs that only a broken run can cause, each provoked once."""

from typing import Any

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import OutputError, RootError, RunError, UsageError
from claude_batch_dagster.core.records import DoneRecord
from claude_batch_dagster.storage.output import MARKER
from claude_batch_dagster.storage.output_file import OutputWriter
from claude_batch_dagster.verbs import run
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.execute import check_concluded, check_end
from claude_batch_dagster.verbs.show import show_row
from tests.unit.verbs.conftest import NOON, Lake

NOWHERE = Connection(address="127.0.0.1:9")


def done(lake: Lake, run_id: str, rows: dict[str, int], outcome: str = "finished", error: str | None = None) -> DoneRecord:
    return DoneRecord(
        run_id=run_id, finished_at=NOON.isoformat(), outcome=outcome, rows=rows, batches=1, usage=(), cost_nano_usd=0, error=error
    )


def test_a_run_that_lost_requests_is_not_published(lake: Lake) -> None:
    lake.texts("a", "b")
    entry = lake.admit(lake.job())[1].own
    assert entry is not None
    with pytest.raises(
        RootError, match=r"r1 concluded 1 of its 2 requests\. Nothing was written\. Please report this with the root's log/"
    ):
        check_concluded(entry, done(lake, entry.run_id, {"succeeded": 1}))


def test_a_failed_run_says_why(lake: Lake) -> None:
    lake.texts("a")
    entry = lake.admit(lake.job())[1].own
    assert entry is not None
    ended = done(lake, entry.run_id, {"pending": 1}, "failed", "the key is refused. Check it.")
    with pytest.raises(RunError, match=r"Batch run r1 failed: the key is refused\. Check it\."):
        check_end(entry, ended, None)


def test_a_plan_that_nobody_confirms_is_not_sent(lake: Lake) -> None:
    lake.texts("a", "b")
    with pytest.raises(
        UsageError, match=r"Not confirmed: none of 2 requests was sent\. Nothing was written\. To send them without a question"
    ):
        run.run_job(lake.job(), NOWHERE, confirm=lambda _: False)
    assert lake.store.list("log") == []


def test_an_output_whose_rows_do_not_add_up_is_not_trusted(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.texts("a", "b")
    job = lake.job()
    lake.finish(job)
    append = OutputWriter.append

    def append_twice(*arguments: Any) -> None:
        append(*arguments)
        append(*arguments)

    monkeypatch.setattr(OutputWriter, "append", append_twice)
    with pytest.raises(OutputError, match=r"has 4 rows and its source 2\. Do not use it, and please report this\."):
        lake.publish(job)


def test_a_key_column_that_is_not_carried_cannot_be_shown_by(lake: Lake) -> None:
    lake.texts("a")
    job = lake.job()
    lake.finish(job)
    lake.publish(job)
    with pytest.raises(UsageError, match=r"has no column 'name'; it has id, summary, .*\. Name one that it carries\."):
        show_row(job.targets[0].output, "0", lake.store.uri, key_columns=("name",))


def test_an_output_of_this_tool_without_its_facts_is_not_shown(lake: Lake) -> None:
    lake.texts("a")
    job = lake.job()
    lake.finish(job)
    lake.publish(job)
    pq.write_table(lake.read().replace_schema_metadata(None), lake.folder / "out" / "summaries" / "part-0.parquet")
    with pytest.raises(
        OutputError, match=r"part-0\.parquet was not written by this tool: it does not say which task wrote it\. Nothing is shown\. Name"
    ):
        show_row(job.targets[0].output, "0", lake.store.uri)


def test_an_output_with_a_broken_marker_is_not_shown(lake: Lake) -> None:
    lake.texts("a")
    job = lake.job()
    lake.finish(job)
    lake.publish(job)
    (lake.folder / "out" / "summaries" / MARKER).write_text("{")
    with pytest.raises(OutputError, match=r"The marker .*/summaries/_claude_batch\.json cannot be read: .*\. Publish the output again\."):
        show_row(job.targets[0].output, "0", lake.store.uri)


def test_a_value_that_stands_in_several_rows_needs_the_name_of_the_key(lake: Lake) -> None:
    lake.write({"id": [1, 2], "shop": ["north", "north"], "text": ["a", "b"]})
    job = lake.job(columns="all")
    lake.finish(job)
    lake.publish(job)
    with pytest.raises(UsageError, match=r"2 rows of .* have 'north' in a column that it carries\. Say which is the key: --key NAME\."):
        show_row(job.targets[0].output, "north", lake.store.uri, key_columns=("shop",))


def test_kept_keys_of_another_length_are_not_joined(lake: Lake) -> None:
    lake.texts("a", "b")
    job = lake.job()
    lake.finish(job)
    (kept,) = (lake.folder / "root" / "keys").glob("*.parquet")
    pq.write_table(pq.read_table(kept).slice(0, 0), kept)
    with pytest.raises(
        OutputError, match=r"reviews\.parquet: 0 rows read, 0 keyed, 2 in the footer\. Nothing was written\. Write the file"
    ):
        lake.publish(job)
    assert not (lake.folder / "out" / "summaries" / "part-0.parquet").exists()


@pytest.mark.parametrize("share", [-0.1, 5.0])
def test_a_share_of_failures_is_between_none_and_all(lake: Lake, share: float) -> None:
    with pytest.raises(UsageError, match=rf"fail_above is {share}; it is a share of the rows, 0 to 1\. Nothing was sent\. For 5 %"):
        lake.job(fail_above=share)
