"""For tests of a POST whose end nobody saw."""

import json
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from claude_batch_dagster.core.submission import Send
from claude_batch_dagster.verbs.answer import Choice, _answer
from claude_batch_dagster.verbs.connection import Connection
from tests.stack import Bench, RunningSimulator

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


def now() -> datetime:
    return datetime.now(UTC)


def replace_sender(sent: Any) -> Send:
    """Return the same intent of another process."""
    assert isinstance(sent, Send)
    return msgspec.structs.replace(sent, sender="another")


def post_foreign(simulator: RunningSimulator, count: int) -> str:
    """Create somebody else's batch; return its id."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({"requests": [{"custom_id": f"theirs-{n}", "params": params} for n in range(count)]}).encode()
    headers = {"content-type": "application/json", "x-api-key": "any", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(f"{simulator.url}/v1/messages/batches", data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(json.loads(reply.read())["id"])


async def answer(bench: Bench, entry: Any, choice: Choice, shard: int | None = None, batch_id: str | None = None) -> str:
    connection = Connection(address=bench.address, task_queue=bench.task_queue)
    return await _answer(connection, bench.store, entry, choice, shard, batch_id)
