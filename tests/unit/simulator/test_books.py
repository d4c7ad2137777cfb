import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from claude_batch_dagster.simulator.batch import Batch
from claude_batch_dagster.simulator.books import Books, BooksInUseError
from claude_batch_dagster.simulator.envelope import Item

TEMPLATE = Batch(id="", number=0, created_at=0.0, takes_s=10.0, count=0, version="2026-10-21")


def items(*names):
    return [Item(custom_id=name, params=msgspec.Raw(b'{"n":"%s"}' % name.encode())) for name in names]


def add(books, *names):
    return books.add(TEMPLATE, items(*names), lambda custom_id, params: "errored" if custom_id == "bad" else "succeeded", lambda: 100.0)


def test_reopened_books_say_the_same(tmp_path):
    books = Books(tmp_path)
    first, second = add(books, "a", "bad"), add(books, "c")
    books.cancel(second.id, 105.0)
    before = books.newest_first()
    books.close()
    again = Books(tmp_path)
    assert again.newest_first() == before
    assert list(again.outcomes(first.id)) == [("a", "succeeded"), ("bad", "errored")]
    assert {(entry.custom_id, entry.params) for entry in again.shuffled_entries(first.id)} == {("a", b'{"n":"a"}'), ("bad", b'{"n":"bad"}')}
    assert add(again, "d").number == 3
    again.close()


def test_books_are_open_in_one_process_only(tmp_path):
    books = Books(tmp_path)
    with pytest.raises(BooksInUseError, match="Give another --books"):
        Books(tmp_path)
    books.close()
    Books(tmp_path).close()


def test_failed_creation_leaves_nothing(tmp_path):
    books = Books(tmp_path)

    def judge(custom_id, params):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        books.add(TEMPLATE, items("a"), judge, lambda: 100.0)
    assert books.newest_first() == []
    assert list((tmp_path / "incoming").iterdir()) == []
    books.close()


def test_unfinished_creation_is_swept_at_the_start(tmp_path):
    Books(tmp_path).close()
    (tmp_path / "incoming" / "msgbatch_01half").mkdir()
    (tmp_path / "incoming" / "msgbatch_01half" / "params.bin").write_bytes(b"{")
    (tmp_path / "incoming" / "spool").write_bytes(b"{")
    books = Books(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []
    assert books.newest_first() == []
    books.close()


def test_deleted_batch_is_hidden_and_still_counted(tmp_path):
    books = Books(tmp_path)
    batch = add(books, "a")
    books.delete(batch.id, 200.0)
    assert books.find(batch.id) is None
    assert books.newest_first() == []
    assert [found.id for found in books.newest_first(deleted=True)] == [batch.id]
    assert list(books.outcomes(batch.id)) == [("a", "succeeded")]
    assert not (tmp_path / "batches" / batch.id / "params.bin").exists()
    books.close()


def test_killed_simulator_goes_on_where_it_was(tmp_path):
    import json
    from http.client import HTTPConnection

    def run():
        command = [
            sys.executable,
            "-m",
            "claude_batch_dagster.simulator",
            "--port",
            "0",
            "--books",
            str(tmp_path / "books"),
            "--seconds",
            "0",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        return process, int(process.stdout.readline().rsplit(":", 1)[1])

    def call(port, method, path, body=None):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, body, {"x-api-key": "k", "anthropic-version": "2026-10-21"})
        text = connection.getresponse().read()
        connection.close()
        return text

    params = {"model": "claude-haiku-5-5", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello."}]}
    process, port = run()
    with process:
        batch = json.loads(call(port, "POST", "/v1/messages/batches", json.dumps({"requests": [{"custom_id": "a", "params": params}]})))
        results = call(port, "GET", f"/v1/messages/batches/{batch['id']}/results")
        os.kill(process.pid, signal.SIGKILL)
    process, port = run()
    with process:
        assert call(port, "GET", f"/v1/messages/batches/{batch['id']}/results") == results
        assert json.loads(call(port, "GET", "/v1/messages/batches"))["data"][0]["id"] == batch["id"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
