import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.verbs import drift
from claude_batch_dagster.verbs.admit import admit_plan
from claude_batch_dagster.verbs.drift import CHECKED_ROWS

HAIKU = "claude-haiku-5-5"
Row = Mapping[str, object]
SAID = r"the prompt function .* of task 'asked' now asks something else about the row with key {} than when version=1 was planned\. Nothing was sent"


def make_task(prompt: Callable[[Row], Any], **more: Any) -> ClaudeTask:
    return ClaudeTask(name="asked", model=HAIKU, prompt=prompt, max_tokens=50, **{"version": 1, **more})


def echo(asked: Any) -> dict[str, Any]:
    return {"answer": asked.text, "cost_nano_usd": 1_000}


def said(row: int) -> str:
    return SAID.format(row)


def test_a_function_that_asks_the_same_keeps_its_answers(lake: Any) -> None:
    lake.texts("a", None, "b")
    lake.finish(lake.job(make_task(lambda row: row["text"])), echo)
    again = lake.job(make_task(lambda row: row["text"]))
    assert lake.plan(again).total.already_answered == 2
    lake.publish(again)
    assert lake.read("asked")["answer"].to_pylist() == ["a", None, "b"]


@pytest.mark.parametrize("preview", [False, True])
def test_an_edited_function_takes_no_answer_of_the_former_one(lake: Any, preview: bool) -> None:
    """Also where all was answered, as after two runs by functions of one name."""
    lake.texts(None, "a", "b")
    lake.finish(lake.job(make_task(lambda row: row["text"])), echo)
    with pytest.raises(TaskError, match=said(1)):
        lake.plan(lake.job(make_task(lambda row: row["text"] and f"Title: {row['text']}")), preview=preview)
    with pytest.raises(TaskError, match=said(0)):
        lake.plan(lake.job(make_task(lambda row: row["text"] or "nothing")), preview=preview)
    edited = make_task(lambda row: row["text"] and f"Title: {row['text']}", version=2)
    assert lake.plan(lake.job(edited), preview=preview).total.asked == 2


def test_an_edit_after_a_plan_that_sent_nothing_is_found(lake: Any) -> None:
    lake.texts("a", "b")
    lake.plan(lake.job(make_task(lambda row: row["text"])))
    with pytest.raises(TaskError, match=said(0)):
        lake.plan(lake.job(make_task(lambda row: f"Title: {row['text']}")))


def test_rows_that_are_asked_again_by_an_edited_function_are_refused(lake: Any) -> None:
    lake.texts("a", "b")
    lake.finish(lake.job(make_task(lambda row: row["text"])), echo)
    with pytest.raises(TaskError, match=said(1)):
        lake.plan(lake.job(make_task(lambda row: row["text"].replace("b", "c")), ask_again=("0",)))


def test_a_function_that_never_returns_the_same_is_asked_once(lake: Any) -> None:
    numbers = itertools.count()
    lake.texts("a", "b")
    job = lake.job(make_task(lambda row: f"{next(numbers)} {row['text']}"))
    lake.finish(job, lambda asked: {"outcome": "expired", "error": "expired: late"})
    with pytest.raises(TaskError, match=r"it must return the same for the same row\.$"):
        lake.plan(job)


@pytest.mark.parametrize("checked", [CHECKED_ROWS, 1])
def test_of_an_answered_file_the_first_rows_are_compared_and_of_another_all(
    lake: Any, checked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "CHECKED_ROWS", checked)
    count, seen = 5_000, []
    lake.texts(*map(str, range(count)))
    job = lake.job(make_task(lambda row: row["text"]), path="reviews.parquet")
    failing = {"4999"}
    lake.finish(job, lambda asked: {"outcome": "expired", "error": "expired: x"} if asked.text in failing else echo(asked))
    other = make_task(lambda row: seen.append(row["id"]) or row["text"].replace("4000", "changed"))
    with pytest.raises(TaskError, match=said(4_000)):
        lake.plan(lake.job(other))
    failing.clear()
    lake.finish(job, echo)
    seen.clear()
    assert lake.plan(lake.job(other)).total.asked == 0
    assert seen == list(range(checked))


def test_files_after_the_first_are_compared_too(lake: Any) -> None:
    lake.texts("a", path="s/day=1/a.parquet")
    lake.texts("b", path="s/day=2/a.parquet")
    jobs = [
        lake.job(make_task(prompt), path="s", partition_column="day")
        for prompt in (lambda row: row["text"], lambda row: row["text"].replace("b", "c"))
    ]
    lake.finish(jobs[0], echo)
    with pytest.raises(TaskError, match=r"day=2/a\.parquet: " + said(0)):
        lake.plan(jobs[1])


def test_a_limit_compares_no_more_than_its_rows(lake: Any) -> None:
    lake.texts("a", "b", "c")
    lake.finish(lake.job(make_task(lambda row: row["text"])), echo)
    assert lake.plan(lake.job(make_task(lambda row: row["text"].replace("c", "d")), limit=2), preview=True).total.already_answered == 2


def test_a_template_is_not_rendered_again(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.texts("a", "b")
    task = ClaudeTask(name="asked", model=HAIKU, prompt="{text}", max_tokens=50)
    lake.finish(lake.job(task), echo)
    monkeypatch.setattr(drift, "render_rows", None)
    assert lake.plan(lake.job(task)).total.already_answered == 2


def test_an_image_is_priced_by_what_it_weighs(lake: Any) -> None:
    """In a plan, and where a plan is staged again that lost a race; its data is far longer than what it may cost."""
    picture = np.random.default_rng(0).bytes(300_000)

    def look(row: Row) -> list[dict[str, object]]:
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
        return [image, {"type": "text", "text": str(row["text"])}]

    lake.texts("a", "b")
    plan = lake.plan(lake.job(make_task(look)), preview=True)
    estimate = plan.estimates["asked"]
    assert 2 * 5_000 <= estimate.worst_input_tokens < 2 * 5_200
    assert estimate.largest_params_bytes < 11_000
    job = lake.job(make_task(look))
    slower = lake.plan(job)
    lake.texts("b")
    admit_plan(job, lake.plan(job))
    own = admit_plan(job, slower).own
    assert own is not None
    assert (own.keys.count, 2 * (own.cost_nano_usd.worst or 0)) == (1, slower.worst_nano_usd)
