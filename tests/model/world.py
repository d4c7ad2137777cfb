"""What both models share: a root as the product itself writes it, and a vendor whose every word is a step."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import ClaudeBatchError, VendorUnavailableError
from claude_batch_dagster.core.shard import iter_lines, line_custom_id
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.verbs.job import Job, Target
from temporal_worker.vendor import Batch, Created, CreateResult, Model, NotCreated, UnknownOutcome, VendorReply
from tests.model.replay import ask

MODEL = "claude-haiku-5-5"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DATE = "Sun, 22 Nov 2026 12:00:00 GMT"
TASK = ClaudeTask(name="words", model=MODEL, prompt="{text}", max_tokens=10)


def make_job(folder: Path, root: str, *texts: str) -> Job:
    """Return a job over a real file of these texts."""
    file = folder / f"{''.join(texts)}.parquet"
    if not file.exists():
        pq.write_table(pa.table({"id": list(range(len(texts))), "text": list(texts)}), file)
    return Job(
        root=root,
        endpoint="simulator",
        temporal_namespace="default",
        source=ParquetDataset(path=str(file), key="id"),
        targets=(Target(task=TASK, output=str(folder / "out")),),
        preflight=False,
    )


@contextmanager
def make_folder() -> Iterator[Path]:
    """Give a folder for sources."""
    with tempfile.TemporaryDirectory(prefix="claude-batch-model-") as folder:
        yield Path(folder)


def read_custom_ids(body: bytes) -> tuple[str, ...]:
    """Return the custom_ids of a POST's body, in order."""
    return tuple(line_custom_id(line) for line in iter_lines([body]))


@dataclass(slots=True)
class ModelVendor:
    """`temporal_worker.batches.Batches`, with every call that tells or changes something a step of the model."""

    is_sending: bool = False

    def find_endpoint(self) -> str:
        """Return the root's endpoint."""
        return "simulator"

    def check_key_and_list(self) -> VendorReply:
        """Return the same reply at any time."""
        return VendorReply(date=DATE, workspace_id=None)

    def get_model(self, model: str) -> Model:
        """Return a model that can everything."""
        return Model(id=model, lifecycle="active")

    def create(self, body: Iterator[bytes], body_bytes: int) -> CreateResult:
        """POST a batch: the last byte leaves, and some time later something is known, or never."""
        self.is_sending = True
        try:
            sent = b"".join(body)
        except ClaudeBatchError as error:
            return NotCreated(error=error)
        finally:
            self.is_sending = False
        assert len(sent) == body_bytes
        ask("post", read_custom_ids(sent))
        reply: str = ask("reply")
        if reply == "refused":
            return NotCreated(error=VendorUnavailableError("HTTP 429"))
        if reply == "lost":
            return UnknownOutcome(why="the connection ended without a reply")
        return Created(batch_id=reply, created_at=NOON.isoformat())

    def list_batches(self, *, created_after: datetime | None = None, limit: int = 0) -> Iterator[Batch]:
        """Yield what the vendor's list shows by now."""
        for batch_id, requests in ask("list_batches"):
            yield _batch(batch_id, requests, ended=False)

    def get(self, batch_id: str) -> Batch:
        """Return a batch as it is by now."""
        requests, ended = ask("batch", batch_id)
        return _batch(batch_id, requests, ended=ended)

    @contextmanager
    def stream_results(self, batch_id: str) -> Iterator[Iterator[bytes]]:
        """Give a batch's results."""
        yield iter((ask("results", batch_id),))

    def cancel(self, batch_id: str) -> None:
        """Ask for a batch's end: too late, it goes on."""


def result_line(custom_id: str, *, answered: bool) -> bytes:
    """Return a line of a batch's results: an answer, or a request that expired and costs nothing."""
    if not answered:
        return b'{"custom_id":"%b","result":{"type":"expired"}}\n' % custom_id.encode()
    return (
        b'{"custom_id":"%b","result":{"type":"succeeded","message":{"id":"msg_1","type":"message","role":"assistant","model":"%b",'
        b'"content":[{"type":"text","text":"yes"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}}}\n'
    ) % (custom_id.encode(), MODEL.encode())


def _batch(batch_id: str, requests: int, *, ended: bool) -> Batch:
    return Batch(
        id=batch_id,
        processing_status="ended" if ended else "in_progress",
        requests=requests,
        created_at=NOON,
        ended_at=NOON if ended else None,
        archived=False,
        age_s=0.0,
        retry_after_s=None,
    )
