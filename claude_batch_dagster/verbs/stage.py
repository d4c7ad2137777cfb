"""Where a plan's requests go: into staged shards, or, for a preview, nowhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from claude_batch_dagster.core.records import KeysRef, ShardRef
from claude_batch_dagster.core.shard import ShardPacker
from claude_batch_dagster.storage.keys import Keys, Numbers, OwnedKeys, owned_keys_path
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.staging import Nanos, ShardStager
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a plan's requests became; a preview has neither shards nor keys."""

    shards: tuple[ShardRef, ...]
    keys: KeysRef | None
    batches: int


class CountingStage:
    """Packs a preview's requests, and writes nothing."""

    def __init__(self, job: Job) -> None:
        self._packer = ShardPacker(max_requests=job.max_requests_per_batch)

    def add(self, task_key: str, lines: Lines, keys: Keys, worst_nano_usd: Nanos | None, max_tokens: Numbers | None = None) -> None:
        """Place requests."""
        self._packer.place_all(lines.lines_bytes.tolist())

    def close(self) -> None:
        """Let go of nothing."""

    def finish(self) -> Staged:
        """Return how many batches it would be."""
        return Staged(shards=(), keys=None, batches=self._packer.shards)


class PlanStage:
    """Stages a plan's requests, and writes down what the run will own."""

    def __init__(self, job: Job, store: Store, run_id: str, scratch: Path) -> None:
        self._store = store
        self._run_id = run_id
        self._stager = ShardStager(store, run_id=run_id, round_number=1, scratch=scratch, max_requests=job.max_requests_per_batch)
        self._owned = OwnedKeys(scratch / "owned_keys.parquet")

    def add(self, task_key: str, lines: Lines, keys: Keys, worst_nano_usd: Nanos | None, max_tokens: Numbers | None = None) -> None:
        """Stage requests of one task, and note whose they are, where they were placed, and their `max_tokens` where it is not the task's."""
        runs = self._stager.extend(lines, keys, worst_nano_usd)
        shards = np.repeat(np.array([run.shard for run in runs], np.int32), [run.count for run in runs])
        positions = [np.arange(run.position, run.position + run.count, dtype=np.int32) for run in runs]
        self._owned.append(task_key, keys, shards, np.concatenate([np.empty(0, np.int32), *positions]), max_tokens)

    def close(self) -> None:
        """Let go of the open files, whether the plan was finished or not."""
        self._stager.abandon()
        self._owned.abandon()

    def finish(self) -> Staged:
        """Put the last shard and the owned keys."""
        shards = self._stager.finish()
        sha256 = self._owned.close()
        if not self._owned.count:
            return Staged(shards=(), keys=None, batches=0)
        path = owned_keys_path(self._run_id)
        self._store.put_file(path, self._owned.file)
        return Staged(shards=shards, keys=KeysRef(path=path, sha256=sha256, count=self._owned.count), batches=len(shards))
