import hashlib
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.request import Request, parse_custom_id, submission_tag
from claude_batch_dagster.core.shard import ShardPacker, iter_lines, line_custom_id
from claude_batch_dagster.storage import staging
from claude_batch_dagster.storage.staging import ShardStager
from claude_batch_dagster.storage.store import Store
from tests.lines import encode_line

REQUESTS = st.lists(
    st.builds(lambda key, text: Request(key, json.dumps({"a": text}).encode()), st.binary(min_size=16, max_size=16), st.text(max_size=30)),
    max_size=12,
)


@settings(max_examples=25)
@given(requests=REQUESTS, max_requests=st.integers(1, 5), max_body_bytes=st.integers(100, 400), number=st.integers(1, 3))
def test_staged_bodies_are_what_packing_says_and_their_references_are_true(
    requests: list[Request], max_requests: int, max_body_bytes: int, number: int
) -> None:
    lines = [encode_line("task", request, "00000000") for request in requests]
    packer = ShardPacker(max_requests=max_requests, max_body_bytes=max_body_bytes)
    with tempfile.TemporaryDirectory() as folder:
        store, scratch = Store(f"{folder}/root"), Path(folder)
        limits = {"max_requests": max_requests, "max_body_bytes": max_body_bytes}
        stager = ShardStager(store, run_id="r", round_number=number, scratch=scratch, **limits)
        places = [stager.add(line, 3) for line in lines]
        shards = stager.finish()
        assert places == [packer.place(len(line)) for line in lines]
        assert len(shards) == packer.shards
        assert sorted(store.list("")) == sorted(shard.path for shard in shards)
        for at, shard in enumerate(shards):
            body = store.get(shard.path)
            assert body is not None
            tag = submission_tag("r", number, at)
            kept = [request for request, place in zip(requests, places, strict=True) if place is not None and place.shard == at]
            assert list(iter_lines([body])) == [encode_line("task", request, tag) for request in kept]
            assert json.loads(body).keys() == {"requests"}
            assert (shard.requests, shard.body_bytes, shard.worst_nano_usd) == (len(kept), len(body), 3 * len(kept))
            assert shard.body_bytes <= max_body_bytes
            assert shard.requests <= max_requests
            assert shard.sha256 == hashlib.sha256(body).hexdigest()
            assert shard.path == f"plans/r/requests/{number}-{at}-{shard.sha256[:16]}.json"
        assert [path.name for path in scratch.iterdir() if path.name != "root"] == []


def test_a_body_may_be_full_to_the_byte(tmp_path: Path) -> None:
    line = encode_line("t", Request(bytes(16), b"{}"), "00000000")
    limit = len(b'{"requests":[]}') + 2 * len(line) + len(b",\n")
    for spare, shards in ((0, 1), (-1, 2)):
        stager = ShardStager(Store(str(tmp_path / str(spare))), run_id="r", round_number=1, scratch=tmp_path, max_body_bytes=limit + spare)
        assert None not in [stager.add(line, None), stager.add(line, None)]
        assert len(stager.finish()) == shards


def test_tags_are_those_of_the_shard_that_a_request_falls_into(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    stager = ShardStager(store, run_id="r", round_number=2, scratch=tmp_path, max_requests=1)
    for number in range(3):
        stager.add(encode_line("t", Request(bytes([number + 1] * 16), b"{}"), "ffffffff"), 0)
    tags = [parse_custom_id(line_custom_id(line)).tag for shard in stager.finish() for line in iter_lines(store.stream(shard.path))]
    assert tags == [submission_tag("r", 2, shard) for shard in range(3)]


def test_a_worst_case_without_a_price_is_unknown_for_its_shard_alone(tmp_path: Path) -> None:
    stager = ShardStager(Store(str(tmp_path / "root")), run_id="r", round_number=1, scratch=tmp_path, max_requests=2)
    line = encode_line("t", Request(bytes(16), b"{}"), "00000000")
    for cost in (1, None, 3, 4):
        stager.add(line, cost)
    assert [shard.worst_nano_usd for shard in stager.finish()] == [None, 7]


def test_nothing_staged_is_nothing_written(tmp_path: Path) -> None:
    assert ShardStager(Store(str(tmp_path / "root")), run_id="r", round_number=1, scratch=tmp_path).finish() == ()
    assert not (tmp_path / "root").exists()


def test_bodies_beyond_those_that_are_sent_at_once_do_not_stay_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = encode_line("t", Request(bytes(16), b'{"a":"%s"}' % (b"x" * 40_000)), "00000000")
    monkeypatch.setattr(staging, "KEPT_BYTES", 3 * len(line))
    store = Store(str(tmp_path / "root"))
    stager = ShardStager(store, run_id="r", round_number=1, scratch=tmp_path, max_requests=2)
    for _ in range(6):
        stager.add(line, None)
    files = [tmp_path / "root" / shard.path for shard in stager.finish()]
    assert [is_cached(file) for file in files] == [True, True, False]
    assert len({len(b"".join(store.stream(f"plans/r/requests/{file.name}", 4_096, forget=True))) for file in files}) == 1
    assert [is_cached(file) for file in files] == [False, False, False]


def is_cached(file: Path) -> bool:
    """Whether a file can be read from where 8 KiB begin without the disk."""
    with file.open("rb") as opened:
        try:
            return os.preadv(opened.fileno(), [bytearray(4_096)], 8_192, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False
        except OSError as error:
            pytest.skip(f"this file system does not tell: {error}")
