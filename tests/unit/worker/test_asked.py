"""temporal_worker/asked.py: which request a custom_id names, and where a shard's requests are read from."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.contract import BatchInput
from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import LogEntry
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.keys import keys_to_arrow, pack_keys
from claude_batch_dagster.storage.plans import read_root
from claude_batch_dagster.storage.store import Store
from temporal_worker.asked import ABSENT, Requests, check_requests, read_requests, split_custom_ids
from temporal_worker.root import OpenRoot
from tests.stack import stage_plan, texts

TAG = "deadbeef"
ONE = ClaudeTask(name="one", model="claude-haiku-5-5", prompt="{text}", max_tokens=100)
TWO = ClaudeTask(name="two", model="claude-haiku-5-5", prompt="Tell of {text}", max_tokens=70)
KEYS = [bytes(16), *(first * 8 + second * 8 for first in (b"\x01", b"\xff") for second in (b"\x00", b"\x10", b"\xfe"))]


def requests(names: list[str]) -> Requests:
    """Each key under each name; several keys begin alike."""
    return Requests(
        names=names,
        tag=TAG,
        keys=pack_keys([key for _ in names for key in KEYS]),
        tasks=np.repeat(np.arange(len(names), dtype=np.int32), len(KEYS)),
        max_tokens=np.full(len(names) * len(KEYS), 1, np.int64),
    )


def ids_of(names: list[str]) -> list[str]:
    return [f"{name}-{key.hex()}-{TAG}" for name in names for key in KEYS]


NEAR = st.builds(
    lambda custom_id, at, char: custom_id[:at] + char + custom_id[at + 1 :],
    st.sampled_from(ids_of(["one", "two"])),
    st.integers(0, 50),
    st.characters() | st.sampled_from("0fF\ng -é😀\x00"),
)
ANY_IDS = st.lists(st.sampled_from(ids_of(["one", "two"])) | NEAR | st.text(), max_size=8)


@given(st.sampled_from([["one"], ["one", "two"], ["o", "one"]]), ANY_IDS)
def test_a_custom_id_names_its_request_or_none(names: list[str], custom_ids: list[str]) -> None:
    """As a dict of them would say, whatever stands beside it."""
    asked = requests(names)
    places = {custom_id: place for place, custom_id in enumerate(ids_of(names))}
    assert asked.find(custom_ids).tolist() == [places.get(custom_id, ABSENT) for custom_id in custom_ids]
    assert asked.distinct == len(asked) == len(places)


@given(st.lists(st.sampled_from(ids_of(["one"])), min_size=2, max_size=6), st.data())
def test_ids_that_only_together_look_like_ours_are_nobodys(custom_ids: list[str], data: st.DataObject) -> None:
    """Cut elsewhere, with or without what joins them."""
    for glue in ("", "\n"):
        text = glue.join(custom_ids)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=len(custom_ids) - 1, max_size=len(custom_ids) - 1)))
        pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ours = re.compile(f"one-[0-9a-f]{{32}}-{TAG}").fullmatch
        tasks, _ = split_custom_ids(pieces, ["one"], TAG)
        assert (tasks != ABSENT).tolist() == [ours(piece) is not None for piece in pieces]


def test_requests_twice_are_seen() -> None:
    doubled = Requests(
        names=["one"], tag=TAG, keys=pack_keys([KEYS[1], KEYS[2], KEYS[1]]), tasks=np.zeros(3, np.int32), max_tokens=np.ones(3, np.int64)
    )
    assert (doubled.distinct, len(doubled)) == (2, 3)


def staged(folder: Path) -> tuple[OpenRoot, BatchInput]:
    store = Store(str(folder / "root"))
    entry = stage_plan(store, texts(7), tasks=(ONE, TWO), max_requests=4)
    record = read_root(store)
    assert record is not None
    batch = BatchInput(root=store.uri, number=1, run_id=entry.run_id, round=1, shard=1, batch_id="b")
    return OpenRoot(store=store, record=record, entry=entry), batch


def rewrite(root: OpenRoot, entry: LogEntry, change: str) -> None:
    """Change `keys.parquet` of a run."""
    path = Path(root.store.uri.removeprefix("file://")) / entry.keys.path
    table = pq.read_table(path)
    match change:
        case "older":
            table = table.drop_columns(["max_tokens"])
        case "cut":
            table = table.slice(0, 6)
        case "moved":
            table = table.set_column(3, table.schema.field("position"), [np.zeros(len(table), np.int32)])
        case "another":
            keys = table["request_key"].combine_chunks().storage.to_pylist()
            keys[5] = bytes(16)
            table = table.set_column(1, "request_key", keys_to_arrow(pack_keys(keys)))
    pq.write_table(table, path)


def test_what_the_run_owns_says_what_the_body_says(tmp_path: Path) -> None:
    """In its order, with both tasks' caps; nothing of the body is read for it."""
    root, batch = staged(tmp_path)
    found = read_requests(root, batch)
    lines = list(iter_lines(root.store.stream(root.entry.shards[1].path)))
    assert found.find([line_custom_id(line) for line in lines]).tolist() == [0, 1, 2, 3]
    assert (found.tasks.tolist(), found.max_tokens.tolist()) == ([0, 0, 0, 1], [100, 100, 100, 70])
    check_requests(root, batch, found)
    root.store.delete(root.entry.shards[1].path)
    assert read_requests(root, batch).same_as(found)


@pytest.mark.parametrize("change", ["older", "cut", "moved", "deleted"])
def test_the_body_is_read_where_the_owned_keys_do_not_tell_all(change: str, tmp_path: Path) -> None:
    root, batch = staged(tmp_path)
    expected = read_requests(root, batch)
    if change == "deleted":
        root.store.delete(root.entry.keys.path)
    else:
        rewrite(root, root.entry, change)
    assert read_requests(root, batch).same_as(expected)
    root.store.delete(root.entry.shards[1].path)
    with pytest.raises(RootError, match=r"is missing: the root lost its records"):
        read_requests(root, batch)


def test_owned_keys_that_are_not_those_of_the_body_are_refused(tmp_path: Path) -> None:
    """Where results are missing or foreign."""
    root, batch = staged(tmp_path)
    rewrite(root, root.entry, "another")
    with pytest.raises(RootError, match=r"do not hold the same requests\. The run does not go on with batch b"):
        check_requests(root, batch, read_requests(root, batch))


def test_a_body_of_fewer_requests_is_refused(tmp_path: Path) -> None:
    root, batch = staged(tmp_path)
    root.store.delete(root.entry.keys.path)
    first, second = root.entry.shards[:2]
    shards = (first, msgspec.structs.replace(second, requests=5), *root.entry.shards[2:])
    with pytest.raises(RootError, match=r"holds 4 requests, the plan says 5"):
        read_requests(replace(root, entry=msgspec.structs.replace(root.entry, shards=shards)), batch)
