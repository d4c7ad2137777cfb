"""temporal_worker/harvest.py: what is taken of which batch. The vendor is the simulator, its clock stands until a test moves it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from claude_batch_dagster.core.errors import CredentialsError, RootError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.response import iter_result_lines
from claude_batch_dagster.core.submission import Accepted
from claude_batch_dagster.storage.plans import append_submission, pin_root, pin_workspace
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import price_usage
from temporal_worker import harvest
from temporal_worker.harvest import read_custom_id
from tests.lines import encode_line
from tests.stack import SUMMARIZE, stage_plan, texts
from tests.unit.worker.lost_batches import DAY_S, Lost, lost_batches, render

LONGER = Summarize(name="summaries", column="text", model="claude-haiku-5-5", max_words=40)
OTHER = Summarize(name="headlines", column="text", model="claude-haiku-5-5", max_words=5)
TEXTS = texts(6)


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    with lost_batches(tmp_path) as found:
        yield found


def test_wanted_answers_are_stored_as_collect_would(lost: Lost) -> None:
    """By name and key, under the batch's id and its end; the round is unknown, and written as 1."""
    batch_id = lost.send(SUMMARIZE, TEXTS)
    lost.clock.now += 20
    step = lost.recover((SUMMARIZE, TEXTS[:4]))
    assert step.complete
    assert (step.harvest.looked, step.harvest.harvested, step.harvest.counts.by_outcome) == (1, 1, {"succeeded": 4})
    rows = lost.stored(SUMMARIZE)
    assert {row["request_key"].bytes for row in rows} == {request.key for request in render(SUMMARIZE, TEXTS[:4])}
    assert {(row["batch_id"], row["round"], row["outcome"]) for row in rows} == {(batch_id, 1, "succeeded")}
    assert {row["answered_at"].timestamp() for row in rows} == {lost.clock.now - 10}


def test_the_same_again_stores_nothing_and_a_wider_source_the_rest(lost: Lost) -> None:
    """A file that holds a part of its batch grows at its end: what was there keeps its place."""
    lost.send(SUMMARIZE, TEXTS)
    lost.clock.now += 20
    lost.recover((SUMMARIZE, TEXTS[:4]))
    before = lost.stored(SUMMARIZE)
    assert lost.recover((SUMMARIZE, TEXTS[:4])).harvest.stored_before == 1
    assert lost.stored(SUMMARIZE) == before
    wider = lost.recover((SUMMARIZE, TEXTS))
    assert (wider.harvest.harvested, wider.harvest.counts.by_outcome) == (1, {"succeeded": 2})
    after = lost.stored(SUMMARIZE)
    assert (after[:4], len(after)) == (before, 6)
    calls = lost.simulator.calls["results"]
    assert lost.recover((SUMMARIZE, TEXTS)).harvest.stored_before == 1
    assert lost.simulator.calls["results"] == calls, "a batch that is stored whole is not read"


def test_another_prompt_under_the_same_name_is_not_taken(lost: Lost) -> None:
    """The request_key hashes all that was asked, so the name alone proves nothing."""
    lost.send(LONGER, TEXTS)
    lost.clock.now += 20
    found = lost.recover((SUMMARIZE, TEXTS)).harvest
    assert (found.other, found.harvested, lost.stored(SUMMARIZE)) == (1, 0, [])


def test_the_same_request_under_another_name_is_told_and_not_taken(lost: Lost) -> None:
    """Its owner may have renamed the task: the name is said."""
    lost.send(Summarize(name="renamed", column="text", model="claude-haiku-5-5", max_words=20), TEXTS)
    lost.clock.now += 20
    found = lost.recover((SUMMARIZE, TEXTS)).harvest
    assert (found.other, found.other_names, lost.stored(SUMMARIZE)) == (1, {"renamed": 6}, [])


def test_a_batch_with_one_request_of_others_is_none_of_ours(lost: Lost) -> None:
    """Every request that this product sends has its custom_id: nothing of such a batch is stored."""
    lost.send(SUMMARIZE, TEXTS, more=["order-17"])
    lost.clock.now += 20
    found = lost.recover((SUMMARIZE, TEXTS)).harvest
    assert (found.foreign, found.harvested, lost.stored(SUMMARIZE)) == (1, 0, [])


def test_two_tasks_of_one_batch_get_a_file_each(lost: Lost) -> None:
    """Each task's answers under its own key."""
    lost.post([encode_line(task.name, request, "00000001") for task in (SUMMARIZE, OTHER) for request in render(task, TEXTS)])
    lost.clock.now += 20
    found = lost.recover((SUMMARIZE, TEXTS), (OTHER, TEXTS)).harvest
    assert (found.harvested, found.counts.by_outcome) == (1, {"succeeded": 12})
    assert (len(lost.stored(SUMMARIZE)), len(lost.stored(OTHER))) == (6, 6)


def test_batches_in_progress_are_counted_and_harvested_later(lost: Lost) -> None:
    """With a pause until the next look that grows with their age."""
    lost.send(SUMMARIZE, TEXTS)
    lost.clock.now += 8
    step = lost.recover((SUMMARIZE, TEXTS))
    assert (step.harvest.in_progress, step.harvest.looked, step.complete) == (1, 0, True)
    assert step.pause_s == pytest.approx(0.8, abs=0.11)
    lost.clock.now += 8
    assert lost.recover((SUMMARIZE, TEXTS)).harvest.harvested == 1


def test_batches_of_open_runs_are_left_to_them(lost: Lost) -> None:
    """Also while they are in progress."""
    entry = stage_plan(lost.store, TEXTS)
    batch_id = lost.send(SUMMARIZE, TEXTS)
    append_submission(lost.store, entry.run_id, 1, 0, 0, Accepted(id=batch_id, created_at=lost.clock.at().isoformat()))
    assert lost.recover((SUMMARIZE, TEXTS)).harvest.in_progress == 0
    lost.clock.now += 20
    found = lost.recover((SUMMARIZE, TEXTS)).harvest
    assert (found.left_to_runs, found.harvested, lost.stored(SUMMARIZE)) == (1, 0, [])


def test_older_than_29_days_is_not_looked_at(lost: Lost) -> None:
    """The vendor keeps results so long, and lists batches for ever."""
    lost.send(SUMMARIZE, TEXTS)
    lost.clock.now += 28.9 * DAY_S
    assert lost.recover((SUMMARIZE, TEXTS[:1])).harvest.harvested == 1
    lost.clock.now += 0.2 * DAY_S
    assert lost.recover((SUMMARIZE, TEXTS)).harvest.looked == 0


def test_results_that_are_cut_are_read_again(tmp_path: Path) -> None:
    """Nothing of a cut stream is stored twice, and nothing is missing."""
    with lost_batches(tmp_path, "cut-results=2") as lost:
        lost.send(SUMMARIZE, TEXTS)
        lost.clock.now += 20
        assert lost.recover((SUMMARIZE, TEXTS)).harvest.counts.by_outcome == {"succeeded": 6}
        assert len(lost.stored(SUMMARIZE)) == 6


@pytest.mark.parametrize(("fault", "answers"), [("foreign-result=1", 6), ("duplicate-result=1", 6), ("missing-result=1", 5)])
def test_results_that_are_not_as_they_should_be(tmp_path: Path, fault: str, answers: int) -> None:
    """What is too much is left, what is missing is not made up; the rest is as good as ever."""
    with lost_batches(tmp_path, fault) as lost:
        lost.send(SUMMARIZE, TEXTS)
        lost.clock.now += 20
        assert lost.recover((SUMMARIZE, TEXTS)).harvest.counts.by_outcome == {"succeeded": answers}
        assert len(lost.stored(SUMMARIZE)) == answers


def test_failures_are_stored_as_what_they_are(tmp_path: Path) -> None:
    """So that the next run asks again what it would ask again otherwise."""
    with lost_batches(tmp_path, "errored-api=1", "expire=1") as lost:
        lost.send(SUMMARIZE, TEXTS)
        lost.clock.now += 20
        assert lost.recover((SUMMARIZE, TEXTS)).harvest.counts.by_outcome == {"succeeded": 4, "errored": 1, "expired": 1}


def test_a_stretch_ends_and_the_next_goes_on(lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind a recovery stands in the root: no batch is looked at, or counted, twice."""
    for number in range(3):
        lost.send(SUMMARIZE, TEXTS[2 * number : 2 * number + 2])
    lost.clock.now += 20
    monkeypatch.setattr(harvest, "STRETCH_S", 0.0)
    ask = harvest.RecoverInput(root=lost.store.uri, recovery_id="r", tasks=(lost.stage("r", SUMMARIZE, TEXTS),))
    harvester = harvest.Harvester(open_store=Store, batches=lost.batches, price_usage=price_usage, clock=lost.clock.at, poll_s=0.2)
    nothing = harvester.harvest(ask, lost.said.append)
    assert (nothing.complete, nothing.harvest.looked) == (False, 0)
    monkeypatch.setattr(harvest, "STRETCH_S", 60.0)
    first = harvester.harvest(ask, lost.said.append)
    again = harvester.harvest(ask, lost.said.append)
    assert (first.complete, first.harvest.harvested) == (True, 3)
    assert again == replace(first, pause_s=again.pause_s)


def test_a_root_of_another_vendor_is_refused(lost: Lost, tmp_path: Path) -> None:
    """And one that is not pinned, which a worker on another machine would see."""
    other = Store(str(tmp_path / "other"))
    lost.store = other
    with pytest.raises(RootError, match=r"finds no root.json"):
        lost.recover((SUMMARIZE, TEXTS))
    pin_root(other, RootRecord(root_id="root", endpoint="anthropic", temporal_namespace="default"))
    with pytest.raises(RootError, match="holds answers of 'anthropic', this worker talks to 'simulator'"):
        lost.recover((SUMMARIZE, TEXTS))


def test_a_key_of_another_workspace_is_refused(lost: Lost) -> None:
    """It would list somebody else's batches, and none of ours."""
    pin_workspace(lost.store, "wrkspc_other")
    with pytest.raises(CredentialsError, match="belongs to the workspace wrkspc_other"):
        lost.recover((SUMMARIZE, TEXTS))


def test_a_recovery_whose_keys_are_gone_says_so(lost: Lost) -> None:
    """Its client ended, or somebody deleted the root again."""
    wanted = lost.stage("r", SUMMARIZE, TEXTS)
    lost.store.delete(wanted.keys)
    harvester = harvest.Harvester(open_store=Store, batches=lost.batches, price_usage=price_usage, clock=lost.clock.at, poll_s=0.2)
    with pytest.raises(RootError, match="the recovery lost what it staged"):
        harvester.harvest(harvest.RecoverInput(root=lost.store.uri, recovery_id="r", tasks=(wanted,)), lost.said.append)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_lines_come_whole_however_they_were_cut(size: int) -> None:
    """The last one has no line break."""
    text = b'{"a":1}\n\n{"b":2}\n{"c":3}'
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(iter_result_lines(chunks)) == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_whose_a_line_is() -> None:
    """Ours, or not."""
    ours = read_custom_id(b'{"custom_id":"n-%b-0123abcd","result":{"type":"expired"}}' % (b"f" * 32))
    assert ours is not None
    assert (ours.name, ours.tag) == ("n", "0123abcd")
    assert read_custom_id(b'{"custom_id":') is None
    assert read_custom_id(b'{"custom_id":"order-17","result":{"type":"expired"}}') is None
