"""`status` from records alone: no Temporal, no worker."""

from pathlib import Path

import pytest

from claude_batch_dagster.cli import runs
from claude_batch_dagster.cli.app import run_command_line
from claude_batch_dagster.core.contract import ParkedShard as Parked
from claude_batch_dagster.core.contract import Progress
from claude_batch_dagster.core.records import CostRange, DoneRecord, KeysRef, LogEntry, Owner, ShardRef, SourceRef, TaskRef
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason, Send
from claude_batch_dagster.storage.plans import admit_entry, append_submission, write_done
from claude_batch_dagster.storage.store import Store

AT = "2026-11-23T03:00:00+00:00"
SEND = Send(count=60, sha256="0" * 64, send_s=15.0, vendor_date="Mon, 23 Nov 2026 03:00:00 GMT", sender="s", sent_at=AT)


def admit(store: Store, number: int) -> LogEntry:
    shard = ShardRef(path="plans/x", sha256="0" * 64, requests=60, body_bytes=1)
    entry = LogEntry(
        run_id=f"run-{number}",
        number=number,
        admitted_at=AT,
        endpoint="anthropic",
        owner=Owner(host="host", pid=7),
        tasks=(TaskRef(name="summaries", task_key="k"),),
        source=SourceRef(uri="/data/reviews", fingerprint="f"),
        keys=KeysRef(path="p", sha256="0" * 64, count=120),
        shards=(shard, shard),
        cost_nano_usd=CostRange(expected=10_000_000, worst=2_000_000_000),
        max_attempts=3,
        max_in_flight_batches=2,
    )
    assert admit_entry(store, entry)
    return entry


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(".claude_batch")


def test_status_lists_runs_newest_first_with_batches_and_cost(store, capsys):
    admit(store, 1)
    append_submission(store, "run-1", 1, 0, 0, SEND)
    append_submission(store, "run-1", 1, 0, 1, Accepted(id="msgbatch_1", created_at=AT))
    append_submission(store, "run-1", 1, 0, 2, Closed(reason=CloseReason.COLLECTED))
    write_done(
        store,
        1,
        DoneRecord(
            run_id="run-1", finished_at=AT, outcome="finished", rows={"succeeded": 120}, batches=1, usage=(), cost_nano_usd=1_500_000_000
        ),
    )
    admit(store, 2)
    assert run_command_line(["status"]) == 0
    first, head, newest, oldest, *_ = capsys.readouterr().out.splitlines()
    assert first == f"Root {store.uri}"
    assert head.split() == ["RUN", "WHEN", "TASKS", "REQUESTS", "BATCHES", "OUTCOME", "COST"]
    assert newest.startswith("r2 ")
    assert "none yet" in newest
    assert "open, no worker answers" in newest
    assert "at most $2.00" in newest
    assert "1 of 1 ended" in oldest
    assert oldest.split()[-2:] == ["finished", "$1.50"]


def test_status_of_a_run_shows_each_shard_and_the_line_to_type(store, capsys):
    admit(store, 1)
    append_submission(store, "run-1", 1, 0, 0, SEND)
    append_submission(store, "run-1", 1, 0, 1, Accepted(id="msgbatch_1", created_at=AT))
    append_submission(store, "run-1", 1, 1, 0, SEND)
    assert run_command_line(["status", "r1"]) == 0
    text = capsys.readouterr().out
    for part in (
        "1 submitted, 1 in progress, 0 ended",
        "1-0  msgbatch_1, in progress",
        "1-1  POST of 60 requests",
        "its end is not known yet",
        "claude-batch cancel r1",
        "Nobody works on it now",
    ):
        assert part in text


def test_parked_question_is_shown_with_the_count_and_the_time_of_the_post(store, capsys, monkeypatch):
    entry = admit(store, 1)
    append_submission(store, "run-1", 1, 1, 0, SEND)
    view = runs.Records(store.uri).view(entry)
    told = Progress(round=1, shards=2, parked=(Parked(shard=1, question="Did it arrive?"),))
    parked = type(view)(**{name: getattr(view, name) for name in view.__slots__} | {"live": told})
    text = "\n".join(runs.describe_run(parked))
    assert "waits for an answer" in text
    assert "Waits for an answer (60 requests, POST at 2026-11-23" in text
    assert "Did it arrive?" in text


def test_run_is_found_by_its_id_and_simulated_runs_need_no_flag(store, capsys):
    admit(Store(".claude_batch/simulated"), 1)
    assert run_command_line(["status", "run-1"]) == 0
    assert "claude-batch cancel r1 --simulate" in capsys.readouterr().out
