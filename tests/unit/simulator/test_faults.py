import json
from http.client import IncompleteRead, RemoteDisconnected

import pytest

from claude_batch_dagster.simulator.faults import FAULTS, FaultBoard, is_hit, parse_switch
from claude_batch_dagster.simulator.wire import WireError

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["ok", "spam"]}, "summary": {"type": "string"}},
    "required": ["label", "summary"],
    "additionalProperties": False,
}
PATH = "/v1/messages/batches"


def try_create(simulator, ask):
    return simulator.call("POST", PATH, json.dumps({"requests": [ask("a")]}).encode())


def batches(simulator):
    return len(simulator.call("GET", "/simulator/books").json["batches"])


@pytest.mark.parametrize(("name", "created"), [("accept-then-drop", 1), ("drop-before", 0), ("drop-upload", 0)])
def test_connection_is_dropped_without_a_reply(start, ask, name, created):
    simulator = start(name)
    with pytest.raises(RemoteDisconnected):
        try_create(simulator, ask)
    assert batches(simulator) == created
    assert try_create(simulator, ask).status == 200


@pytest.mark.parametrize(
    ("name", "status", "error_type", "created"),
    [
        ("error-500-before", 500, "api_error", 0),
        ("error-500-after", 500, "api_error", 1),
        ("error-504-after", 504, "timeout_error", 1),
        ("429", 429, "rate_limit_error", 0),
        ("429-bare", 429, "rate_limit_error", 0),
        ("529", 529, "overloaded_error", 0),
        ("402", 402, "billing_error", 0),
        ("403", 403, "permission_error", 0),
        ("408", 408, "timeout_error", 0),
        ("409", 409, "conflict_error", 0),
        ("307", 307, "api_error", 0),
        ("413", 413, "request_too_large", 0),
        ("spend-limit", 400, "invalid_request_error", 0),
        ("spend-cap", 429, "rate_limit_error", 0),
    ],
)
def test_create_is_answered_with_an_error_once(start, ask, name, status, error_type, created):
    simulator = start(name)
    reply = try_create(simulator, ask)
    assert (reply.status, reply.json["error"]["type"]) == (status, error_type)
    assert reply.headers.get("retry-after") == ("1" if name == "429" else None)
    assert batches(simulator) == created
    assert try_create(simulator, ask).status == 200


def test_garbled_reply_hides_a_created_batch(start, ask):
    simulator = start("garbled-after")
    reply = try_create(simulator, ask)
    assert reply.status == 200
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(reply.body)
    assert batches(simulator) == 1


def test_call_faults_strike_the_named_verb(start, ask):
    simulator = start("529@list=2", "429@any")
    assert [simulator.call("GET", PATH).status for _ in range(4)] == [529, 529, 429, 200]


def test_key_is_revoked_from_the_nth_call(start):
    simulator = start("401-from=2")
    assert [simulator.call("GET", PATH).status for _ in range(4)] == [200, 200, 401, 401]
    simulator.call("DELETE", "/simulator/faults?name=401-from")
    assert simulator.call("GET", PATH).status == 200


def test_results_are_cut_in_mid_line_once(start, ask):
    simulator = start("cut-results")
    batch = simulator.create([ask(f"r-{number}") for number in range(3)])
    simulator.clock.now += 10
    with pytest.raises(IncompleteRead) as cut:
        simulator.call("GET", f"{PATH}/{batch['id']}/results")
    whole = simulator.call("GET", f"{PATH}/{batch['id']}/results").body
    assert whole.startswith(cut.value.partial)
    assert whole[len(cut.value.partial) :][:1] != b"\n"
    assert len(simulator.results(batch["id"])) == 3


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("expire", "expired", None),
        ("errored-api", "errored", "api_error"),
        ("errored-overloaded", "errored", "overloaded_error"),
        ("errored-timeout", "errored", "timeout_error"),
    ],
)
def test_share_of_the_requests_ends_badly_and_a_new_tag_draws_anew(start, ask, name, kind, error):
    simulator = start(f"{name}=0.3")
    results = simulator.ended([ask(f"key-{number}-tag1") for number in range(200)])
    bad = [custom_id for custom_id, result in results.items() if result["type"] == kind]
    assert 30 < len(bad) < 90
    if error:
        assert {results[custom_id]["error"]["error"]["type"] for custom_id in bad} == {error}
    again = simulator.ended([ask(custom_id.replace("tag1", "tag2")) for custom_id in bad])
    assert sum(result["type"] == "succeeded" for result in again.values()) > len(bad) / 3


def test_number_of_requests_is_spent_over_batches(start, ask):
    simulator = start("expire=5")
    first = simulator.ended([ask(f"a-{number}") for number in range(3)])
    second = simulator.ended([ask(f"b-{number}") for number in range(20)])
    assert [result["type"] for result in first.values()] == ["expired"] * 3
    assert [result["type"] for result in second.values()].count("expired") == 2
    assert simulator.call("GET", "/simulator/faults").json["active"] == {}


def test_answers_are_spoilt(start, ask):
    simulator = start()
    structured = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}

    def answer(fault):
        simulator.call("POST", "/simulator/faults", json.dumps({"name": fault, "n": "all"}).encode())
        result = simulator.ended([ask("a", **structured)])["a"]
        simulator.call("DELETE", "/simulator/faults")
        return result

    def text(result):
        return json.loads(result["message"]["content"][1]["text"])

    assert answer("truncated")["message"]["stop_reason"] == "max_tokens"
    assert answer("refusal")["message"]["stop_reason"] == "refusal"
    assert answer("pause")["message"]["stop_reason"] == "pause_turn"
    assert "label" not in text(answer("invalid"))
    assert text(answer("enum-case"))["label"] == "OK"
    assert "\ud83d" in text(answer("surrogate"))["summary"]
    assert answer("unknown-type")["type"] == "postponed"


def test_lines_are_missing_doubled_and_foreign(start, ask):
    simulator = start("missing-result=1", "duplicate-result=1", "foreign-result=1")
    batch = simulator.create([ask(f"r-{number}") for number in range(30)])
    simulator.clock.now += 10
    lines = [json.loads(line)["custom_id"] for line in simulator.call("GET", f"{PATH}/{batch['id']}/results").body.splitlines()]
    counts = simulator.call("GET", f"{PATH}/{batch['id']}").json["request_counts"]
    assert counts["succeeded"] == 30
    assert len({name for name in lines if name.startswith("r-")}) == 29
    assert len(lines) - len(set(lines)) <= 1
    assert sum(name.startswith("foreign-") for name in lines) <= 1


def test_new_batch_is_listed_late_and_found_by_id_at_once(start, ask):
    simulator = start("list-lag=3")
    batch = simulator.create([ask("a")])
    assert simulator.call("GET", PATH).json["data"] == []
    assert simulator.call("GET", f"{PATH}/{batch['id']}").status == 200
    simulator.clock.now += 3
    assert [found["id"] for found in simulator.call("GET", PATH).json["data"]] == [batch["id"]]


def test_clock_skew_moves_created_at_and_date(start, ask):
    simulator = start("clock-skew=-3600")
    assert simulator.create([ask("a")])["created_at"] == "2026-09-21T13:13:20.250000+00:00"
    assert simulator.call("GET", PATH).headers["date"] == "Mon, 21 Sep 2026 13:13:20 GMT"


def test_queue_limit_refuses_until_a_batch_has_ended(start, ask):
    simulator = start("queue-limit=2")
    simulator.create([ask("a"), ask("b")])
    assert try_create(simulator, ask).status == 429
    simulator.clock.now += 10
    assert try_create(simulator, ask).status == 200


def test_strict_create_refuses_params_at_once(start, ask):
    simulator = start("strict-create")
    reply = simulator.call("POST", PATH, json.dumps({"requests": [ask("a"), ask("b", temperature=1)]}).encode())
    assert reply.status == 400
    assert reply.json["error"]["message"].startswith("requests.1.params.temperature: ")
    assert batches(simulator) == 0


def test_unknown_model_can_be_a_not_found_error(start, ask):
    simulator = start("model-not-found")
    assert simulator.ended([ask("a", model="claude-nope")])["a"]["error"]["error"]["type"] == "not_found_error"


def test_long_answers_are_cut_where_max_tokens_is_smaller(start, ask):
    simulator = start("long-answers=200")
    results = simulator.ended([ask("a", max_tokens=199), ask("b", max_tokens=200)])
    assert [results[name]["message"]["stop_reason"] for name in ("a", "b")] == ["max_tokens", "end_turn"]
    assert results["a"]["message"]["usage"]["output_tokens"] == 199


def test_ended_batches_are_archived_early(start, ask):
    simulator = start("archive=12")
    batch = simulator.create([ask("a")])["id"]
    simulator.clock.now += 11
    assert simulator.call("GET", f"{PATH}/{batch}/results").status == 200
    simulator.clock.now += 1.5
    found, listed = simulator.call("GET", f"{PATH}/{batch}").json, simulator.call("GET", PATH).json["data"][0]
    assert found["archived_at"] == listed["archived_at"] is not None
    assert (found["processing_status"], found["results_url"]) == ("ended", None)
    assert simulator.call("GET", f"{PATH}/{batch}/results").status == 404


def test_slow_upload_still_creates(start, ask):
    assert try_create(start("slow-upload=0.05"), ask).status == 200


def test_slow_batch_holds_up_what_is_created_while_it_is_on(start, ask):
    simulator = start("slow-batch=60")
    slow = simulator.create([ask("a")])["id"]
    simulator.call("DELETE", "/simulator/faults")
    quick = simulator.create([ask("b")])["id"]
    simulator.clock.now += 50
    statuses = [simulator.call("GET", f"{PATH}/{batch_id}").json["processing_status"] for batch_id in (slow, quick)]
    assert statuses == ["in_progress", "ended"]


def test_held_batches_end_when_they_are_let_go_or_canceled(start, ask):
    simulator = start("hold")
    held, canceled = (simulator.create([ask(name)])["id"] for name in "ab")
    simulator.clock.now += 3_600

    def statuses():
        listed = {one["id"]: one["status"] for one in simulator.call("GET", "/simulator/books").json["batches"]}
        asked = {one: simulator.call("GET", f"{PATH}/{one}").json["processing_status"] for one in (held, canceled)}
        assert listed == asked
        return asked[held], asked[canceled]

    assert statuses() == ("in_progress", "in_progress")
    assert simulator.call("GET", f"{PATH}/{held}/results").status == 404
    simulator.call("POST", f"{PATH}/{canceled}/cancel")
    assert statuses() == ("in_progress", "ended")
    simulator.call("DELETE", "/simulator/faults")
    assert statuses() == ("ended", "ended")


def test_faults_are_switched_at_run_time(simulator, ask):
    assert simulator.call("POST", "/simulator/faults", b'{"name":"429","n":2}').json["active"] == {"429": 2}
    assert try_create(simulator, ask).status == 429
    assert simulator.call("DELETE", "/simulator/faults").json["active"] == {}
    assert try_create(simulator, ask).status == 200
    assert simulator.call("POST", "/simulator/faults", b'{"name":"nonsense"}').status == 400
    assert simulator.call("POST", "/simulator/faults", b"[").status == 400


@pytest.mark.parametrize("switch", ["nonsense", "429@moon", "expire@list", "expire=many", "expire=-1", "expire=nan"])
def test_unknown_switches_are_refused(switch):
    with pytest.raises(ValueError, match="ault"):
        parse_switch(switch)


def test_threshold_hits_exactly_the_counted_number():
    names = [f"r-{number}" for number in range(1000)]
    thresholds = FaultBoard(["expire=7"]).draw_requests(names)
    assert sum(is_hit(thresholds, "expire", name) for name in names) == 7


def test_every_fault_with_a_status_makes_an_error():
    for fault in FAULTS.values():
        if fault.status >= 300:
            assert isinstance(fault.error(), WireError)
