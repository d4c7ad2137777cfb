"""What an image weighs in a prompt: its pixels are billed, not the bytes of its file."""

import msgspec

IMAGE_BYTES = 10_000
"""Counted for an image in place of its data: 5,000 tokens at the worst case's 2 bytes a token. The API bills an image at most at about
4,784 tokens, at about 1,600 where the model takes standard resolution (platform.claude.com vision, checked 2026-11-23)."""
_IMAGE = b'"type":"image"'


class _Source(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


class _Block(msgspec.Struct):
    type: str = ""
    source: _Source | None = None
    content: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    content: msgspec.Raw


class _Params(msgspec.Struct):
    messages: list[_Message]


_read_params = msgspec.json.Decoder(_Params).decode
_read_blocks = msgspec.json.Decoder(list[_Block]).decode


def count_prompt_bytes(params: bytes) -> int:
    """Return how many bytes of text a request's params weigh as much as.

    Each image weighs IMAGE_BYTES, the data that it carries nothing; an image by URL or by file weighs as much. All else, documents among
    it, counts as it stands.

    Args:
        params: As JSON, in its canonical bytes: without spaces.
    """
    if _IMAGE not in params:
        return len(params)
    try:
        return len(params) + sum(_weigh_images(message.content) for message in _read_params(params).messages)
    except msgspec.DecodeError:
        # Nothing that the API takes: it counts as it stands.
        return len(params)


def _weigh_images(content: msgspec.Raw) -> int:
    """Return what the images in a list of blocks, and in the blocks of these, weigh more than their data is long."""
    weight = 0
    for block in _read_blocks(content) if bytes(memoryview(content)[:1]) == b"[" else ():
        if block.type == "image":
            weight += IMAGE_BYTES - (max(0, len(block.source.data) - len('""')) if block.source else 0)
        else:
            weight += _weigh_images(block.content) + (_weigh_images(block.source.content) if block.source else 0)
    return weight
