"""temporal_worker/audit.py: the vendor's list against the records, one kind of finding after the other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_batch_dagster.core.contract import Health
from claude_batch_dagster.core.records import DoneRecord, LogEntry, StrayRecord
from claude_batch_dagster.core.recovery_contract import AuditReport
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason
from claude_batch_dagster.storage.plans import append_submission, write_done, write_stray
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.verbs.audit import describe_audit
from tests.stack import SUMMARIZE, stage_plan, texts
from tests.unit.worker.lost_batches import DAY_S, Lost, lost_batches, render

TEXTS = texts(4)
ADMITTED_AT = "2026-11-23T00:00:00+00:00"


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    with lost_batches(tmp_path) as found:
        yield found


def record(lost: Lost, entry: LogEntry, batch_id: str, *, shard: int = 0, collected: bool = True) -> None:
    """Write a batch into a shard's log, and its answers into the root."""
    append_submission(lost.store, entry.run_id, 1, shard, 0, Accepted(id=batch_id, created_at=lost.clock.at().isoformat()))
    if collected:
        append_submission(lost.store, entry.run_id, 1, shard, 1, Closed(reason=CloseReason.COLLECTED))
        store_answers(lost, batch_id)


def store_answers(lost: Lost, batch_id: str) -> None:
    write_responses(
        lost.store,
        endpoint="simulator",
        task_key=SUMMARIZE.task_key,
        batch_id=batch_id,
        round_number=1,
        answered_at=lost.clock.at(),
        responses=[Response(request_key=request.key, outcome="succeeded", answer='"x"') for request in render(SUMMARIZE, TEXTS)],
    )


def finish(lost: Lost, entry: LogEntry, at: str) -> None:
    done = DoneRecord(run_id=entry.run_id, finished_at=at, outcome="finished", rows={"succeeded": 4}, batches=1, usage=(), cost_nano_usd=0)
    write_done(lost.store, entry.number, done)


def counts(report: AuditReport) -> dict[str, int]:
    """Return what is not zero."""
    names = [name for name in AuditReport.__slots__ if name != "examples"]
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def failed(report: AuditReport) -> list[str]:
    return [finding.name for finding in describe_audit(report, []) if finding.status is Health.FAIL]


def test_all_is_accounted_for(lost: Lost) -> None:
    """A run's batch, a recovered one, one of others."""
    record(lost, stage_plan(lost.store, TEXTS), lost.send(SUMMARIZE, TEXTS))
    lost.send(SUMMARIZE, texts(9)[4:])
    lost.send(SUMMARIZE, [], more=["order-1", "order-2"])
    lost.clock.now += 20
    lost.recover((SUMMARIZE, texts(9)))
    report = lost.audit()
    assert counts(report) == {"listed": 3, "recorded": 1, "recovered": 1, "foreign": 1}
    assert failed(report) == []


def test_paid_and_in_no_record(lost: Lost) -> None:
    """It names the batch and its task; recover is the remedy, and with a part of the rows only a part of it."""
    lost.store.put_if_absent(f"tasks/{SUMMARIZE.task_key}.json", SUMMARIZE.encode_document())
    batch_id = lost.send(SUMMARIZE, TEXTS)
    lost.clock.now += 20
    report = lost.audit()
    assert (counts(report), failed(report)) == ({"listed": 1, "unstored": 1}, ["not stored"])
    (example,) = report.examples["unstored"]
    assert (example.id, example.run) == (batch_id, None)
    assert "none of 4 answers of task summaries stored" in example.note
    finding = describe_audit(report, [])[-1]
    assert "claude-batch recover" in finding.remedy
    lost.recover((SUMMARIZE, TEXTS[:3]))
    report = lost.audit()
    assert (counts(report), "3 of 4 answers stored" in report.examples["unstored"][0].note) == ({"listed": 1, "unstored": 1}, True)
    lost.recover((SUMMARIZE, TEXTS))
    assert counts(lost.audit()) == {"listed": 1, "recovered": 1}


def test_in_progress_and_unknown_is_a_warning(lost: Lost) -> None:
    """Whose it is shows at its end."""
    lost.send(SUMMARIZE, TEXTS)
    report = lost.audit()
    assert (counts(report), failed(report)) == ({"listed": 1, "in_progress": 1}, [])
    assert [finding.status for finding in describe_audit(report, [])] == [Health.OK, Health.WARN]


def test_a_stray_counts_until_it_is_stored(lost: Lost) -> None:
    """Its answers are paid for; once they are in the root it counts as recovered, and what it answered twice as paid twice."""
    entry = stage_plan(lost.store, TEXTS)
    record(lost, entry, lost.send(SUMMARIZE, TEXTS))
    stray = lost.send(SUMMARIZE, TEXTS, tag="00000002")
    write_stray(lost.store, StrayRecord(batch_id=stray, run_id=entry.run_id, round=1, shard=0, found_at="2026-11-23T00:00:00+00:00"))
    lost.clock.now += 20
    report = lost.audit()
    assert (counts(report), failed(report)) == ({"listed": 2, "recorded": 1, "strays": 1}, ["strays"])
    finish(lost, entry, lost.clock.at().isoformat())
    lost.recover((SUMMARIZE, TEXTS))
    report = lost.audit()
    assert (counts(report), failed(report)) == ({"listed": 2, "recorded": 1, "recovered": 1, "paid_twice": 4}, ["paid twice"])


@pytest.mark.parametrize(("collected", "kind"), [(False, "lost"), (True, "gone")])
def test_a_recorded_batch_that_was_deleted(lost: Lost, collected: bool, kind: str) -> None:
    """Lost where nobody had collected it."""
    batch_id = lost.send(SUMMARIZE, TEXTS)
    record(lost, stage_plan(lost.store, TEXTS), batch_id, collected=collected)
    lost.clock.now += 20
    lost.delete(batch_id)
    report = lost.audit()
    assert (counts(report), failed(report)) == ({kind: 1}, [] if collected else ["lost"])


def test_a_recorded_batch_that_was_archived(lost: Lost) -> None:
    """After 29 days without a collect its answers are gone."""
    record(lost, stage_plan(lost.store, TEXTS), lost.send(SUMMARIZE, TEXTS), collected=False)
    lost.clock.now += 29.5 * DAY_S
    report = lost.audit()
    assert counts(report) == {"lost": 1}
    assert report.examples["lost"][0].run == "r1"
    assert "archived" in report.examples["lost"][0].note


@pytest.mark.parametrize(
    ("finished_at", "paid_twice"),
    [("2026-11-22T23:00:00+00:00", 0), ("2026-11-23T01:00:00+00:00", 4), (None, 4)],
    ids=["asked again", "overlap", "still open"],
)
def test_answered_twice_on_purpose_or_paid_twice(lost: Lost, finished_at: str | None, paid_twice: int) -> None:
    """A plan owns what an earlier run answered only where a person asked again; two runs at once never own the same."""
    for number in (1, 2):
        entry = stage_plan(lost.store, TEXTS, number=number)
        assert entry.admitted_at == ADMITTED_AT
        record(lost, entry, lost.send(SUMMARIZE, TEXTS, tag=f"0000000{number}"))
        if number == 1 and finished_at is not None:
            finish(lost, entry, finished_at)
    assert counts(lost.audit()).get("paid_twice", 0) == paid_twice


def test_answered_twice_in_one_run_is_paid_twice(lost: Lost) -> None:
    """No round asks again what succeeded."""
    entry = stage_plan(lost.store, TEXTS, max_requests=2)
    for shard in range(2):
        record(lost, entry, lost.send(SUMMARIZE, TEXTS, tag=f"0000000{shard}"), shard=shard)
    finish(lost, entry, ADMITTED_AT)
    assert counts(lost.audit())["paid_twice"] == 4


def test_answered_twice_before_records_were_lost_is_a_warning(lost: Lost) -> None:
    """It may have been asked again on purpose: nobody knows."""
    for tag in ("00000001", "00000002"):
        lost.send(SUMMARIZE, TEXTS, tag=tag)
    lost.clock.now += 20
    lost.recover((SUMMARIZE, TEXTS))
    report = lost.audit()
    assert (counts(report), failed(report)) == ({"listed": 2, "recovered": 2, "twice_unknown": 4}, [])
