import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from claude_batch_dagster.core.request import Request
from claude_batch_dagster.core.shard import (
    HEAD,
    MAX_BODY_BYTES,
    MAX_REQUESTS,
    SEPARATOR,
    TAIL,
    Place,
    ShardPacker,
    fits_alone,
    iter_lines,
    line_custom_id,
    line_max_tokens,
    line_params,
    raise_line,
    read_asked,
    retag_line,
)
from tests.lines import encode_line

ENVELOPE_BYTES = len('{"requests":[]}')


def body_of(lines: list[bytes]) -> bytes:
    return HEAD + SEPARATOR.join(lines) + TAIL


def pack_by_hand(sizes: list[int], max_requests: int, max_body_bytes: int) -> list[Place | None]:
    """Packs by building the bodies."""
    bodies: list[list[bytes]] = [[]]
    places: list[Place | None] = []
    for size in sizes:
        line = b"x" * size
        if len(body_of([line])) > max_body_bytes:
            places.append(None)
            continue
        if len(bodies[-1]) == max_requests or len(body_of([*bodies[-1], line])) > max_body_bytes:
            bodies.append([])
        bodies[-1].append(line)
        places.append(Place(len(bodies) - 1, len(bodies[-1]) - 1))
    return places


@given(sizes=st.lists(st.integers(1, 60), max_size=40), max_requests=st.integers(1, 6), max_body_bytes=st.integers(10, 150))
def test_packing_is_what_building_the_bodies_would_give(sizes: list[int], max_requests: int, max_body_bytes: int) -> None:
    packer = ShardPacker(max_requests=max_requests, max_body_bytes=max_body_bytes)
    places = [packer.place(size) for size in sizes]
    assert places == pack_by_hand(sizes, max_requests, max_body_bytes)
    assert packer.shards == len({place.shard for place in places if place})


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ([10, 10], [0, 0]),
        ([10, 11], [0, 1]),
        ([22], [0]),
        ([23], [None]),
        ([22, 1], [0, 1]),
        ([5, 23, 5], [0, None, 0]),
        ([6, 6, 6], [0, 0, 0]),
        ([6, 6, 7], [0, 0, 1]),
    ],
)
def test_a_body_is_full_exactly_at_its_last_byte_envelope_and_separators_included(sizes: list[int], shards: list[int | None]) -> None:
    packer = ShardPacker(max_body_bytes=ENVELOPE_BYTES + 22)
    assert [place.shard if (place := packer.place(size)) else None for size in sizes] == shards


def test_the_limits_are_the_vendors() -> None:
    assert (MAX_REQUESTS, MAX_BODY_BYTES) == (100_000, 256_000_000)
    assert fits_alone(MAX_BODY_BYTES - ENVELOPE_BYTES)
    assert not fits_alone(MAX_BODY_BYTES - ENVELOPE_BYTES + 1)
    assert len(body_of([])) == ENVELOPE_BYTES


def test_two_requests_fill_a_body_of_256_megabytes_to_the_byte() -> None:
    half = (MAX_BODY_BYTES - ENVELOPE_BYTES - len(SEPARATOR)) // 2
    rest = MAX_BODY_BYTES - ENVELOPE_BYTES - len(SEPARATOR) - half
    exact, over = ShardPacker(), ShardPacker()
    assert [exact.place(half), exact.place(rest), exact.place(1)] == [Place(0, 0), Place(0, 1), Place(1, 0)]
    assert [over.place(half), over.place(rest + 1)] == [Place(0, 0), Place(1, 0)]


def test_a_hundred_thousand_requests_are_one_body_and_one_more_is_the_next() -> None:
    packer = ShardPacker(max_requests=10**9)
    places = [packer.place(1) for _ in range(MAX_REQUESTS + 1)]
    assert places[MAX_REQUESTS - 1 :] == [Place(0, MAX_REQUESTS - 1), Place(1, 0)]
    assert packer.shards == 2


def test_no_request_makes_no_body() -> None:
    packer = ShardPacker(max_body_bytes=20)
    assert packer.place(20) is None
    assert packer.shards == 0


REQUESTS = st.lists(
    st.builds(
        lambda key, text: Request(key, json.dumps({"messages": text}, ensure_ascii=False).encode()),
        st.binary(min_size=16, max_size=16),
        st.text(max_size=12) | st.text('"\\}{],:[\n\r\u2028', max_size=12) | st.just('"requests":[]}'),
    ),
    max_size=5,
)


@given(requests=REQUESTS, cuts=st.lists(st.integers(0, 600), max_size=8))
@example(requests=[], cuts=[])
def test_requests_come_out_of_a_body_however_it_is_cut_into_chunks(requests: list[Request], cuts: list[int]) -> None:
    lines = [encode_line("t", request, "0123abcd") for request in requests]
    body = body_of(lines)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert list(iter_lines(body[start:end] for start, end in pairwise(edges))) == lines
    assert json.loads(body) == {"requests": [json.loads(line) for line in lines]}


def test_requests_come_out_of_a_body_byte_by_byte() -> None:
    lines = [encode_line("t", Request(bytes(16), b'{"a":"]}"}'), "0123abcd")] * 3
    assert list(iter_lines(bytes([byte]) for byte in body_of(lines))) == lines


@given(name=st.text("abcXYZ019_-", min_size=1, max_size=22), key=st.binary(min_size=16, max_size=16), text=st.text(max_size=20))
def test_a_line_under_another_tag_is_the_same_request(name: str, key: bytes, text: str) -> None:
    request = Request(key, json.dumps({"custom_id": text}).encode())
    line = encode_line(name, request, "00000000")
    assert retag_line(line, "89abcdef") == encode_line(name, request, "89abcdef")
    assert line_custom_id(line) == f"{name}-{key.hex()}-00000000"
    assert line_params(line) == request.params


AWKWARD_PARAMS = [
    b'{"max_tokens":300,"messages":[{"content":"x","role":"user"}],"model":"m"}',
    b'{"max_tokens":1,"messages":[{"content":"say \\"max_tokens\\":5, then \\u0000 \xe2\x80\xa8 \xf0\x9f\x8e\x89","role":"user"}]}',
    b'{"container":{"max_tokens":7},"max_tokens":300,"output_config":{"format":{"schema":{"properties":{"max_tokens":{"const":9}}}}}}',
    b'{"max_tokens":300,"temperature":1.50,"thinking":{"budget_tokens":1024,"type":"enabled"},"big":123456789012345678901234567890}',
]


@pytest.mark.parametrize("params", AWKWARD_PARAMS)
def test_a_raised_line_differs_in_its_max_tokens_alone(params: bytes) -> None:
    """Not in one other byte, whatever stands around it: it is asked under the key of the request that it was."""
    line = b'{"custom_id":"summaries-%b-deadbeef","params":%b}' % (b"0" * 32, params)
    old = line_max_tokens(line)
    raised = raise_line(line, 64_000)
    at = line.index(b'"max_tokens":%d,' % old)
    assert raised == line[:at] + b'"max_tokens":64000,' + line[at + len(b'"max_tokens":%d,' % old) :]
    assert line_max_tokens(raised) == 64_000
    assert line_custom_id(raised) == line_custom_id(line)


@example(caps=[(300, False), (600, True), (300, False)], text="", chunk=300)
@given(
    caps=st.lists(st.tuples(st.integers(1, 128_000) | st.sampled_from([300, 600]), st.booleans()), min_size=1, max_size=12),
    text=st.text(),
    chunk=st.integers(1, 300),
)
def test_what_a_body_asks_is_read_from_its_heads(caps: list[tuple[int, bool]], text: str, chunk: int) -> None:
    """However it is cut into chunks, and wherever in its params `max_tokens` stands."""
    lines = []
    for place, (cap, late) in enumerate(caps):
        params = {"messages": [text, '","params":{"max_tokens":7,'], "max_tokens": cap} if late else {"max_tokens": cap, "messages": [text]}
        request = Request(place.to_bytes(16, "big"), json.dumps(params, separators=(",", ":")).encode())
        lines.append(encode_line("t", request, "deadbeef"))
    body = body_of(lines)
    asked = read_asked(body[start : start + chunk] for start in range(0, len(body), chunk))
    assert asked.custom_ids == [line_custom_id(line) for line in iter_lines([body])]
    assert asked.max_tokens == [cap for cap, _ in caps]
