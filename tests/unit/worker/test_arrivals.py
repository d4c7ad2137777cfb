"""temporal_worker/arrivals.py: results in any order and in any chunks, given back in the order of the requests."""

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.request import read_key_digits
from claude_batch_dagster.core.response import Decoder
from claude_batch_dagster.storage.keys import pack_keys
from temporal_worker import arrivals
from temporal_worker.arrivals import KEPT, Arrivals, Arrived, price_each
from temporal_worker.asked import Requests

COUNT = 60
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "word": {"enum": ["yes"]}}, "required": ["n"]}
IDS = [f"{('one', 'two')[place % 3 == 0]}-{place:032x}-deadbeef" for place in range(COUNT)]
REQUESTS = Requests(
    names=["one", "two"],
    tag="deadbeef",
    keys=pack_keys([place.to_bytes(16, "big") for place in range(COUNT)]),
    tasks=np.array([int(place % 3 == 0) for place in range(COUNT)], np.int32),
    max_tokens=np.full(COUNT, 100, np.int64),
)


def price(model: str, **tokens: int) -> int | None:
    return None if model == "unpriced" else sum(tokens.values())


DECODERS = [Decoder({"schema": SCHEMA, "max_tokens": 100}, price), Decoder({"schema": None, "max_tokens": 100}, price)]
MISSING = DECODERS[0].missing_result(bytes(16), "it did not come")


def succeeded(place: int, text: str | None = None, stop_reason: str = "end_turn") -> dict[str, Any]:
    usage = {
        "input_tokens": place,
        "output_tokens": 2,
        "cache_creation_input_tokens": 5,
        "cache_creation": {"ephemeral_1h_input_tokens": 3},
    }
    content = [{"type": "text", "text": f'{{"n":{place}}}' if text is None else text}]
    model = "unpriced" if place % 7 == 0 else "claude-haiku-5-5"
    return {"type": "succeeded", "message": {"model": model, "content": content, "usage": usage, "stop_reason": stop_reason}}


RESULTS = [
    succeeded,
    lambda place: succeeded(place, '{"n":1,"word":"YES"}'),
    lambda place: succeeded(place, "é" * place),
    lambda place: succeeded(place, "half", "max_tokens"),
    lambda place: {"type": "errored", "error": {"type": "error", "error": {"type": "api_error", "message": str(place)}}},
    lambda _: {"type": "expired"},
    lambda _: {"type": "teleported"},
]


def make_line(place: int, kind: int) -> bytes:
    return msgspec.json.encode({"custom_id": IDS[place], "result": RESULTS[kind](place)})


def arrive(folder: Path, content: bytes, chunk: int = 1_000) -> Arrived:
    with Arrivals(folder / "answers", REQUESTS, DECODERS, price_each(price)) as taken:
        for start in range(0, len(content), chunk):
            taken.add(content[start : start + chunk])
    return taken.arrange()


def read(arrived: Arrived, places: "np.ndarray[Any, np.dtype[np.int32]] | None" = None) -> list[dict[str, Any]]:
    wanted = np.arange(COUNT, dtype=np.int32) if places is None else places
    return [row for _, rows in arrived.read(wanted, MISSING) for row in rows.to_pylist()]


def expect(place: int, line: bytes | None) -> dict[str, Any]:
    """Decode a line alone, by the path that takes one at a time."""
    key = bytes.fromhex(read_key_digits(IDS[place]))
    response = (
        MISSING
        if line is None
        else DECODERS[place % 3 == 0].decode_result(key, msgspec.json.decode(line, type=dict[str, msgspec.Raw])["result"])
    )
    return {name: getattr(response, name) for name in KEPT.names}


@given(
    st.lists(st.integers(0, len(RESULTS) - 1), min_size=COUNT, max_size=COUNT),
    st.randoms(use_true_random=False),
    st.integers(1, 5_000),
    st.sampled_from([0, 500, 1 << 20]),
)
def test_results_come_back_in_the_order_of_their_requests(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[int], order: random.Random, chunk: int, held_bytes: int
) -> None:
    """Each as if it were alone, also where answers do not stay in memory; some requests have none."""
    lines = {place: make_line(place, kind) for place, kind in enumerate(kinds) if place % 11}
    shuffled = list(lines.values())
    order.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals, "HELD_BYTES", held_bytes)
        arrived = arrive(tmp_path_factory.mktemp("arrive"), b"\n".join(shuffled), chunk)
    assert read(arrived) == [expect(place, lines.get(place)) for place in range(COUNT)]
    assert (arrived.missing, arrived.foreign, arrived.duplicate) == (COUNT - len(lines), 0, 0)
    some = np.array([50, 3, 0, 7], np.int32)
    assert read(arrived, some) == [expect(place, lines.get(place)) for place in some.tolist()]


def test_the_first_of_a_requests_lines_counts(tmp_path: Path) -> None:
    """Also where the first takes the slow path, and the second the fast one; what is no request's is counted and left."""
    lines = [make_line(1, 6), make_line(1, 0), make_line(2, 0), make_line(2, 0), make_line(4, 0)]
    strange = [b"{", b"", b'{"custom_id":"x","result":{"type":"expired"}}', b"\xff"]
    arrived = arrive(tmp_path, b"\n".join([*lines, *strange, make_line(4, 6)]) + b"\n")
    assert (arrived.missing, arrived.foreign, arrived.duplicate) == (COUNT - 3, 3 + 2, 1)
    found = read(arrived)
    assert [found[place]["outcome"] for place in (1, 2, 4)] == ["errored", "succeeded", "succeeded"]
    assert found[3] == expect(3, None)


def test_more_results_than_requests(tmp_path: Path) -> None:
    """Each of them thrice, the first of them from the end of the results' order: the first counts, and nothing is lost."""
    lines = [make_line(place, place % len(RESULTS)) for place in range(COUNT)]
    arrived = arrive(tmp_path, b"\n".join([*lines[::-1], *lines, *lines]))
    assert (arrived.missing, arrived.foreign, arrived.duplicate) == (0, 0, 2 * COUNT)
    assert read(arrived) == [expect(place, line) for place, line in enumerate(lines)]


def test_answers_are_read_back_so_many_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the answers; one that is larger stands alone."""
    monkeypatch.setattr(arrivals, "GROUP_BYTES", 100)
    monkeypatch.setattr(arrivals, "HELD_BYTES", 300)
    places = [place for place in range(COUNT) if place % 3 == 0]
    sizes = {place: 250 if place == 30 else 40 for place in places}
    lines = [msgspec.json.encode({"custom_id": IDS[place], "result": succeeded(place, "x" * sizes[place])}) for place in places]
    random.Random(1).shuffle(lines)
    arrived = arrive(tmp_path, b"\n".join(lines))
    groups = [rows for _, rows in arrived.read(np.array(places, np.int32), MISSING)]
    assert [answer for rows in groups for answer in map(len, rows.column("answer").to_pylist())] == list(sizes.values())
    assert {rows.num_rows for rows in groups} == {1, 2}
    assert max(rows.column("answer").nbytes for rows in groups if rows.num_rows > 1) < 150


def test_nothing_came(tmp_path: Path) -> None:
    """A batch without results, or whose results are gone."""
    for arrived in (arrive(tmp_path, b""), Arrived.nothing(COUNT, price_each(price))):
        assert arrived.missing == COUNT
        assert read(arrived) == [expect(place, None) for place in range(COUNT)]
