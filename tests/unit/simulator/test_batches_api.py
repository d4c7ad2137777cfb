import json
import socket

import anthropic
import pytest


def test_sdk_takes_a_batch_from_create_to_results_and_deletion(simulator, ask):
    client = simulator.client()
    batch = client.messages.batches.create(requests=[ask("a"), ask("b", "Broken. Junk.")])
    assert batch.processing_status == "in_progress"
    assert batch.request_counts.processing == 2
    simulator.clock.now += 10
    assert client.messages.batches.retrieve(batch.id).processing_status == "ended"
    lines = list(client.messages.batches.results(batch.id))
    assert {line.custom_id for line in lines} == {"a", "b"}
    for line in lines:
        assert line.result.type == "succeeded"
        assert [block.type for block in line.result.message.content] == ["thinking", "text"]
        assert line.result.message.usage.service_tier == "batch"
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)


def test_batch_has_all_ten_keys_and_times_with_offset(simulator, ask):
    batch = simulator.create([ask("a")])
    assert batch == {
        "id": batch["id"],
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
        "ended_at": None,
        "created_at": "2026-09-21T14:13:20.250000+00:00",
        "expires_at": "2026-09-22T14:13:20.250000+00:00",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    assert len(batch["id"]) == len("msgbatch_01") + 22


def test_counts_stay_processing_until_the_end_and_then_flip(simulator, ask):
    batch = simulator.create([ask("a"), ask("b", model="claude-nope")])
    path = f"/v1/messages/batches/{batch['id']}"
    simulator.clock.now += 9.9
    assert simulator.call("GET", path).json["request_counts"] == {
        "processing": 2,
        "succeeded": 0,
        "errored": 0,
        "canceled": 0,
        "expired": 0,
    }
    simulator.clock.now += 0.2
    ended = simulator.call("GET", path).json
    assert ended["request_counts"] == {"processing": 0, "succeeded": 1, "errored": 1, "canceled": 0, "expired": 0}
    assert ended["results_url"] == f"{simulator.server.url}{path}/results"
    assert ended["ended_at"] == "2026-09-21T14:13:30.250000+00:00"


def test_poll_hint_is_the_remaining_time_between_one_and_ten_and_absent_at_the_end(start, ask):
    simulator = start(seconds=60)
    path = f"/v1/messages/batches/{simulator.create([ask('a')])['id']}"
    hints = []
    for step in (0, 55, 4.5, 1):
        simulator.clock.now += step
        hints.append(simulator.call("GET", path).headers.get("retry-after"))
    assert hints == ["10", "5", "1", None]


def test_every_response_names_the_simulator_also_errors(simulator, ask):
    batch = simulator.create([ask("a")])
    simulator.clock.now += 10
    paths = ["/v1/messages/batches", f"/v1/messages/batches/{batch['id']}/results", "/v1/nothing", "/nothing", "/v1/models/x"]
    for path in paths:
        headers = simulator.call("GET", path).headers
        assert headers["server"].startswith("claude-batch-simulator/")
        assert headers["request-id"].startswith("req_")
        assert headers["anthropic-workspace-id"] == "wrkspc_simulated"
        assert headers["anthropic-organization-id"]
        assert headers["date"] == "Mon, 21 Sep 2026 14:13:30 GMT"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer k", "anthropic-version": "2023-06-01"}, 200),
        ({"x-api-key": "k", "anthropic-version": "2026-10-21"}, 200),
        ({"anthropic-version": "2026-10-21"}, 401),
        ({"authorization": "Bearer wrong", "anthropic-version": "2026-10-21"}, 401),
        ({"x-api-key": "revoked", "anthropic-version": "2026-10-21"}, 401),
        ({"x-api-key": "k"}, 400),
        ({"x-api-key": "k", "anthropic-version": "2020-01-01"}, 400),
    ],
)
def test_key_and_version_are_checked(simulator, headers, status):
    reply = simulator.call("GET", "/v1/messages/batches", headers=headers)
    assert reply.status == status
    if status != 200:
        assert reply.json["type"] == "error"
        assert reply.json["request_id"] == reply.headers["request-id"]


def test_list_pages_forth_and_back(simulator, ask):
    ids = [simulator.create([ask("a")])["id"] for _ in range(5)][::-1]
    client = simulator.client()
    assert [batch.id for batch in client.messages.batches.list(limit=2)] == ids
    page = simulator.call("GET", f"/v1/messages/batches?limit=2&after_id={ids[1]}").json
    assert [batch["id"] for batch in page["data"]] == ids[2:4]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[3], True)
    before = simulator.call("GET", f"/v1/messages/batches?limit=2&before_id={ids[4]}").json
    assert [batch["id"] for batch in before["data"]] == ids[2:4]
    assert before["has_more"] is True
    newest = simulator.call("GET", f"/v1/messages/batches?before_id={ids[2]}").json
    assert ([batch["id"] for batch in newest["data"]], newest["has_more"]) == (ids[:2], False)
    assert simulator.call("GET", f"/v1/messages/batches?after_id={ids[4]}").json == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    assert simulator.call("GET", "/v1/messages/batches?limit=1001").status == 400
    assert simulator.call("GET", "/v1/messages/batches?after_id=msgbatch_none").status == 400


def test_results_are_chunked_shuffled_and_end_without_a_newline(simulator, ask):
    names = [f"r-{number}" for number in range(1200)]
    batch = simulator.create([ask(name) for name in names])
    path = f"/v1/messages/batches/{batch['id']}/results"
    assert simulator.call("GET", path).status == 404
    simulator.clock.now += 10
    reply = simulator.call("GET", path)
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.headers["content-disposition"] == f'attachment; filename="{batch["id"]}_results.jsonl"'
    assert not {"content-type", "content-encoding", "content-length"} & reply.headers.keys()
    assert reply.body.endswith(b"}}}")
    order = [json.loads(line)["custom_id"] for line in reply.body.split(b"\n")]
    assert order != names
    assert sorted(order) == sorted(names)
    assert simulator.call("GET", path).body == reply.body


def test_cancel_keeps_what_was_answered_and_cancels_the_rest(simulator, ask):
    batch = simulator.create([ask(f"r-{number}") for number in range(200)])
    path = f"/v1/messages/batches/{batch['id']}"
    simulator.clock.now += 5
    canceling = simulator.call("POST", path + "/cancel").json
    assert canceling["processing_status"] == "canceling"
    assert canceling["cancel_initiated_at"] == "2026-09-21T14:13:25.250000+00:00"
    assert canceling["request_counts"]["processing"] == 200
    assert simulator.call("POST", path + "/cancel").json == canceling
    simulator.clock.now += 1
    counts = simulator.call("GET", path).json["request_counts"]
    assert counts["processing"] == 0
    assert counts["succeeded"] + counts["canceled"] == 200
    assert 60 < counts["canceled"] < 140
    kinds = [result["type"] for result in simulator.results(batch["id"]).values()]
    assert kinds.count("canceled") == counts["canceled"]
    assert simulator.call("POST", path + "/cancel").status == 400


def test_delete_is_refused_before_the_end(simulator, ask):
    batch = simulator.create([ask("a")])
    reply = simulator.call("DELETE", f"/v1/messages/batches/{batch['id']}")
    assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error")


def test_unfinished_requests_expire_after_a_day(start, ask):
    simulator = start(seconds=2 * 86_400)
    batch = simulator.create([ask(f"r-{number}") for number in range(50)])
    simulator.clock.now += 86_400
    counts = simulator.call("GET", f"/v1/messages/batches/{batch['id']}").json["request_counts"]
    assert counts["processing"] == 0
    assert 10 < counts["expired"] < 40
    assert counts["expired"] + counts["succeeded"] == 50


def test_results_are_archived_29_days_after_creation_and_the_batch_stays(simulator, ask):
    batch = simulator.create([ask("a")])
    simulator.clock.now += 29 * 86_400
    archived = simulator.call("GET", f"/v1/messages/batches/{batch['id']}").json
    assert archived["archived_at"] == "2026-10-20T14:13:20.250000+00:00"
    assert archived["results_url"] is None
    assert simulator.call("GET", f"/v1/messages/batches/{batch['id']}/results").status == 404


def test_truncated_body_creates_nothing(simulator, ask):
    body = json.dumps({"requests": [ask("a")]}).encode()
    for tail in (b"", b" "):
        with socket.create_connection(("127.0.0.1", simulator.server.port)) as connection:
            head = f"POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\ncontent-length: {len(body) + 2}"
            connection.sendall(head.encode() + b"\r\n\r\n" + body + tail)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000) == b""
    assert simulator.call("GET", "/simulator/books").json["batches"] == []


def test_chunked_body_is_taken(simulator, ask):
    client = simulator.client()
    body = json.dumps({"requests": [ask("a"), ask("b")]}).encode()
    from anthropic.types.messages import MessageBatch

    batch = client.post("/v1/messages/batches", cast_to=MessageBatch, content=iter([body[:40], body[40:]]), options={"max_retries": 0})
    assert batch.request_counts.processing == 2


def test_too_large_a_body_is_refused_in_cloudflares_words(simulator):
    with socket.create_connection(("127.0.0.1", simulator.server.port)) as connection:
        connection.sendall(
            b"POST /v1/messages/batches HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\ncontent-length: 256000001\r\n\r\n{"
        )
        answer = connection.recv(5000)
    assert b" 413 " in answer.splitlines()[0]
    assert answer.endswith(b'{"error":{"type":"request_too_large","message":"Request exceeds the maximum size"}}')


def test_client_that_leaves_a_download_is_no_error(simulator, ask, caplog):
    batch = simulator.create([ask(f"r-{number}") for number in range(5000)])
    simulator.clock.now += 10
    with socket.create_connection(("127.0.0.1", simulator.server.port)) as connection:
        head = (
            f"GET /v1/messages/batches/{batch['id']}/results HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\nanthropic-version: 2026-10-21\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert len(simulator.results(batch["id"])) == 5000
    assert caplog.records == []


def test_encoded_body_is_refused(simulator):
    reply = simulator.call(
        "POST", "/v1/messages/batches", b"x", {"x-api-key": "k", "anthropic-version": "2026-10-21", "content-encoding": "gzip"}
    )
    assert reply.json["error"]["details"]["error_code"] == "request_body_encoding_unsupported"


def test_sdk_retries_show_in_the_books(start, ask):
    simulator = start("error-500-after=2")
    batch = simulator.client(max_retries=2).messages.batches.create(requests=[ask("a")])
    books = simulator.call("GET", "/simulator/books").json
    assert [entry["retry_count"] for entry in books["batches"]] == [2, 1, 0]
    assert books["batches"][0]["id"] == batch.id
    assert books["calls"] == {"create": 3, "retries": 2}
    assert len({entry["body_sha256"] for entry in books["batches"]}) == 1


def test_outcomes_name_every_request_ever_taken(simulator, ask):
    first = simulator.create([ask("a"), ask("b", max_tokens=1_000_000)])
    simulator.clock.now += 10
    simulator.call("DELETE", f"/v1/messages/batches/{first['id']}")
    second = simulator.create([ask("a")])
    lines = [json.loads(line) for line in simulator.call("GET", "/simulator/outcomes").body.splitlines()]
    assert [(line["batch_id"], line["custom_id"], line["outcome"]) for line in lines] == [
        (second["id"], "a", "succeeded"),
        (first["id"], "a", "succeeded"),
        (first["id"], "b", "errored"),
    ]
    assert [entry["status"] for entry in simulator.call("GET", "/simulator/books").json["batches"]] == ["in_progress", "deleted"]
