"""The story of one row, from the output, the root's records and the source."""

import json
from datetime import timedelta

import pyarrow as pa
import pytest

from claude_batch_dagster.core.errors import OutputError, UsageError
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason, Send
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.plans import append_submission
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.verbs.show import RowStory, show_row
from tests.unit.verbs.conftest import HAIKU, NOON, SUMMARIES, Lake

TOPICS = ClaudeTask(
    name="topics",
    model=HAIKU,
    prompt="{stars} stars: {text}",
    max_tokens=50,
    output={"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"], "additionalProperties": False},
)
SEND = Send(count=2, sha256="0" * 64, send_s=15.0, vendor_date="", sender="s", sent_at=NOON.isoformat())


def publish(lake: Lake, job, how=None, partitions=(None,)) -> None:
    entry = lake.finish(job, how)
    if entry is not None:
        batch = Accepted(id=f"batch-{entry.number}-0", created_at=NOON.isoformat())
        for slot, record in enumerate((SEND, batch, Closed(reason=CloseReason.COLLECTED))):
            append_submission(lake.store, entry.run_id, 1, 0, slot, record)
    lake.publish(job, partitions, run=entry.label if entry else None)


def show(lake: Lake, key: str, name: str = "summaries", **more) -> RowStory:
    # The root that a person names; that simulated work is below it is for the verb to know.
    return show_row(str(lake.folder / "out" / name), key, str(lake.folder), **more)


@pytest.fixture(autouse=True)
def root_of_simulated_work(lake: Lake) -> None:
    (lake.folder / "root").mkdir()
    (lake.folder / "simulated").symlink_to(lake.folder / "root")


def test_answered_row_has_its_staged_request_and_its_attempt_with_run_and_shard(lake):
    lake.texts("first text", "second text")
    publish(lake, lake.job())
    story = show(lake, "1")
    assert story.key == {"id": 1}
    assert story.row["status"] == "succeeded"
    assert story.request is not None
    assert "second text" in str(story.request["messages"])
    assert story.request_origin == "as it was staged for batch run r1"
    (attempt,) = story.attempts
    assert (attempt.run, attempt.shard, attempt.batch_id, attempt.shown) == ("r1", "1-0", "batch-1-0", True)
    assert json.loads(attempt.answer or "") == {"summary": "second text"}
    assert (story.cost_nano_usd, story.run, story.limit) == (1_000, "r1", None)


def test_failed_row_shows_why_and_every_attempt_with_the_shown_one_marked(lake):
    lake.texts("a text")
    job = lake.job()
    publish(lake, job, lambda asked: {"outcome": "invalid", "error": "invalid: no JSON", "answer": None, "cost_nano_usd": 500})
    key = bytes.fromhex(str(show(lake, "0").row["request_key"]))
    from claude_batch_dagster.core.response import Response

    later = Response(request_key=key, outcome="succeeded", model=HAIKU, answer='{"summary":"now"}', cost_nano_usd=700)
    write_responses(
        lake.store,
        endpoint="simulator",
        task_key=SUMMARIES.task_key,
        batch_id="later",
        round_number=1,
        answered_at=NOON + timedelta(hours=1),
        responses=[later],
    )
    story = show(lake, "0")
    assert (story.row["status"], story.row["error"]) == ("invalid", "invalid: no JSON")
    assert [(one.outcome, one.shown, one.run) for one in story.attempts] == [("invalid", True, "r1"), ("succeeded", False, None)]
    assert story.cost_nano_usd == 1_200


def test_skipped_row_says_that_nothing_was_asked(lake):
    lake.texts("a text", " ")
    publish(lake, lake.job())
    story = show(lake, "1")
    assert (story.row["status"], story.request, story.attempts) == ("skipped", None, ())
    assert "null or blank" in story.request_origin


def test_pending_row_names_the_open_run_that_asks_for_it(lake):
    lake.texts("a text")
    job = lake.job()
    _, admission = lake.admit(job)
    assert admission.own is not None
    lake.publish(job)
    story = show(lake, "0")
    assert (story.row["status"], story.waits_for, story.attempts) == ("pending", "r1", ())
    assert story.request is not None


def test_changed_source_is_rendered_again_and_the_story_says_so_where_the_root_lost_its_plans(lake):
    lake.texts("before")
    publish(lake, lake.job())
    for path in lake.store.list("plans"):
        if "/requests/" in path:
            lake.store.delete(path)
    assert show(lake, "0").request_origin == "as the source renders now; no run has staged it"
    lake.texts("after")
    story = show(lake, "0")
    assert "has changed since" in story.request_origin
    assert "after" in str(story.request)
    (lake.folder / "source" / "reviews.parquet").unlink()
    assert "does not exist" in show(lake, "0").request_origin


def test_key_of_several_columns_is_typed_with_commas(lake):
    lake.write({"shop": ["a", "a"], "id": [1, 2], "stars": [5, 3], "text": ["x", "y"]})
    job = lake.job(TOPICS, key=("shop", "id"))
    publish(lake, job, lambda asked: {"answer": '{"topic":"t"}'})
    assert show(lake, "a,2", "topics").key == {"shop": "a", "id": 2}


@pytest.mark.parametrize(("key", "said"), [("2", ()), ("y", ("text",)), ("3,2", ("stars", "id"))])
def test_output_that_carries_more_than_its_key_is_searched_by_its_first_column_or_by_what_is_said(lake, key, said):
    lake.write({"id": [1, 2], "stars": [5, 3], "text": ["x", "y"]})
    publish(lake, lake.job(TOPICS, columns="all"), lambda asked: {"answer": '{"topic":"t"}'})
    assert show(lake, key, "topics", key_columns=said).row["id"] == 2


def test_key_in_several_partitions_lists_them_and_a_partition_decides(lake):
    for day in ("2026-11-01", "2026-11-02"):
        lake.texts(f"text of {day}", path=f"days/day={day}/part-0.parquet")
    job = lake.job(path="days", partition_column="day")
    publish(lake, job, partitions=("2026-11-01", "2026-11-02"))
    with pytest.raises(UsageError, match=r"several partitions .*2026-11-01, 2026-11-02.*--partition"):
        show(lake, "0")
    story = show(lake, "0", partition="2026-11-02")
    assert (story.partition, story.row["summary"]) == ("2026-11-02", "text of 2026-11-02")
    with pytest.raises(UsageError, match=r"no partition '2026-11-3'.*2026-11-0"):
        show(lake, "0", partition="2026-11-3")


def test_partition_that_is_part_of_the_key_is_found_in_the_path(lake):
    lake.texts("a text", path="days/day=2026-11-01/part-0.parquet")
    publish(lake, lake.job(path="days", partition_column="day", key=("day", "id")), partitions=("2026-11-01",))
    story = show(lake, "2026-11-01,0", key_columns=("day", "id"))
    assert story.key == {"day": "2026-11-01", "id": 0}
    assert story.request is not None


def test_limited_output_says_so(lake):
    lake.texts("one", "two", "three")
    job = lake.job(limit=2)
    lake.finish(job)
    lake.publish(job, limit=2)
    assert show(lake, "1").limit == 2
    with pytest.raises(UsageError, match="of 2 rows, the first ones of its source: it was written with limit 2"):
        show(lake, "2")


def test_unknown_key_names_the_nearest(lake):
    lake.write({"id": ["alpha", "beta"], "text": ["x", "y"]})
    publish(lake, lake.job())
    with pytest.raises(UsageError, match=r"No row .* 'alpa' \(of 2 rows\)\. The nearest are alpha"):
        show(lake, "alpa")


def test_folder_that_is_no_output_of_ours_is_refused(lake):
    with pytest.raises(OutputError, match="does not exist"):
        show(lake, "0", "nothing")
    lake.texts("a text")
    with pytest.raises(OutputError, match="not written by this tool"):
        show_row(str(lake.folder / "source"), "0", str(lake.folder))


def test_output_whose_root_is_elsewhere_is_shown_as_far_as_it_goes(lake, tmp_path):
    lake.texts("a text")
    publish(lake, lake.job())
    story = show_row(str(lake.folder / "out" / "summaries"), "0", str(tmp_path / "another"))
    assert (story.row["summary"], story.attempts, story.request) == ("a text", (), None)
    assert "it cannot be shown" in story.request_origin
    assert not (tmp_path / "another").exists()


def test_row_whose_key_is_of_another_type_is_found_as_it_reads(lake):
    lake.write({"id": pa.array([1.5, 2.0]), "text": ["x", "y"]})
    publish(lake, lake.job())
    assert show(lake, "2.0").key == {"id": 2.0}
