import base64
import json
from typing import Any

import msgspec
import pytest

from claude_batch_dagster.core.request import Renderer
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.core.vision import IMAGE_BYTES, count_prompt_bytes

PICTURE = bytes(range(256)) * 40
DATA_LENGTH = len(base64.b64encode(PICTURE))
BLOCK: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
BY_URL = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
HOSTILE = [
    '"type":"image"}',
    '{"source":{"data":"AAAA","type":"base64"},"type":"image"}',
    'x","type":"image","y":"',
    '\\","type":"image"}],"messages":[{"content":[{"type":"image"}]}]',
    '\\\\"},{"source":{"data":"","type":"base64"},"type":"image"},{"a":"',
]


def params(content: Any, **more: Any) -> bytes:
    task = ClaudeTask(name="t", model="claude-haiku-5-5", max_tokens=9, version=1, prompt=lambda row: content, **more)
    [request] = Renderer(task, ["text"]).render([("a",)])
    assert request is not None
    return request.params


@pytest.mark.parametrize(
    ("content", "images", "carried"),
    [
        ([BLOCK], 1, 1),
        ([BLOCK, {"type": "text", "text": "What is it?"}, BLOCK], 2, 2),
        ([{**BLOCK, "cache_control": {"type": "ephemeral"}}], 1, 1),
        ([BY_URL, {"type": "image", "source": {"type": "file", "file_id": "file_1"}}], 2, 0),
        ([{"role": "user", "content": [BLOCK]}, {"role": "assistant", "content": "a"}, {"role": "user", "content": [BY_URL]}], 2, 1),
        ([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [BLOCK]}]}], 1, 1),
        ([{"type": "document", "source": {"type": "content", "content": [BLOCK, {"type": "text", "text": "x"}]}}], 1, 1),
        ([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PICTURE}}], 0, 0),
        ([{"type": "tool_use", "id": "1", "name": "n", "input": {"type": "image", "source": {"data": "AAAA"}}}], 0, 0),
        ("text", 0, 0),
    ],
)
def test_an_image_weighs_the_same_however_long_its_data_is(content: Any, images: int, carried: int) -> None:
    asked = params(content)
    assert count_prompt_bytes(asked) == len(asked) + images * IMAGE_BYTES - carried * DATA_LENGTH


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_that_looks_like_an_image_is_a_text(text: str) -> None:
    for content in (text, [{"type": "text", "text": text}], [{"type": "tool_use", "id": "1", "name": "n", "input": {text: text}}]):
        asked = params(content, system=text)
        assert count_prompt_bytes(asked) == len(asked)
        with_image = params([*([{"type": "text", "text": content}] if isinstance(content, str) else content), BLOCK], system=text)
        assert count_prompt_bytes(with_image) == len(with_image) + IMAGE_BYTES - DATA_LENGTH


@pytest.mark.parametrize("strange", [{"type": "image"}, {"type": "image", "source": None}, {"type": "image", "source": {"data": 7}}])
def test_an_image_without_data_weighs_as_an_image(strange: Any) -> None:
    asked = params([strange])
    assert count_prompt_bytes(asked) >= len(asked) + IMAGE_BYTES - 1


def test_what_the_api_does_not_take_counts_as_it_stands() -> None:
    for strange in ([{"type": "image", "source": "x"}], [{"type": "image"}, 7], [{"type": 7, "content": '"type":"image"'}]):
        asked = msgspec.json.encode({"max_tokens": 9, "messages": [{"content": strange, "role": "user"}]})
        assert json.loads(asked)
        assert count_prompt_bytes(asked) == len(asked)
