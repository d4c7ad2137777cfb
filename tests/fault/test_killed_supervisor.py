"""The embedded stack's supervisor is killed, and with it Temporal and the worker, while clients wait: they start it again and end well."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.embedded import stop_stack
from tests.prefork import popen

ROWS = 30
RUN = "run --source source.parquet --task summarize --column text --key id --output out --json --simulate".split()


def test_clients_that_wait_start_the_stack_again(tmp_path: Path) -> None:
    """Nobody waits for ever: two clients of one root, the second for the first one's run."""
    pq.write_table(
        pa.table({"id": range(ROWS), "text": [f"Review {n}: the tent is dry." for n in range(ROWS)]}), tmp_path / "source.parquet"
    )
    root = tmp_path / "root" / "simulated"
    environ = {**os.environ, "CLAUDE_BATCH_ROOT": str(tmp_path / "root"), "CLAUDE_BATCH_POLL_SECONDS": "0.5"}
    for name in ("TEMPORAL_ADDRESS", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"):
        environ.pop(name, None)
    clients = []
    try:
        for output in ("out", "out2"):
            words = [output if word == "out" else word for word in RUN]
            command = [sys.executable, "-m", "claude_batch_dagster.cli", *words]
            clients.append(
                popen(command, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        supervisor = wait_for_batch(root)
        os.kill(supervisor, signal.SIGKILL)
        told = [client.communicate(timeout=150) for client in clients]
    finally:
        for client in clients:
            client.kill()
        stop_stack(str(root))

    assert [client.returncode for client in clients] == [0, 0], told
    asked = [json.loads(out.strip().splitlines()[-1])["requests"]["asked"] for out, _ in told]
    assert sorted(asked) == [0, ROWS]
    for output in ("out", "out2"):
        rows = pq.read_table(tmp_path / output / "part-0.parquet").to_pylist()
        assert [row["status"] for row in rows] == ["succeeded"] * ROWS


def wait_for_batch(root: Path) -> int:
    """Wait until a batch is recorded; return the supervisor's pid."""
    deadline = time.monotonic() + 90
    while not list(root.glob("submissions/*/*/1.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(json.loads((root / "embedded" / "stack.json").read_text())["supervisor"]["pid"])
