"""storage/formats.py: a record of a newer version, or a damaged one, is refused wherever records are read."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from claude_batch_dagster.core.errors import RootError
from claude_batch_dagster.core.records import DoneRecord, RootRecord, RoundRecord, StrayRecord, WorkspaceRecord
from claude_batch_dagster.core.submission import Closed, CloseReason, encode_record
from claude_batch_dagster.storage.plans import (
    list_strays,
    list_submissions,
    pin_workspace,
    read_done,
    read_entry,
    read_log,
    read_root,
    read_round,
    read_submission,
    write_round,
)
from claude_batch_dagster.storage.store import Store
from tests.stack import stage_plan, texts

ROUND = RoundRecord(round=2, shards=())
DONE = DoneRecord(run_id="r", finished_at="2026-11-23T00:00:00+00:00", outcome="finished", rows={}, batches=0, usage=(), cost_nano_usd=0)
STRAY = StrayRecord(batch_id="b", run_id="r", round=1, shard=0, found_at="2026-11-23T00:00:00+00:00")
READS: list[tuple[str, bytes, Callable[[Store], object]]] = [
    ("root.json", msgspec.json.encode(RootRecord(root_id="r", endpoint="e", temporal_namespace="n")), read_root),
    ("workspace.json", msgspec.json.encode(WorkspaceRecord(workspace_id="w")), lambda store: pin_workspace(store, "w")),
    ("log/1.json", b"", lambda store: read_entry(store, 1)),
    ("log/1.json", b"", read_log),
    ("done/1.json", msgspec.json.encode(DONE), lambda store: read_done(store, 1)),
    ("rounds/{run_id}/2.json", msgspec.json.encode(ROUND), lambda store: read_round(store, read_entry(store, 1), 2)),
    ("rounds/{run_id}/2.json", msgspec.json.encode(ROUND), lambda store: write_round(store, read_entry(store, 1).run_id, ROUND)),
    (
        "submissions/{run_id}/1-0/0.json",
        encode_record(Closed(reason=CloseReason.DRAINED)),
        lambda store: read_submission(store, read_entry(store, 1).run_id, 1, 0),
    ),
    (
        "submissions/{run_id}/1-0/0.json",
        encode_record(Closed(reason=CloseReason.DRAINED)),
        lambda store: list_submissions(store, read_entry(store, 1).run_id),
    ),
    ("strays/b.json", msgspec.json.encode(STRAY), list_strays),
]


@pytest.mark.parametrize(("path", "content", "read"), READS)
def test_a_record_of_a_newer_format_is_refused_wherever_it_is_read(
    tmp_path: Path, path: str, content: bytes, read: Callable[[Store], object]
) -> None:
    store = Store(str(tmp_path / "root"))
    entry = stage_plan(store, texts(1))
    path = path.format(run_id=entry.run_id)
    content = content or store.get(path) or b""
    store.put(path, content)
    read(store)

    store.put(path, content.replace(b'"format":1', b'"format":2'))
    with pytest.raises(RootError, match=rf"{path} was written by a newer claude-batch-dagster: its format is 2, .* up to 1.*Upgrade"):
        read(store)

    store.put(path, content[:-9])
    with pytest.raises(RootError, match=rf"{path} is damaged: .*Restore the file"):
        read(store)


def test_a_newer_record_whose_fields_mean_something_else_is_called_newer_and_not_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("done/1.json", b'{"format": 2, "rows": [1]}')
    with pytest.raises(RootError, match="written by a newer"):
        read_done(store, 1)
