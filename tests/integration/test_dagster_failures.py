"""What fails, what it says, and what stays as it was: bad partitions, failed rows, caps, outputs of others."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dagster_house import (
    DAYS,
    RANGE,
    SUMMARIES,
    TOPICS,
    OpenHouse,
    asked,
    config,
    define,
    failure_metadata,
    failure_of,
    write_reviews,
)
from tests.stack import Process, RunningSimulator


@pytest.mark.parametrize("bad_day", [DAYS[0], DAYS[1]])
def test_a_bad_partition_does_not_stop_the_others_and_the_failure_names_it(place: Path, open_house: OpenHouse, bad_day: str) -> None:
    write_reviews(place, *DAYS)
    (place / "reviews" / f"day={bad_day}" / "part-0.parquet").write_bytes(b"PAR1 not really PAR1")
    house = open_house()
    result = house.materialize(define(place, partitioned=True, retry_policy=dg.RetryPolicy(max_retries=3)), tags=RANGE)
    assert not result.success
    description = failure_of(result)
    assert description.startswith(f"1 of 3 partitions were not published: {bad_day}.")
    assert "not a Parquet file" in description
    good = set(DAYS) - {bad_day}
    for name in ("summaries", "labels"):
        metadata = house.metadata(name)
        assert set(metadata) == good
        assert all(one["dagster/partition_row_count"] == 4 for one in metadata.values())
        assert {file.parent.name for file in (house.output / name).rglob("*.parquet")} == {f"day={day}" for day in good}
    # What is repaired is asked alone.
    write_reviews(place, bad_day)
    assert house.materialize(define(place, partitioned=True), partition_key=bad_day).success
    assert set(house.metadata("labels")) == set(DAYS)


def test_a_partition_without_a_folder_fails_and_is_named(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place, DAYS[0])
    description = failure_of(open_house().materialize(define(place, partitioned=True), partition_key=DAYS[2]))
    assert f"day={DAYS[2]}" in description


def test_rows_that_fail_leave_the_run_green_and_the_check_warns(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    simulator.switch_on("invalid", "all")
    result = open_house().materialize(define(place, TOPICS))
    assert result.success
    (check,) = [event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["invalid"].value == 3


def test_a_plan_over_the_cap_fails_before_anything_is_sent_and_is_not_retried(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    before = asked(simulator)
    result = open_house(max_cost_usd=0.000001).materialize(define(place, retry_policy=dg.RetryPolicy(max_retries=3)))
    assert "over the cap" in failure_of(result)
    numbers = {name: value.value for name, value in failure_metadata(result).items()}
    assert (numbers["claude_batch/rows"], numbers["claude_batch/requests"]) == (8, 6)
    assert 0 < numbers["claude_batch/expected_usd"] < numbers["claude_batch/worst_usd"]
    assert asked(simulator) == before


def test_above_fail_above_nothing_is_published_and_yesterdays_table_stays(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator
) -> None:
    write_reviews(place)
    house = open_house()
    assert house.materialize(define(place, TOPICS, fail_above=0.5)).success
    yesterday = (house.output / "topics" / "part-0.parquet").read_bytes()
    write_reviews(place, rows=9)
    simulator.switch_on("invalid", "all")
    result = house.materialize(define(place, TOPICS, fail_above=0.5, retry_policy=dg.RetryPolicy(max_retries=3)))
    description = failure_of(result)
    assert "more than fail_above=50.0% allows. Nothing was published" in description
    assert failure_metadata(result)["claude_batch/run"].value == "r2"
    assert (house.output / "topics" / "part-0.parquet").read_bytes() == yesterday
    assert len(house.instance.fetch_materializations(dg.AssetKey("topics"), limit=9).records) == 1
    assert house.materialize(define(place, TOPICS, fail_above=0.7)).success


def test_simulated_answers_never_replace_real_ones_unless_told_so(place: Path, open_house: OpenHouse, simulator: RunningSimulator) -> None:
    write_reviews(place)
    house, insights, before = open_house(), define(place, SUMMARIES), asked(simulator)
    folder = house.output / "summaries"
    folder.mkdir(parents=True)
    marker = {"source": str(place / "reviews"), "endpoint": "anthropic", "partition_column": None, "format": 1}
    (folder / "_claude_batch.json").write_text(json.dumps(marker))
    pq.write_table(pa.table({"review_id": [1], "summary": ["Paid."]}), folder / "part-0.parquet")
    description = failure_of(house.materialize(insights))
    assert "holds answers of 'anthropic', and would get answers of 'simulator'. Nothing was sent" in description
    assert "replace=True" in description
    assert pq.read_table(folder)["summary"].to_pylist() == ["Paid."]
    assert asked(simulator) == before
    assert house.materialize(insights, run_config=config(replace=True)).success
    assert pq.read_table(folder).num_rows == 4


def test_real_answers_never_replace_simulated_ones_unless_told_so(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `output=` set, both go to one folder."""
    write_reviews(place)
    house, insights = open_house(), define(place, SUMMARIES)
    assert house.materialize(insights).success
    file = house.output / "summaries" / "part-0.parquet"
    before, batches = file.read_bytes(), len(simulator.batches())
    monkeypatch.delenv("ANTHROPIC_BASE_URL")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    description = failure_of(house.materialize(insights))
    assert "holds answers of 'simulator', and would get answers of 'anthropic'. Nothing was sent" in description
    assert "replace=True" in description
    assert file.read_bytes() == before
    assert len(simulator.batches()) == batches
    assert not (place / "root" / "log").exists(), "nothing was admitted in the root of real work"


@pytest.mark.parametrize("where", ["output", "root"])
def test_what_cannot_be_written_is_refused_before_anything_is_asked(
    place: Path, open_house: OpenHouse, simulator: RunningSimulator, where: str
) -> None:
    write_reviews(place)
    (place / "file").write_text("")
    batches, calls = len(simulator.batches()), dict(simulator.books()["calls"])
    house = open_house(**{where: str(place / "file" / "below")})
    description = failure_of(house.materialize(define(place, SUMMARIES)))
    assert f"The {where} {place / 'file' / 'below'}" in description
    assert "cannot be written: Not a directory. Nothing was sent." in description
    assert len(simulator.batches()) == batches
    assert simulator.books()["calls"].get("message", 0) == calls.get("message", 0)
    assert house.metadata("summaries") == {}


def test_a_simulated_run_is_refused_by_a_worker_that_talks_to_a_real_endpoint(
    place: Path, open_house: OpenHouse, temporal_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulating is the resource's word, sending the worker's: where they differ nothing is sent."""
    write_reviews(place)
    posts: list[str] = []

    class Vendor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            posts.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Vendor) as vendor:
        threading.Thread(target=vendor.serve_forever, daemon=True).start()
        queue = f"real-{time.monotonic_ns()}"
        environ = {
            "TEMPORAL_ADDRESS": temporal_server,
            "CLAUDE_BATCH_TASK_QUEUE": queue,
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{vendor.server_port}",
            "ANTHROPIC_API_KEY": "any",
        }
        worker = Process.start([sys.executable, "-m", "temporal_worker"], environ)
        try:
            worker.wait_for_line("worker ready on task queue")
            monkeypatch.setenv("CLAUDE_BATCH_TASK_QUEUE", queue)
            description = failure_of(open_house(simulate=True).materialize(define(place, SUMMARIES)))
        finally:
            worker.stop()
            vendor.shutdown()
    assert "holds answers of 'simulator', this worker talks to '127.0.0.1_" in description
    assert "Nothing was sent" in description
    assert posts == []


def test_a_column_that_the_source_does_not_have_is_refused_with_those_that_it_has(place: Path, open_house: OpenHouse) -> None:
    write_reviews(place)
    description = failure_of(open_house().materialize(define(place, SUMMARIES, columns=["review_id", "author"])))
    assert "no column 'author'; it has review_id, text, stars" in description
    assert "Nothing was sent" in description
