import os
from pathlib import Path

import pytest

from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.check import IndexCheck, check_index
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.index import find_generation, index_folder, read_newest, sum_columns
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.responses import responses_path
from claude_batch_dagster.storage.store import Store
from tests.unit.storage.responses_of import ALWAYS, answer, key, write

FOLDER = index_folder("simulator", "t")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(i) for i in range(5)])
    write(store, "b1", [Response(request_key=key(4), outcome="expired", error="expired: x")])
    return store


def test_a_store_without_an_index_has_nothing_to_check(store: Store) -> None:
    assert check_index(store, "simulator", "t") is None


def test_a_right_index_is_left_as_it_is(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    write(store, "b2", [answer(5)])
    assert check_index(store, "simulator", "t") == IndexCheck(keys=6, rows=7, wrong=0)
    assert find_generation(store, FOLDER) == 1


def test_a_damaged_index_is_made_again(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    store.put(f"{FOLDER}/00000001.json", b"{")
    assert check_index(store, "simulator", "t") == IndexCheck(keys=5, rows=6, wrong=5)
    assert check_index(store, "simulator", "t") == IndexCheck(keys=5, rows=6, wrong=0)


def test_an_index_that_says_something_else_of_a_request_is_made_again(store: Store) -> None:
    """Its checksum is right, so nobody but this check would tell."""
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    record = read_newest(store, FOLDER).record
    assert record is not None
    assert store.folder is not None
    columns = store.folder / FOLDER / record.columns
    content = bytearray(columns.read_bytes())
    content[-1] ^= 0x80
    # The last key of all becomes another one.
    content[record.keys * 8 - 1] = 0xFF
    columns.write_bytes(content)
    path = store.folder / FOLDER / "00000001.json"
    path.write_bytes(path.read_bytes().replace(record.checksum.encode(), sum_columns(columns).encode()))
    assert check_index(store, "simulator", "t") == IndexCheck(keys=5, rows=6, wrong=2)
    assert check_index(store, "simulator", "t") == IndexCheck(keys=5, rows=6, wrong=0)
    assert Answers(store, "simulator", "t").final(pack_keys([key(i) for i in range(6)])).tolist() == [True] * 5 + [False]


def test_a_response_file_that_changed_without_a_trace_is_found(store: Store) -> None:
    maintain_responses(store, "simulator", "t", limits=ALWAYS)
    assert store.folder is not None
    (file,) = (store.folder / "responses/simulator/t").glob("compacted-*")
    times, content = file.stat(), file.read_bytes()
    assert key(2) in content
    with file.open("r+b") as opened:
        opened.write(content.replace(key(2), key(99)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = check_index(store, "simulator", "t")
    assert found is not None
    assert found.wrong == 2
    assert Answers(store, "simulator", "t").final(pack_keys([key(2), key(99)])).tolist() == [False, True]
    assert responses_path("simulator", "t", "b0") in store.list("responses")
