import errno
import tempfile
import threading
from pathlib import Path

import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.storage.store import Store, absolute_uri, join_uri


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "local" else "memory:///root")


def test_what_was_put_can_be_read_and_listed_at_once(store: Store) -> None:
    store.put("log/1.json", b"one")
    store.put("log/10.json", b"ten")
    store.put("done/1.json", b"")
    assert store.get("log/1.json") == b"one"
    assert store.get("done/1.json") == b""
    assert store.exists("log/10.json")
    assert store.list("log") == ["log/1.json", "log/10.json"]
    assert store.list("") == ["done/1.json", "log/1.json", "log/10.json"]
    assert b"".join(store.stream("log/10.json")) == b"ten"


def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.get("log/1.json") is None
    assert not store.exists("log/1.json")
    assert store.list("log") == []
    store.delete("log/1.json")
    store.put("log/2.json", b"")
    assert store.get("log/1.json") is None
    store.delete("log/1.json")
    with pytest.raises(FileNotFoundError):
        store.version("log/1.json")
    with pytest.raises(FileNotFoundError):
        list(store.stream("log/1.json"))


def test_only_the_first_put_if_absent_writes(store: Store) -> None:
    assert store.put_if_absent("root.json", b"mine")
    assert not store.put_if_absent("root.json", b"yours")
    assert store.get("root.json") == b"mine"


def test_of_many_writers_at_once_exactly_one_wins_and_knows_it(store: Store) -> None:
    store.put("other.json", b"")
    barrier, won = threading.Barrier(8), list[int]()

    def write(writer: int) -> None:
        barrier.wait()
        for number in range(20):
            if store.put_if_absent(f"log/{number}.json", b"%d" % writer * 2_000):
                won.append(number)
                assert store.get(f"log/{number}.json") == b"%d" % writer * 2_000

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_a_put_replaces_the_object_and_its_version(store: Store) -> None:
    store.put("a", b"one")
    before = store.version("a")
    assert store.list_versions("") == [("a", before)]
    store.put("a", b"three")
    assert store.get("a") == b"three"
    assert store.version("a") != before


def test_a_deleted_object_is_gone(store: Store) -> None:
    store.put("plans/r/keys", b"")
    store.delete("plans/r/keys")
    assert store.list("plans") == []


def test_a_file_is_put_whole(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content := bytes(range(256)) * 40_000)
    store.put_file("responses/e/t/b.parquet", tmp_path / "file")
    assert store.get("responses/e/t/b.parquet") == content
    assert b"".join(store.stream("responses/e/t/b.parquet", chunk_bytes=100_000)) == content


def test_a_listing_does_not_take_a_name_for_a_prefix(store: Store) -> None:
    store.put("submissions/r1/1-0/0.json", b"")
    store.put("submissions/r10/1-0/0.json", b"")
    assert store.list("submissions/r1") == ["submissions/r1/1-0/0.json"]


def test_a_reader_of_an_object_reads_at_random(store: Store) -> None:
    store.put("a", b"0123456789")
    opened = store.open("a")
    if isinstance(opened, Path):
        assert opened.read_bytes() == b"0123456789"
    else:
        opened.seek(7)
        assert bytes(opened.read()) == b"789"


@pytest.mark.parametrize(
    "name", ["a b", "é", "x=ü ö/part-0.parquet", "a%2Fb", "100%", "a#b?c", "{x}", "day=2026-11-01 10:00", "🎉", "~a", "a\\b"]
)
def test_names_of_any_characters_come_back_from_a_listing(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path / "out put"))
    store.put(name, b"x")
    assert store.list("") == [name]
    assert store.get(name) == b"x"
    assert (tmp_path / "out put" / name).read_bytes() == b"x"


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    assert (store.get("root.json"), store.list("log"), store.exists("a")) == (None, [], False)
    store.delete("a")
    assert not (tmp_path / "root").exists()


def test_a_scratch_folder_is_gone_afterwards_and_is_not_in_the_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))

    def fail() -> None:
        with store.scratch() as made:
            (made / "file").write_text("x")
            folders.append(made)
            raise ZeroDivisionError

    folders: list[Path] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    [folder] = folders
    assert tmp_path not in folder.parents
    assert not folder.exists()
    assert not (tmp_path / "root").exists()


def test_a_root_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RootError, match=r"file/root/root\.json cannot be written: a file is where a folder should be\. .*choose another place"
    ):
        Store(str(tmp_path / "file" / "root")).put("root.json", b"")


def test_a_stream_that_nobody_reads_to_its_end_is_no_error(store: Store) -> None:
    store.put("a", b"0123456789")
    chunks = store.stream("a", chunk_bytes=4)
    assert next(chunks) == b"0123"
    chunks.close()
    store.put("empty", b"")
    assert list(store.stream("empty")) == []


def test_no_room_in_the_scratch_folder_is_told_as_such(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RootError, match=r"Temporary files cannot be written in .*: no space is left there\. .*set TMPDIR"):
        with store.scratch():
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="other"), store.scratch():
        raise OSError(errno.EIO, "other")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(RootError, match="Temporary files cannot be written"), store.scratch():
        pass


def test_a_name_that_a_folder_has_cannot_be_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "root.json").mkdir()
    with pytest.raises(RootError, match=r"root\.json cannot be written"):
        store.put("root.json", b"")


def test_an_address_of_no_kind_of_store_is_refused() -> None:
    with pytest.raises(RootError, match=r"nosuch://bucket/x cannot be opened"):
        Store("nosuch://bucket/x").get("root.json")


def test_paths_are_made_absolute_and_addresses_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    assert absolute_uri("data/x/") == f"{tmp_path}/data/x"
    assert absolute_uri("./data") == absolute_uri("data")
    assert absolute_uri("~/data") == "/home/u/data"
    assert absolute_uri("/a b/{c}") == "/a b/{c}"
    assert absolute_uri("file:///a/b") == "/a/b"
    assert absolute_uri("s3://lake/x/") == "s3://lake/x"
    assert join_uri("s3://lake/x/", "simulated") == "s3://lake/x/simulated"


def test_a_file_that_is_made_becomes_an_object_once_it_is_whole_and_is_not_copied_where_the_store_is_local(store: Store) -> None:
    with store.putting("responses/a.parquet") as file:
        file.write_bytes(b"whole")
        made = file.stat().st_ino
        assert store.list("") == []
    assert store.get("responses/a.parquet") == b"whole"
    assert not file.exists()
    if store.folder is not None:
        assert (store.folder / "responses/a.parquet").stat().st_ino == made


def test_of_a_file_that_cannot_be_made_nothing_stays(store: Store) -> None:
    def make(error: Exception) -> None:
        with store.putting("responses/a.parquet") as file:
            file.write_bytes(b"half")
            raise error

    store.put("responses/a.parquet", b"before")
    where = "responses/a.parquet" if store.folder is not None else "Temporary files"
    with pytest.raises(RootError, match=f"{where} cannot be written.*no space is left"):
        make(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match="odd"):
        make(ValueError("odd"))
    assert store.get("responses/a.parquet") == b"before"
    if store.folder is not None:
        assert [path.name for path in (store.folder / "responses").iterdir()] == ["a.parquet"]
