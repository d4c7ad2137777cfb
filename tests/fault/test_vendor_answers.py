"""Everything that can become of a request, in one batch: each is treated by its own reason, and the counts add up."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fault.judge import CommandLine, answered_twice, rows_by_status, sent
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]
MANY = 400
"""So that of five requests of each kind, which are drawn, one at least is of no other kind."""
ASKED_AGAIN = ("expire", "errored-api", "errored-overloaded", "errored-timeout", "truncated", "invalid")


def results(simulator: RunningSimulator, batch_id: str) -> dict[str, dict[str, Any]]:
    """Return an ended batch's results by name and key."""
    headers = {"x-api-key": "any", "anthropic-version": "2023-06-01"}
    address = f"{simulator.url}/v1/messages/batches/{batch_id}/results"
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as reply:
        lines = [json.loads(line) for line in reply.read().splitlines()]
    return {line["custom_id"][:-9]: line["result"] for line in lines}


def reason_of(result: dict[str, Any]) -> str:
    """Return why the vendor's result is no answer, `answered` or `refused` where there is nothing to ask again."""
    if result["type"] != "succeeded":
        return str(result["error"]["error"]["type"] if result["type"] == "errored" else result["type"])
    message = result["message"]
    if message["stop_reason"] == "refusal":
        return "refused"
    if message["stop_reason"] == "max_tokens":
        return "truncated"
    text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    return "answered" if "summary" in json.loads(text) else "invalid"


def test_each_request_is_treated_by_its_own_reason(bench: Bench, start_simulator: StartSimulator, tmp_path: Path) -> None:
    """What the table asks again makes one further batch, all reasons together; refusals stand; the log tells how many of which."""
    simulator = start_simulator("refusal=5", *(f"{fault}=5" for fault in ASKED_AGAIN))
    worker = bench.start_worker(simulator)
    command = CommandLine(bench=bench, simulator=simulator, folder=tmp_path / "work")
    command.write_source(MANY)

    finished = command.run("--no-preflight")

    assert finished.returncode == 0, finished.stderr
    first, second = (results(simulator, batch["id"]) for batch in reversed(simulator.batches()))
    reasons = {key: reason_of(result) for key, result in first.items()}
    assert set(reasons.values()) == {
        "answered", "refused", "expired", "api_error", "overloaded_error", "timeout_error", "truncated", "invalid",
    }  # fmt: skip
    assert set(second) == {key for key, reason in reasons.items() if reason not in ("answered", "refused")}
    refused = sum(reason == "refused" for reason in reasons.values())
    assert rows_by_status(finished) == {"total": MANY, "succeeded": MANY - refused, "refused": refused}
    assert [row["id"] for row in command.rows()] == list(range(MANY))
    told = next(line for line in worker.lines if "round 2: " in line and "asked again" in line)
    for reason in set(reasons.values()) - {"answered", "refused"}:
        assert f"{sum(found == reason for found in reasons.values())} {reason}" in told
    # What was paid twice is what max_tokens cut and what broke its schema, and nothing else.
    assert set(answered_twice(simulator)) == {key for key, reason in reasons.items() if reason in ("truncated", "invalid")}
    assert sent(simulator) == [MANY, len(second)]
