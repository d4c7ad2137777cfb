import hashlib
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.storage.keys import (
    ASKED,
    LARGE,
    OWNED_SCHEMA,
    ROW_KEYS_SCHEMA,
    SKIPPED,
    KeySet,
    OwnedKeys,
    RowKeys,
    has_key,
    iter_row_keys,
    keys_from_arrow,
    keys_to_arrow,
    owned_keys_path,
    pack_keys,
    read_owned_keys,
    read_owned_shard,
    row_keys_path,
)
from claude_batch_dagster.storage.store import Store
from tests.lines import key_digits

# A key is a hash: it is never all zeros, which stand for "no key". Its first half may be, and may be another's.
HALVES = st.sampled_from([bytes(8), b"\x01" + bytes(7), b"\xff" * 8]) | st.binary(min_size=8, max_size=8)
KEYS = st.builds(bytes.__add__, HALVES, HALVES).filter(any)
ROWS = st.lists(st.none() | KEYS, max_size=30)


def key(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()[:16]


def add_to_python_set(held: set[bytes], rows: list[bytes | None]) -> list[bool]:
    new = []
    for row in rows:
        new.append(row is not None and row not in held)
        if row is not None:
            held.add(row)
    return new


@settings(max_examples=60)
@given(pieces=st.lists(ROWS, max_size=6), asked=ROWS, expected=st.integers(0, 50))
def test_a_key_set_is_a_set_of_keys(pieces: list[list[bytes | None]], asked: list[bytes | None], expected: int) -> None:
    keys, oracle = KeySet(expected), set[bytes]()
    for piece in pieces:
        assert keys.add(pack_keys(piece)).tolist() == add_to_python_set(oracle, piece)
    assert len(keys) == len(oracle)
    asked = [*asked, *oracle]
    assert keys.contains(pack_keys(asked)).tolist() == [row in oracle for row in asked]


def test_keys_of_equal_first_halves_are_told_apart_also_where_they_fill_a_table() -> None:
    rows = [b"\x2a" + bytes(7) + i.to_bytes(8, "little") for i in range(800)]
    keys = KeySet()
    assert keys.add(pack_keys([*rows, *rows[::-1]])).tolist() == [True] * 800 + [False] * 800
    assert keys.contains(pack_keys(rows)).all()
    assert not keys.contains(pack_keys([b"\x2a" + bytes(7) + b"\xff" * 8, b"\x2b" + bytes(15)])).any()


def test_a_key_set_grows_over_its_expectation() -> None:
    rows = [key(i) for i in range(40_000)]
    keys = KeySet(10)
    for start in range(0, len(rows), 3_000):
        assert keys.add(pack_keys(rows[start : start + 3_000])).all()
    assert len(keys) == len(rows)
    assert keys.contains(pack_keys(rows)).all()
    assert not keys.contains(pack_keys([key(i) for i in range(40_000, 50_000)])).any()
    assert not keys.add(pack_keys(rows)).any()


def test_a_table_goes_round_at_its_end() -> None:
    # A table for 1,000 keys has 1,429 slots; all of these start at the last two.
    rows = [(1_428 - step).to_bytes(8, "little") + i.to_bytes(8, "little") for step in range(2) for i in range(1, 200)]
    keys = KeySet(1_000)
    assert keys.add(pack_keys(rows)).all()
    assert keys.contains(pack_keys(rows)).all()


@settings(max_examples=60)
@given(rows=ROWS, start=st.integers(0, 30), length=st.integers(0, 30), chunks=st.integers(1, 3))
def test_keys_go_through_arrow_and_back_also_null_sliced_and_in_chunks(
    rows: list[bytes | None], start: int, length: int, chunks: int
) -> None:
    column = keys_to_arrow(pack_keys(rows), null_where_absent=True)
    assert column.type == pa.uuid()
    assert column.to_pylist() == [None if row is None else UUID(bytes=row) for row in rows]
    wanted = rows[start : start + length]
    assert keys_from_arrow(column.slice(start, length)).tolist() == pack_keys(wanted).tolist()
    parts = pa.chunked_array([column.slice(start, length)] * chunks, pa.uuid())
    assert keys_from_arrow(parts).tolist() == pack_keys(wanted * chunks).tolist()
    assert keys_from_arrow(column.storage.slice(start, length)).tolist() == pack_keys(wanted).tolist()


def test_no_keys_are_no_rows() -> None:
    assert keys_from_arrow(pa.chunked_array([], pa.uuid())).shape == (0, 2)
    assert pack_keys([]).shape == (0, 2)
    assert key_digits(pack_keys([])) == []


@settings(max_examples=20)
@given(rows=st.lists(KEYS, max_size=5))
def test_keys_are_shown_as_hex(rows: list[bytes]) -> None:
    assert key_digits(pack_keys(rows)) == [row.hex().encode() for row in rows]
    assert key_digits(pack_keys([*rows, *rows])[::2]) == [row.hex().encode() for row in [*rows, *rows][::2]]


def test_a_row_without_a_key_is_told_apart() -> None:
    assert has_key(pack_keys([key(1), None, bytes(8) + b"\x01" * 8, b"\x01" + bytes(15)])).tolist() == [True, False, True, True]


def test_row_keys_say_of_every_row_its_key_or_the_reason(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "day=1" / "root"))
    rows = RowKeys(tmp_path / "rows.parquet")
    rows.append(pack_keys([key(1), None]), np.array([ASKED, SKIPPED], np.int8))
    rows.append(pack_keys([]), np.array([], np.int8))
    rows.append(pack_keys([None, key(1), key(2)]), np.array([LARGE, ASKED, ASKED], np.int8))
    rows.close()
    store.put_file(row_keys_path("d" * 32, "t" * 32), rows.file)
    table = pq.read_table(store.open(row_keys_path("d" * 32, "t" * 32)))
    assert table.schema.equals(ROW_KEYS_SCHEMA)
    assert table["reason"].to_pylist() == [None, "skipped", "too_large", None, None]
    found = iter_row_keys(store, "d" * 32, "t" * 32)
    assert found is not None
    [(keys, reasons)] = found
    assert reasons.tolist() == [ASKED, SKIPPED, LARGE, ASKED, ASKED]
    assert keys.tolist() == pack_keys([key(1), None, None, key(1), key(2)]).tolist()
    assert store.list("keys") == [f"keys/{'d' * 32}-{'t' * 32}.parquet"]


def test_a_source_that_was_never_rendered_has_no_row_keys(tmp_path: Path) -> None:
    assert iter_row_keys(Store(str(tmp_path)), "d", "t") is None


def places(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_owned_keys_are_told_by_task_with_their_places(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    owned = OwnedKeys(tmp_path / "owned.parquet")
    owned.append("task a", pack_keys([key(1), key(2)]), places(0, 0), places(0, 1))
    owned.append("task b", pack_keys([key(1)]), places(0), places(2), np.array([70]))
    owned.append("task a", pack_keys([]), places(), places())
    owned.append("task a", pack_keys([key(3)]), places(1), places(0))
    assert owned.count == 4
    assert owned.close() == hashlib.sha256((tmp_path / "owned.parquet").read_bytes()).hexdigest()
    store.put_file(owned_keys_path("r"), owned.file)
    found: dict[str, list[list[int]]] = {}
    for task, keys in read_owned_keys(store, "r"):
        found.setdefault(task, []).extend(keys.tolist())
    assert found == {"task a": pack_keys([key(1), key(2), key(3)]).tolist(), "task b": pack_keys([key(1)]).tolist()}
    table = pq.read_table(tmp_path / "root" / "plans" / "r" / "keys.parquet")
    assert table.schema.equals(OWNED_SCHEMA)
    assert table.select(["shard", "position"]).to_pylist() == [{"shard": s, "position": p} for s, p in ((0, 0), (0, 1), (0, 2), (1, 0))]
    shard = read_owned_shard(store, "r", 0)
    assert shard is not None
    assert (shard.keys.tolist(), shard.task_keys) == (pack_keys([key(1), key(2), key(1)]).tolist(), ("task a", "task b"))
    assert (shard.tasks.tolist(), shard.max_tokens.tolist()) == ([0, 0, 1], [0, 0, 70])
    assert read_owned_shard(store, "r", 2) is None


def test_a_run_that_owns_nothing_has_no_tasks(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    owned = OwnedKeys(tmp_path / "owned.parquet")
    owned.close()
    store.put_file(owned_keys_path("r"), owned.file)
    assert list(read_owned_keys(store, "r")) == []


def test_keys_are_sixteen_bytes_as_they_stand() -> None:
    assert pack_keys([bytes(range(16))]).view(np.uint8).tolist() == [list(range(16))]
