from pathlib import Path

import msgspec
import numpy as np
import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.index import NARROW_FILES, map_columns, read_newest, sum_columns, write_columns
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.store import Store
from tests.unit.storage.responses_of import ALWAYS, answer, key, write

FOLDER = "index/simulator/t"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    write(store, "b0", [answer(i) for i in range(1_000)])
    assert maintain_responses(store, "simulator", "t", limits=ALWAYS)
    return store


def columns_of(store: Store) -> Path:
    assert store.folder is not None
    (file,) = (store.folder / FOLDER).glob("*.keys")
    return file


def test_a_key_takes_23_bytes(store: Store) -> None:
    assert columns_of(store).stat().st_size == 23 * 1_000
    record = read_newest(store, FOLDER).record
    assert record is not None
    assert (record.generation, record.keys, record.columns) == (1, 1_000, columns_of(store).name)
    assert [(file.name, file.rows, file.answered, file.output_tokens) for file in record.files] == [("b0.parquet", 1_000, 1_000, 499_500)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[:9_000] + bytes([content[9_000] ^ 4]) + content[9_001:],
        lambda content: bytes(len(content)),
    ],
    ids=["a byte short", "half", "empty", "a byte more", "one bit", "zeroes"],
)
def test_damaged_columns_are_no_index(store: Store, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    file = columns_of(store)
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    answers = Answers(store, "simulator", "t")
    assert answers.final(pack_keys([key(i) for i in range(1_001)])).tolist() == [True] * 1_000 + [False]
    assert "missing or damaged" in caplog.text
    assert maintain_responses(store, "simulator", "t")
    caplog.clear()
    assert len(Answers(store, "simulator", "t")) == 1_000
    assert not caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format":1}', b'{"format":1,"generation":"x"}'])
def test_a_damaged_record_is_no_index(store: Store, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store.put(f"{FOLDER}/00000001.json", content)
    assert len(Answers(store, "simulator", "t")) == 1_000
    assert "damaged" in caplog.text
    assert maintain_responses(store, "simulator", "t")
    newest = read_newest(store, FOLDER)
    assert newest.generation == 2
    assert newest.record is not None


def test_an_index_of_a_newer_version_is_refused(store: Store) -> None:
    store.put(f"{FOLDER}/00000002.json", msgspec.json.encode({"format": 2, "columns": {"new": "way"}}))
    for read in (lambda: Answers(store, "simulator", "t"), lambda: maintain_responses(store, "simulator", "t")):
        with pytest.raises(RootError, match=r"00000002.json was written by a newer .* its format is 2, this version reads up to 1"):
            read()


def test_a_store_whose_batches_answered_nothing_has_an_index_of_no_keys(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for number in range(3):
        write(store, f"b{number}", [])
    assert maintain_responses(store, "simulator", "t", limits=ALWAYS)
    assert not maintain_responses(store, "simulator", "t", limits=ALWAYS)
    assert len(Answers(store, "simulator", "t")) == 0


@pytest.mark.parametrize(("files", "bytes_a_key"), [(1, 23), (NARROW_FILES, 23), (NARROW_FILES + 1, 25)])
def test_columns_come_back_as_they_were_written(tmp_path: Path, files: int, bytes_a_key: int) -> None:
    rng = np.random.default_rng(1)
    columns = {
        "high": np.sort(rng.integers(0, 2**64, 999, np.uint64)),
        "low": rng.integers(0, 2**64, 999, np.uint64),
        "row": rng.integers(0, 2**32, 999, np.uint32),
        "file": rng.integers(0, files, 999),
        "code": rng.integers(0, 256, 999, np.uint8),
    }
    write_columns(tmp_path / "columns", files, lambda name, dtype: [columns[name].astype(dtype)])
    assert (tmp_path / "columns").stat().st_size == bytes_a_key * 999
    entries = map_columns(tmp_path / "columns", 999, files)
    (tmp_path / "columns").unlink()
    for name, column in columns.items():
        assert np.array_equal(getattr(entries, name), column)
    # Two words that changed as to add up to the same, then two in which the same bit changed.
    for one, other in (
        (np.array([1, 5], np.uint64), np.array([2, 4], np.uint64)),
        (np.array([1, 4], np.uint64), np.array([3, 6], np.uint64)),
    ):
        sums = []
        for words in (one, other):
            columns["low"][:2] = words
            write_columns(tmp_path / "columns", files, lambda name, dtype: [columns[name].astype(dtype)])
            sums.append(sum_columns(tmp_path / "columns"))
        assert sums[0] != sums[1]
