"""A root in an object store over real HTTP: who wins a name, what a sick server does to us, and whose fault is named."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import RootError, SourceError, TransientError
from claude_batch_dagster.core.records import RootRecord
from claude_batch_dagster.core.submission import Closed, CloseReason, How, NotAccepted, Send
from claude_batch_dagster.storage import store as store_file
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.plans import append_submission, pin_root, read_submission
from claude_batch_dagster.storage.probe import remove_token, write_token
from claude_batch_dagster.storage.source import Source
from claude_batch_dagster.storage.store import Store
from tests.fault.object_store import BUCKET, ObjectStore, run_object_store
from tests.unit.storage.responses_of import ALWAYS, NOON, answer, key, write

REPOSITORY = Path(__file__).parents[2]
# Waits for the others, then takes as many numbers of a log as it can; prints those that it was told it took.
TAKER = """
import sys
from claude_batch_dagster.storage.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(*(n for n in range(30) if store.put_if_absent(f"log/{n}.json", sys.argv[2].encode() * 3_000)))
"""
prefixes = count()


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with run_object_store() as found:
        yield found


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty root in the bucket, whose client gives up soon."""
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_file, "RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=5)})
    server.requests.clear()
    yield Store(f"s3://{BUCKET}/root-{next(prefixes)}")
    server.open()


def test_objects_are_written_listed_read_and_removed(store: Store, tmp_path: Path) -> None:
    store.put("log/1.json", b"one")
    (tmp_path / "big").write_bytes(content := bytes(range(256)) * 60_000)
    store.put_file("responses/e/t/b.parquet", tmp_path / "big")
    assert store.list("") == ["log/1.json", "responses/e/t/b.parquet"]
    assert store.list("log") == ["log/1.json"]
    assert (store.get("log/1.json"), store.get("log/2.json"), store.exists("log/2.json")) == (b"one", None, False)
    assert b"".join(store.stream("responses/e/t/b.parquet", chunk_bytes=1_000_000)) == content
    before = store.version("log/1.json")
    store.put("log/1.json", b"two")
    assert store.version("log/1.json") != before
    store.delete("log/1.json")
    store.delete("log/1.json")
    assert store.list("") == ["responses/e/t/b.parquet"]
    with pytest.raises(FileNotFoundError):
        next(store.stream("log/1.json"))
    with pytest.raises(FileNotFoundError):
        store.open("log/1.json")


@pytest.mark.parametrize(("path", "files"), [("lake.parquet", ["part-0.parquet"]), ("one.parquet", ["one.parquet"])])
def test_a_source_that_is_named_like_a_file_may_be_a_folder(store: Store, tmp_path: Path, path: str, files: list[str]) -> None:
    """As Spark writes it."""
    pq.write_table(pa.table({"id": [1]}), tmp_path / "file")
    for name in ("lake.parquet/part-0.parquet", "one.parquet"):
        store.put_file(name, tmp_path / "file")
    assert [file.path for file in Source(ParquetDataset(path=f"{store.uri}/{path}", key="id")).files] == files
    with pytest.raises(SourceError, match=r"none\.parquet .*Nothing was sent. Check the path"):
        Source(ParquetDataset(path=f"{store.uri}/none.parquet", key="id"))


def test_a_parquet_object_is_read_at_random(store: Store, tmp_path: Path) -> None:
    table = pa.table({"id": range(200_000), "text": [f"text {n}" for n in range(200_000)]})
    pq.write_table(table, tmp_path / "file", row_group_size=50_000)
    store.put_file("a.parquet", tmp_path / "file")
    assert pq.read_table(store.open("a.parquet")).equals(table)
    assert pq.ParquetFile(store.open("a.parquet")).read_row_group(3, columns=["id"])["id"][0].as_py() == 150_000


def test_of_many_processes_exactly_one_takes_each_number(store: Store) -> None:
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, store.uri, name], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "abcd"
    ]
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    taken = {name: [int(n) for n in taker.communicate(timeout=60)[0].split()] for name, taker in zip("abcd", takers, strict=True)}
    assert sorted(n for numbers in taken.values() for n in numbers) == list(range(30))
    for name, numbers in taken.items():
        assert {store.get(f"log/{n}.json") for n in numbers} <= {name.encode() * 3_000}


def test_a_name_that_nobody_got_in_a_conflict_is_taken_after_all(store: Store, server: ObjectStore) -> None:
    """S3 answers 409 to a conditional put beside another that is under way, and that one may fail."""
    conflicts = iter([(409, "ConditionalRequestConflict")] * 2)
    server.refuse = lambda request: next(conflicts, None) if request.is_conditional else None
    assert store.put_if_absent("log/1.json", b"ours")
    assert store.get("log/1.json") == b"ours"
    assert not store.put_if_absent("log/1.json", b"theirs")


def test_a_put_if_absent_whose_answer_was_lost_is_said_to_be_lost_and_stands(store: Store, server: ObjectStore) -> None:
    """The client repeats it and finds it taken; the caller reads whose it is."""
    lost = iter([True])
    server.spoil = lambda request: request.is_conditional and next(lost, False)
    assert not store.put_if_absent("log/1.json", b"ours")
    assert store.get("log/1.json") == b"ours"


def test_an_answer_whose_put_was_repeated_by_the_client_is_known_as_written(store: Store, server: ObjectStore) -> None:
    """But for a send: who is not told that it won reads the log before it does anything."""
    send = Send(
        count=1, sha256="0", send_s=16, vendor_date="Mon, 23 Nov 2026 06:00:00 GMT", sender="me", sent_at="2026-11-23T00:00:00+00:00"
    )
    again = NotAccepted(why="a person found no batch of it", how=How.PERSON)
    for slot, (record, written) in enumerate([(send, False), (again, True)]):
        lost = iter([True])
        server.spoil = lambda request, lost=lost: request.is_conditional and next(lost, False)
        assert append_submission(store, "r", 1, 0, slot, record) is written
        assert read_submission(store, "r", 1, 0)[slot] == record
    assert not append_submission(store, "r", 1, 0, 1, Closed(reason=CloseReason.ABANDONED))


def test_a_store_that_ignores_put_if_absent_is_refused_before_anything_is_admitted(store: Store, server: ObjectStore) -> None:
    record = RootRecord(root_id="r", endpoint="simulator", temporal_namespace="default")
    server.keeps_conditions = False
    for use in (lambda: pin_root(store, record), lambda: write_token(store)):
        with pytest.raises(RootError, match="does not keep put-if-absent"):
            use()
    server.open()
    store.delete("root.json")
    assert pin_root(store, record) == record
    remove_token(store, write_token(store))


Call = Callable[[Store], object]
CALLS: dict[str, Call] = {
    "put": lambda store: store.put("log/1.json", b"x"),
    "put_if_absent": lambda store: store.put_if_absent("log/9.json", b"x"),
    "put_file": lambda store: store.put_file("log/1.json", Path(__file__)),
    "get": lambda store: store.get("log/1.json"),
    "stream": lambda store: list(store.stream("log/1.json")),
    "exists": lambda store: store.exists("log/1.json"),
    "version": lambda store: store.version("log/1.json"),
    "list": lambda store: store.list("log"),
    "delete": lambda store: store.delete("log/1.json"),
    "open": lambda store: pq.read_table(store.open("log/1.json")),
}
ANSWERS = [
    (503, "SlowDown", TransientError, "answered 503"),
    (500, "InternalError", TransientError, "answered 500"),
    (403, "AccessDenied", RootError, "permission is denied"),
    (400, "ExpiredToken", RootError, "400"),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("status", "code", "becomes", "says"), ANSWERS, ids=lambda value: str(value) if isinstance(value, int) else "")
def test_every_call_says_in_our_words_what_the_server_answered(
    store: Store, server: ObjectStore, call: str, status: int, code: str, becomes: type[Exception], says: str
) -> None:
    store.put("log/1.json", b"before")
    server.refuse = lambda request: (status, code)
    with pytest.raises((RootError, TransientError)) as raised:
        CALLS[call](store)
    assert raised.type is becomes
    assert says in str(raised.value)
    assert f"{store.uri}/log" in str(raised.value)
    server.open()
    assert store.get("log/1.json") == b"before"
    assert store.list("") == ["log/1.json"]


def test_a_reader_that_is_cut_off_in_the_middle_says_so_in_our_words(store: Store, server: ObjectStore, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(1_000_000)}), tmp_path / "file", row_group_size=100_000)
    store.put_file("a.parquet", tmp_path / "file")
    reader = pq.ParquetFile(store.open("a.parquet"))
    chunks = store.stream("a.parquet", chunk_bytes=100_000)
    next(chunks)
    server.refuse = lambda request: (503, "SlowDown")
    with pytest.raises(TransientError, match=r"a\.parquet cannot be read now"):
        reader.read_row_group(4)
    with pytest.raises(TransientError, match=r"a\.parquet cannot be read now"):
        next(chunks)


def test_an_object_that_is_replaced_while_it_is_streamed_is_not_mixed(store: Store) -> None:
    store.put("a", b"old" * 1_000)
    chunks = store.stream("a", chunk_bytes=1_000)
    assert next(chunks) == (b"old" * 1_000)[:1_000]
    store.put("a", b"new" * 1_000)
    with pytest.raises(TransientError, match=r"s3://.*/a cannot be read now"):
        next(chunks)


def test_a_server_that_fails_for_a_moment_is_waited_for(store: Store, server: ObjectStore) -> None:
    failures = iter([(503, "SlowDown")])
    server.refuse = lambda request: next(failures, None)
    store.put("log/1.json", b"x")
    assert [request.method for request in server.requests] == ["PUT", "PUT"]


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("get", "exists", "version", "stream", "open", "delete")])
def test_a_bucket_that_is_not_there_is_told_as_such(store: Store, call: str) -> None:
    """Reading finds nothing there; the first write or listing says why."""
    with pytest.raises(RootError, match=r"s3://nowhere/root.* there is no such bucket .*Make the bucket"):
        CALLS[call](Store("s3://nowhere/root"))


def test_nobody_at_the_address_is_told_as_such(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(TransientError, match="the object store does not answer"):
        Store(store.uri).get("root.json")


def test_answers_are_indexed_joined_and_found_in_an_object_store(store: Store) -> None:
    """What was replaced goes after two days, a batch that is collected again is no other version, and nothing of it stays on this machine."""
    for batch in range(3):
        write(store, f"b{batch}", [answer(3 * batch + i) for i in range(3)], minutes=batch)
    for days in (0, 1, 3):
        maintain_responses(store, "simulator", "t", now=NOON + timedelta(days=days), limits=ALWAYS)
        answers = Answers(store, "simulator", "t")
        places = answers.find(pack_keys([key(i) for i in range(10)]))
        assert places[9] == -1
        assert answers.fetch(places[:9])["answer"].to_pylist() == [str(i) for i in range(9)]
        if days == 0:
            write(store, "b1", [answer(3 + i) for i in range(3)], minutes=1)
    assert [path.split("/")[3][:10] for path in store.list("responses")] == ["compacted-"]
    assert len(store.list("index")) == 2
