"""temporal_worker/rounds.py: what a round asks again, at which cap, and at which cost; over a real store."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.core.contract import RoundInput
from claude_batch_dagster.core.errors import CredentialsError, RefusedError, RootError, RunError, VendorUnavailableError
from claude_batch_dagster.core.records import LogEntry, StrayRecord
from claude_batch_dagster.core.request import SEPARATOR, parse_custom_id, submission_tag
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.core.shard import HEAD, TAIL, iter_lines, line_custom_id, line_max_tokens
from claude_batch_dagster.core.submission import Accepted, Closed, CloseReason
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import append_submission, read_root, read_round, write_stray
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store
from temporal_worker.further import Grants, ModelLimits
from temporal_worker.root import OpenRoot
from temporal_worker.rounds import open_round
from tests.stack import stage_plan, texts
from tests.unit.worker.vendor import Vendor, price

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 1_999_000}}
TASK = ClaudeTask(name="topics", model="claude-haiku-5-5", prompt="{text}", max_tokens=100)
SUCCEEDED = ("succeeded", None)
REFUSED = ("refused", "refusal: cyber")
EXPIRED = ("expired", "expired: late")
OVERLOADED = ("errored", "overloaded_error: Overloaded")
WRONG = ("errored", "invalid_request_error: max_tokens")
MISSING = ("errored", "result_missing: x")
CANCELED = ("canceled", "canceled: x")
CUT = ("truncated", "max_tokens: cut")
FULL = ("truncated", "model_context_window_exceeded: cut")
INVALID = ("invalid", "schema_violation: / breaks /type")


@dataclass
class Run:
    """A run whose batches end as a test says."""

    store: Store
    entry: LogEntry
    vendor: Any = field(default_factory=Vendor)

    def end(self, round_number: int, *outcomes: tuple[str, str | None], batch_id: str | None = None) -> None:
        """Store these outcomes of the round's only shard, in its order, and close it."""
        batch_id = batch_id or f"b{round_number}"
        append_submission(self.store, self.entry.run_id, round_number, 0, 0, Accepted(id=batch_id, created_at=NOON.isoformat()))
        self.answer(round_number, batch_id, self.keys(round_number), outcomes)
        append_submission(self.store, self.entry.run_id, round_number, 0, 1, Closed(reason=CloseReason.COLLECTED))

    def answer(
        self,
        round_number: int,
        batch_id: str,
        keys: Sequence[str],
        outcomes: Sequence[tuple[str, str | None]],
        task_key: str = TASK.task_key,
    ) -> None:
        write_responses(
            self.store,
            endpoint="simulator",
            task_key=task_key,
            batch_id=batch_id,
            round_number=round_number,
            answered_at=NOON + timedelta(hours=round_number),
            responses=[
                Response(
                    request_key=bytes.fromhex(key),
                    outcome=outcome,
                    error=error,
                    model=None if outcome in ("expired", "errored") else TASK.model,
                    cost_nano_usd=0 if outcome in ("expired", "errored") else 100,
                    # As who collects the first round marks it.
                    retryable=outcome == "invalid" and round_number == 1,
                )
                for key, (outcome, error) in zip(keys, outcomes, strict=True)
            ],
        )

    def open(self, round_number: int, *, empty: bool = False) -> dict[int, int]:
        """Open a round; return the `max_tokens` of each request that it asks, by its place in the plan."""
        shards = self.open_only(round_number, empty=empty)
        plan = self.keys(1)
        asked = {plan.index(parse_custom_id(line_custom_id(line)).request_key): line_max_tokens(line) for line in self.lines(round_number)}
        found = read_round(self.store, self.entry, round_number)
        assert found is not None
        assert shards == len(found.shards)
        assert sum(shard.requests for shard in found.shards) == len(asked)
        return asked

    def open_only(self, round_number: int, *, empty: bool = False) -> int:
        """Open a round; return its shards."""
        record = read_root(self.store)
        assert record is not None
        root = OpenRoot(store=self.store, record=record, entry=self.entry)
        ask = RoundInput(root=self.store.uri, number=1, run_id=self.entry.run_id, round=round_number, empty=empty)
        return open_round(root, ask, self.vendor, price).shards

    def lines(self, round_number: int) -> list[bytes]:
        found = read_round(self.store, self.entry, round_number)
        return [line for shard in (found.shards if found else ()) for line in iter_lines(self.store.stream(shard.path))]

    def keys(self, round_number: int) -> list[str]:
        return [parse_custom_id(line_custom_id(line)).request_key for line in self.lines(round_number)]


def start(folder: Path, requests: int, **options: Any) -> Run:
    store = Store(str(folder / "root"))
    return Run(store=store, entry=stage_plan(store, texts(requests), tasks=(TASK,), **options))


@pytest.mark.parametrize(
    ("outcome", "max_tokens"),
    [
        (SUCCEEDED, None),
        (REFUSED, None),
        (EXPIRED, 100),
        (OVERLOADED, 100),
        (WRONG, None),
        (MISSING, None),
        (CANCELED, None),
        (CUT, 200),
        (FULL, None),
        (INVALID, 100),
    ],
)
def test_what_the_next_round_asks(outcome: tuple[str, str | None], max_tokens: int | None, tmp_path: Path) -> None:
    """By the outcome alone; beside it a request that is always asked."""
    run = start(tmp_path, 2)
    run.end(1, outcome, EXPIRED)
    assert run.open(2) == ({0: max_tokens} if max_tokens else {}) | {1: 100}


@pytest.mark.parametrize(
    ("first", "second", "third"),
    [
        (CUT, CUT, 400),
        (CUT, OVERLOADED, 200),
        (CUT, INVALID, 200),
        (INVALID, INVALID, None),
        (INVALID, CUT, 200),
        (INVALID, EXPIRED, 100),
        (EXPIRED, CUT, 200),
        (EXPIRED, INVALID, 100),
        (EXPIRED, SUCCEEDED, None),
        (CUT, SUCCEEDED, None),
        (CUT, WRONG, None),
    ],
)
def test_what_the_third_round_asks_goes_by_the_second(
    first: tuple[str, str | None], second: tuple[str, str | None], third: int | None, tmp_path: Path
) -> None:
    """A raised cap stays raised, and what broke its schema twice is not asked a third time."""
    run = start(tmp_path, 1)
    run.end(1, first)
    run.open(2)
    run.end(2, second)
    assert run.open(3) == ({0: third} if third else {})


@pytest.mark.parametrize("outcomes", [(INVALID, CUT, INVALID), (CUT, INVALID, INVALID), (INVALID, EXPIRED, INVALID)])
def test_an_invalid_answer_is_not_forgotten_behind_another(outcomes: Sequence[tuple[str, str | None]], tmp_path: Path) -> None:
    """The second one is the last, whatever came between."""
    run = start(tmp_path, 1, max_attempts=5)
    for number, outcome in enumerate(outcomes, start=1):
        run.end(number, outcome)
        asked = run.open(number + 1)
    assert asked == {}


@pytest.mark.parametrize(("by_other", "granted"), [(INVALID, False), (EXPIRED, True), (None, True)])
def test_an_invalid_answer_of_a_run_that_opened_no_further_round_has_its_retry_now(
    by_other: tuple[str, str | None] | None, granted: bool, tmp_path: Path
) -> None:
    """Else every run would buy it once, where the cap has no room for a second round; a collection that is done again decides the same."""
    run = start(tmp_path, 1)
    if by_other is not None:
        run.answer(1, "of_another_run", run.keys(1), [by_other])
    record = read_root(run.store)
    assert record is not None
    root = OpenRoot(store=run.store, record=record, entry=run.entry)
    broken = Response(request_key=bytes.fromhex(run.keys(1)[0]), outcome=INVALID[0], error=INVALID[1], model=TASK.model)
    append_submission(run.store, run.entry.run_id, 1, 0, 0, Accepted(id="b1", created_at=NOON.isoformat()))
    for _ in range(2):
        decided = Grants(root, TASK.task_key, 1, ModelLimits(run.vendor)).has(broken)
        assert decided is granted
        write_responses(
            run.store,
            endpoint="simulator",
            task_key=TASK.task_key,
            batch_id="b1",
            round_number=1,
            answered_at=NOON + timedelta(hours=2),
            responses=[replace(broken, retryable=decided)],
        )
    append_submission(run.store, run.entry.run_id, 1, 0, 1, Closed(reason=CloseReason.COLLECTED))
    assert run.open(2) == ({0: 100} if granted else {})


def test_rounds_end_at_max_attempts_whatever_the_reason(tmp_path: Path) -> None:
    """Three in all, and the fourth is the empty one that ends the run."""
    run = start(tmp_path, 1)
    caps = []
    for number in (1, 2, 3):
        run.end(number, CUT)
        caps.append(run.open(number + 1).get(0))
    assert caps == [200, 400, None]


@pytest.mark.parametrize(
    ("vendor", "caps"),
    [
        (Vendor(max_tokens=150), [150, None]),
        (Vendor(max_tokens=100), [None]),
        (Vendor(max_tokens=None), [200, 400]),
        (Vendor(failure=RefusedError("no such route", status=404)), [200, 400]),
    ],
)
def test_a_cap_is_raised_up_to_the_models_own(vendor: Vendor, caps: list[int | None], tmp_path: Path) -> None:
    """At the model's own the answer stays truncated."""
    run = start(tmp_path, 2)
    run.vendor = vendor
    for number, cap in enumerate(caps, start=1):
        run.end(number, *[CUT] * len(run.keys(number)))
        assert run.open(number + 1) == ({0: cap, 1: cap} if cap else {})
    assert vendor.asked == [TASK.model] * len(caps)


def test_a_body_of_which_nothing_is_asked_again_is_not_read(tmp_path: Path) -> None:
    """It may be hundreds of megabytes, and the answers tell."""
    run = start(tmp_path, 4)
    run.end(1, SUCCEEDED, REFUSED, WRONG, CANCELED)
    run.store.delete(run.entry.shards[0].path)
    assert run.open_only(2) == 0


def test_a_body_that_is_not_of_the_owned_keys_opens_no_round(tmp_path: Path) -> None:
    """By their places another request would be asked again."""
    run = start(tmp_path, 2)
    run.end(1, SUCCEEDED, EXPIRED)
    path = tmp_path / "root" / run.entry.shards[0].path
    first, second = run.lines(1)
    path.write_bytes(HEAD + second + SEPARATOR + first + TAIL)
    with pytest.raises(RootError, match=r"do not hold the same requests\. The run does not go on with batch b1\. Restore the files\."):
        run.open(2)
    assert run.lines(2) == []


def test_every_shard_and_task_goes_by_its_own_answers(tmp_path: Path) -> None:
    """Shards of two tasks, one of which had no batch; the places within a shard count."""
    other = replace(TASK, name="others", prompt="Tell of {text}", max_tokens=70)
    store = Store(str(tmp_path / "root"))
    run = Run(store=store, entry=stage_plan(store, texts(4), tasks=(TASK, other), max_requests=3))
    ids = [parse_custom_id(line_custom_id(line)) for line in run.lines(1)]
    expired = {1, 5, 7}
    for shard, batch_id in ((0, "b0"), (1, "b1")):
        mine = range(3 * shard, 3 * shard + 3)
        append_submission(store, run.entry.run_id, 1, shard, 0, Accepted(id=batch_id, created_at=NOON.isoformat()))
        for task in (TASK, other):
            places = [place for place in mine if ids[place].name == task.name]
            outcomes = [EXPIRED if place in expired else SUCCEEDED for place in places]
            run.answer(1, batch_id, [ids[place].request_key for place in places], outcomes, task_key=task.task_key)
        append_submission(store, run.entry.run_id, 1, shard, 1, Closed(reason=CloseReason.COLLECTED))
    append_submission(store, run.entry.run_id, 1, 2, 0, Closed(reason=CloseReason.DRAINED))
    assert [one.name for one in ids] == ["topics"] * 4 + ["others"] * 4
    assert run.open(2) == {1: 100, 5: 70}


def test_the_vendor_is_asked_for_models_only_where_an_answer_was_cut(tmp_path: Path) -> None:
    """A round without one is opened without a call."""
    run = start(tmp_path, 2)
    run.end(1, EXPIRED, INVALID)
    run.open(2)
    assert run.vendor.asked == []


def test_a_refused_key_delays_the_round(tmp_path: Path) -> None:
    """It ends nothing: the round is opened by a worker with a key that works."""
    run = start(tmp_path, 1)
    run.vendor.failure = CredentialsError("the vendor refuses this key")
    run.end(1, CUT)
    with pytest.raises(VendorUnavailableError, match=r"refuses this key .* answers that were cut wait\.") as raised:
        run.open(2)
    assert raised.value.retry_after_s
    run.vendor.failure = None
    assert run.open(2) == {0: 200}


def test_a_request_that_is_asked_with_more_room_keeps_its_key_and_its_text(tmp_path: Path) -> None:
    """Only its cap and its tag differ, so its answer lands on the same row."""
    run = start(tmp_path, 1)
    run.end(1, CUT)
    run.open(2)
    [before], [after] = run.lines(1), run.lines(2)
    old, new = line_custom_id(before), line_custom_id(after)
    assert (new[:-8], new[-8:]) == (old[:-8], submission_tag(run.entry.run_id, 2, 0))
    assert after == before.replace(old.encode(), new.encode()).replace(b'"max_tokens":100', b'"max_tokens":200')


@pytest.mark.parametrize(("cap", "asked"), [(500, {0: 100, 2: 200}), (499, {})])
def test_a_raised_cap_is_priced(cap: int, asked: dict[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two answers spent 200, one as it was and one with twice the room may spend 300: all of it fits, or nothing is asked."""
    run = start(tmp_path, 3, cap=cap)
    run.end(1, EXPIRED, SUCCEEDED, CUT)
    with caplog.at_level(logging.INFO, "temporal_worker.rounds"):
        assert run.open(2) == asked
    found = read_round(run.store, run.entry, 2)
    assert found is not None
    spent = "they may cost $0.000000, $0.000000 of the cap of $0.000000 are spent; the next run asks them"
    assert found.why == f"1 expired, 1 truncated {'asked again' if asked else f'not asked again: {spent}'}"
    assert [record.getMessage() for record in caplog.records] == [f"Batch run r1, round 2: {found.why}."]


@pytest.mark.parametrize(("cap", "asked"), [(500, {1: 200}), (499, {})])
def test_what_a_late_batch_answered_is_spent(cap: int, asked: dict[int, int], tmp_path: Path) -> None:
    """Two answers of the run's own batch and one of the late one spent 300, the cut one with twice the room may spend 200."""
    run = start(tmp_path, 2, cap=cap)
    run.end(1, SUCCEEDED, CUT)
    write_stray(run.store, StrayRecord(batch_id="stray", run_id=run.entry.run_id, round=1, shard=0, found_at=NOON.isoformat()))
    run.answer(1, "stray", run.keys(1), [SUCCEEDED, EXPIRED])
    assert run.open(2) == asked


@pytest.mark.parametrize(("cap", "asked"), [(450, {1: 200}), (449, {})])
def test_what_a_late_batch_may_still_answer_is_spent(cap: int, asked: dict[int, int], tmp_path: Path) -> None:
    """Its whole shard, at its worst case of 25 a request."""
    run = start(tmp_path, 2, cap=cap, worst=25)
    run.end(1, SUCCEEDED, CUT)
    write_stray(run.store, StrayRecord(batch_id="stray", run_id=run.entry.run_id, round=1, shard=0, found_at=NOON.isoformat()))
    assert run.open(2) == asked


def test_what_a_late_batch_answered_is_not_asked_again(tmp_path: Path) -> None:
    """A stray's answers are paid; other runs' strays say nothing of this one."""
    run = start(tmp_path, 3)
    run.end(1, EXPIRED, CUT, EXPIRED)
    for batch_id, run_id, place in (("stray", run.entry.run_id, 0), ("other", "another run", 2)):
        write_stray(run.store, StrayRecord(batch_id=batch_id, run_id=run_id, round=1, shard=0, found_at=NOON.isoformat()))
        run.answer(1, batch_id, [run.keys(1)[place]], [SUCCEEDED])
    assert run.open(2) == {1: 200, 2: 100}


def test_answers_of_other_runs_decide_nothing(tmp_path: Path) -> None:
    """A request that is asked again on a person's word has an older answer, and is asked on when it expires."""
    run = start(tmp_path, 1)
    run.answer(1, "older", run.keys(1), [SUCCEEDED])
    run.end(1, EXPIRED)
    assert run.open(2) == {0: 100}


def test_a_round_that_was_opened_stays_as_it_is(tmp_path: Path) -> None:
    """Whoever opens it again, even as empty."""
    run = start(tmp_path, 1)
    run.end(1, EXPIRED)
    assert run.open(2) == run.open(2, empty=True) == {0: 100}


def test_an_empty_round_asks_nothing(tmp_path: Path) -> None:
    """A run that is canceled or drained ends, whatever could be asked again."""
    run = start(tmp_path, 1)
    run.end(1, CUT)
    assert run.open(2, empty=True) == {}
    found = read_round(run.store, run.entry, 2)
    assert found is not None
    assert found.why == ""


def test_no_round_is_opened_behind_an_open_shard(tmp_path: Path) -> None:
    """It would be out of everybody's sight."""
    run = start(tmp_path, 1)
    append_submission(run.store, run.entry.run_id, 1, 0, 0, Accepted(id="b1", created_at=NOON.isoformat()))
    with pytest.raises(RunError, match="shard 0 of round 1 ends with batch b1"):
        run.open(2)


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ((CUT, SUCCEEDED), "succeeded"),
        ((CUT, CUT), "truncated"),
        ((CUT, OVERLOADED), "truncated"),
        ((CUT, INVALID), "invalid"),
        ((INVALID, EXPIRED), "invalid"),
        ((EXPIRED, OVERLOADED), "errored"),
    ],
)
def test_the_best_answer_of_a_key_over_the_rounds(outcomes: Sequence[tuple[str, str | None]], best: str, tmp_path: Path) -> None:
    """Usable first, then final, then the latest: of two cut answers the longer one."""
    run = start(tmp_path, 1)
    for number, outcome in enumerate(outcomes, start=1):
        run.end(number, outcome)
        run.open(number + 1)
    keys = pack_keys([bytes.fromhex(key) for key in run.keys(1)])
    answers = Answers(run.store, "simulator", TASK.task_key)
    assert [outcome for outcome, _ in answers.outcomes(keys)] == [best]
    if outcomes == (CUT, CUT):
        assert answers.fetch(answers.find(keys))["round"].to_pylist() == [2]


@pytest.mark.parametrize(
    ("prompt", "at_most"), [("{text}", 1_000_000), (lambda row: [IMAGE, {"type": "text", "text": row["text"]}], 5_200)]
)
def test_an_image_is_priced_by_what_it_weighs(prompt: Any, at_most: int, tmp_path: Path) -> None:
    task = ClaudeTask(name="topics", model=TASK.model, prompt=prompt, max_tokens=100, version=1)
    store = Store(str(tmp_path / "root"))
    run = Run(store=store, entry=stage_plan(store, [IMAGE["source"]["data"]] if isinstance(prompt, str) else texts(1), tasks=(task,)))
    asked: list[int] = []

    def note(model: str, *, input_tokens: int, **_: int) -> int:
        asked.append(input_tokens)
        return 0

    append_submission(store, run.entry.run_id, 1, 0, 0, Accepted(id="b1", created_at=NOON.isoformat()))
    write_responses(
        store,
        endpoint="simulator",
        task_key=task.task_key,
        batch_id="b1",
        round_number=1,
        answered_at=NOON,
        responses=[Response(request_key=bytes.fromhex(run.keys(1)[0]), outcome="expired", error="expired: late", cost_nano_usd=0)],
    )
    append_submission(store, run.entry.run_id, 1, 0, 1, Closed(reason=CloseReason.COLLECTED))
    record = read_root(store)
    assert record is not None
    ask = RoundInput(root=store.uri, number=1, run_id=run.entry.run_id, round=2, empty=False)
    open_round(OpenRoot(store=store, record=record, entry=run.entry), ask, run.vendor, note)
    [tokens] = asked
    assert at_most / 2 < tokens <= at_most
