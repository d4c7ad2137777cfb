import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.prompt_function import Prompt
from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask

PICTURE = b"\x89PNG\r\n"


def make_task(prompt: Any, **more: Any) -> ClaudeTask:
    return ClaudeTask(name="asked", model="claude-haiku-5-5", prompt=prompt, max_tokens=100, **{"version": 1, **more})


def ask(returned: Prompt) -> Any:
    [request] = Renderer(make_task(lambda row: returned), ["text"]).render([("a",)])
    return None if request is None else json.loads(request.params)["messages"]


def test_a_text_is_asked_exactly_as_a_template_would_ask_it() -> None:
    def describe(row: Mapping[str, object]) -> str:
        return f'Say {row["text"]!s}: \n"{row["product"]}"'

    template = ClaudeTask(name="t", model="claude-haiku-5-5", prompt='Say {text}: \n"{product}"', max_tokens=100)
    rows = [("é\x00", "tent"), ('"', "\U0001f389")]
    asked = list(Renderer(make_task(describe), ["text", "product"]).render(rows))
    assert asked == list(Renderer(template, ["text", "product"]).render(rows))


def test_content_blocks_are_one_user_message_and_bytes_are_base64() -> None:
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    expected = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PICTURE).decode()}}
    assert ask([block, {"type": "text", "text": "What is it?"}]) == [
        {"role": "user", "content": [expected, {"type": "text", "text": "What is it?"}]}
    ]


def test_several_turns_are_asked_as_they_are() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert ask(turns) == turns


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_nothing_returned_asks_nothing(nothing: str | None) -> None:
    assert ask(nothing) is None


@pytest.mark.parametrize("strange", [7, [], [{"text": "no type"}], {"role": "user"}, ["a"], b"bytes"])
def test_what_cannot_be_asked_is_refused_with_what_may_be_returned(strange: Any) -> None:
    with pytest.raises(TaskError, match=r"prompt function .* of task 'asked' returned .*Return a text, a list of content blocks"):
        ask(strange)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TaskError, match="no JSON"):
        ask([{"role": "user", "content": object()}])


def test_a_function_that_fails_is_named_with_the_row() -> None:
    task = make_task(lambda row: row["text"].upper())  # type: ignore[attr-defined]
    with pytest.raises(TaskError, match="failed with AttributeError") as refused:
        list(Renderer(task, ["text"]).render([("a",), (None,)]))
    assert refused.value.context["row"] == 1


def test_only_the_columns_that_it_reads_are_read() -> None:
    seen: list[Mapping[str, object]] = []
    task = make_task(lambda row: seen.append(row) or "x", prompt_columns=["text"])
    renderer = Renderer(task, ["id", "text"])
    assert renderer.columns == ("text",)
    list(renderer.render([("a",)]))
    assert seen == [{"text": "a"}]
    with pytest.raises(TaskError, match="'text', which the source does not have"):
        Renderer(task, ["id", "txt"])


def test_a_version_is_required_and_part_of_what_the_task_is() -> None:
    def describe(row: Mapping[str, object]) -> str:
        return "x"

    with pytest.raises(TaskError, match="no version"):
        make_task(describe, version=None)
    assert make_task(describe).task_key == make_task(describe).task_key != make_task(describe, version=2).task_key
    assert make_task(describe).task_key != make_task(lambda row: "x").task_key


def test_columns_of_a_text_are_its_slots() -> None:
    with pytest.raises(TaskError, match="its slots say them"):
        make_task("{text}", prompt_columns=["text"])


@pytest.mark.parametrize(("columns", "words"), [("text", r"Write a list: \['text'\]"), ([], "Name those that its function reads")])
def test_columns_that_name_none_are_refused(columns: Any, words: str) -> None:
    """A text would be read as its letters, and of no column there are no rows."""
    with pytest.raises(TaskError, match=words):
        make_task(lambda row: "x", prompt_columns=columns)


def test_what_holds_itself_is_refused() -> None:
    block: dict[str, Any] = {"type": "text", "text": "a"}
    block["more"] = block
    with pytest.raises(TaskError, match=r"no JSON: .*recursion.*Nothing was sent"):
        ask([block])


@pytest.mark.parametrize("strange", [["secret"], [{"text": "secret"}], {"secret": "secret"}, b"secret", ("secret", 7)])
def test_a_refusal_tells_types_and_no_row(strange: Any) -> None:
    with pytest.raises(TaskError, match=type(strange).__name__) as refused:
        ask(strange)
    assert "secret" not in str(refused.value)
