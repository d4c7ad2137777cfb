"""Writes a round's shards: each POST body is encoded once, into a local file, and put whole under a name that holds its hash."""

import hashlib
from pathlib import Path
from typing import BinaryIO

from claude_batch_dagster.core.records import ShardRef
from claude_batch_dagster.core.request import submission_tag
from claude_batch_dagster.core.shard import HEAD, MAX_BODY_BYTES, MAX_REQUESTS, SEPARATOR, TAIL, Place, ShardPacker, retag_line
from claude_batch_dagster.storage.plans import shard_path
from claude_batch_dagster.storage.store import Store


class ShardStager:
    """Packs request lines into shards and puts each into the store as soon as it is full.

    Args:
        store: The root.
        run_id: Of the run that will own the shards.
        round_number: From 1.
        scratch: A local folder for the file being written; one shard's bytes at most.
        max_requests: In a shard.
        max_body_bytes: Of a shard.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        round_number: int,
        scratch: Path,
        max_requests: int = MAX_REQUESTS,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._round = round_number
        self._scratch = scratch
        self._packer = ShardPacker(max_requests=max_requests, max_body_bytes=max_body_bytes)
        self._shards: list[ShardRef] = []
        self._open: _OpenShard | None = None

    def add(self, line: bytes, worst_nano_usd: int | None) -> Place | None:
        """Append a request under the tag of the shard that it falls into.

        Args:
            line: The encoded request; its tag is replaced.
            worst_nano_usd: What it may cost, None where the model has no price.

        Returns:
            Its place; None, and nothing appended, where it exceeds a body on its own.
        """
        place = self._packer.place(len(line))
        if place is None:
            return None
        if self._open is None or place.position == 0:
            self._close()
            self._open = _OpenShard(self._scratch / f"{place.shard}.json", submission_tag(self._run_id, self._round, place.shard))
        self._open.append(line, worst_nano_usd)
        return place

    def finish(self) -> tuple[ShardRef, ...]:
        """Put the last shard; return all of them, in order."""
        self._close()
        return tuple(self._shards)

    def abandon(self) -> None:
        """Give up the shard that is being written; what was put before is garbage that no record names."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _close(self) -> None:
        if self._open is None:
            return
        shard, self._open = self._open, None
        sha256 = shard.close()
        path = shard_path(self._run_id, self._round, len(self._shards), sha256)
        self._store.put_file(path, shard.file)
        self._shards.append(
            ShardRef(
                path=path, sha256=sha256, requests=shard.requests, body_bytes=shard.file.stat().st_size, worst_nano_usd=shard.worst_nano_usd
            )
        )
        shard.file.unlink()


class _OpenShard:
    def __init__(self, file: Path, tag: str) -> None:
        self.file = file
        self.requests = 0
        self.worst_nano_usd: int | None = 0
        self._tag = tag
        self._hash = hashlib.sha256()
        self._out: BinaryIO = file.open("wb", buffering=1 << 20)
        self._write(HEAD)

    def append(self, line: bytes, worst_nano_usd: int | None) -> None:
        line = retag_line(line, self._tag)
        self._write(SEPARATOR + line if self.requests else line)
        self.requests += 1
        self.worst_nano_usd = None if self.worst_nano_usd is None or worst_nano_usd is None else self.worst_nano_usd + worst_nano_usd

    def close(self) -> str:
        self._write(TAIL)
        self._out.close()
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._hash.update(content)
        self._out.write(content)
