"""Where a plan's requests go: into staged shards, or, for a preview, nowhere."""

from dataclasses import dataclass
from pathlib import Path

from claude_batch_dagster.core.records import KeysRef, ShardRef
from claude_batch_dagster.core.request import Request, encode_line, line_bytes
from claude_batch_dagster.core.shard import Place, ShardPacker, raise_line
from claude_batch_dagster.storage.keys import Keys, OwnedKeys, owned_keys_path
from claude_batch_dagster.storage.staging import ShardStager
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.job import Job

NO_TAG = "00000000"


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

    def add(self, name: str, request: Request, worst_nano_usd: int | None, max_tokens: int | None) -> Place:
        """Place a request."""
        place = self._packer.place(line_bytes(name, request))
        assert place is not None, "what alone exceeds a body was left out before"
        return place

    def own(self, task_key: str, keys: Keys, places: list[Place]) -> None:
        """Own nothing."""

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

    def add(self, name: str, request: Request, worst_nano_usd: int | None, max_tokens: int | None) -> Place:
        """Stage a request, with another `max_tokens` than its task's where that is given."""
        line = encode_line(name, request, NO_TAG)
        place = self._stager.add(line if max_tokens is None else raise_line(line, max_tokens), worst_nano_usd)
        assert place is not None, "what alone exceeds a body was left out before"
        return place

    def own(self, task_key: str, keys: Keys, places: list[Place]) -> None:
        """Note whose requests were placed where."""
        self._owned.append(task_key, keys, [place.shard for place in places], [place.position for place in places])

    def close(self) -> None:
        """Let go of the open files, whether the plan was finished or not."""
        self._stager.abandon()
        self._owned.close()

    def finish(self) -> Staged:
        """Put the last shard and the owned keys."""
        shards = self._stager.finish()
        sha256 = self._owned.close()
        if not self._owned.count:
            return Staged(shards=(), keys=None, batches=0)
        path = owned_keys_path(self._run_id)
        self._store.put_file(path, self._owned.file)
        return Staged(shards=shards, keys=KeysRef(path=path, sha256=sha256, count=self._owned.count), batches=len(shards))
