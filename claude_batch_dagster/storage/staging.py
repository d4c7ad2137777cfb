"""Writes a round's shards: each POST body is encoded once, into a local file, and put whole under a name that holds its hash."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from claude_batch_dagster.core.records import ShardRef
from claude_batch_dagster.core.request import SEPARATOR, submission_tag
from claude_batch_dagster.core.shard import HEAD, MAX_BODY_BYTES, MAX_REQUESTS, TAIL, Place, Run, ShardPacker, retag_line
from claude_batch_dagster.storage.disk import forget_pages
from claude_batch_dagster.storage.keys import Keys
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.plans import shard_path
from claude_batch_dagster.storage.store import Store

Piece = bytes | memoryview
Nanos = npt.NDArray[np.int64]
"""What requests may cost, in nano-USD."""
QUEUED_BYTES = 1 << 20
QUEUED_WRITES = 2
"""So much is hashed and written at once, and so often it may wait for the disk, while the next piece is rendered."""
GATHERED_BYTES = 1 << 17
"""What is longer is written from where it lies."""
FORCED_BYTES = 32 << 20
KEPT_BYTES = 256 << 20
"""Of a round's bodies so many may stay in the page cache, since they are sent at once; those that follow wait, and would take the place of all else."""


class ShardStager:
    """Packs requests into shards and puts each into the store as soon as it is full.

    Hashing and writing a piece leave the interpreter free, so they happen beside the rendering of the next one.

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
        self._append(Run(place.shard, place.position, 1), lambda tag: [retag_line(line, tag)], worst_nano_usd)
        return place

    def extend(self, lines: Lines, keys: Keys, worst_nano_usd: Nanos | None) -> list[Run]:
        """Append requests of one task.

        Args:
            lines: The requests, which are given their keys and tags here; each must fit a body on its own.
            keys: Of the requests.
            worst_nano_usd: What each may cost, None where the model has no price.

        Returns:
            Their places.
        """
        runs = self._packer.place_all(lines.lines_bytes.tolist())
        start = 0
        for run in runs:
            part = slice(start, start + run.count)
            worst = None if worst_nano_usd is None else int(worst_nano_usd[part].sum())
            self._append(run, partial(lines.take(part).fill, keys[part]), worst)
            start = part.stop
        return runs

    def finish(self) -> tuple[ShardRef, ...]:
        """Put the last shard; return all of them, in order."""
        self._close()
        return tuple(self._shards)

    def abandon(self) -> None:
        """Give up the shard that is being written; what was put before is garbage that no record names."""
        if self._open is not None:
            self._open.abandon()
            self._open = None

    def _append(self, run: Run, lines: Callable[[str], Sequence[Piece]], worst_nano_usd: int | None) -> None:
        with self._store.drafting(self._path()):
            if self._open is None or run.position == 0:
                self._close()
                draft = self._store.draft(self._path(), self._scratch)
                self._open = _OpenShard(
                    draft,
                    submission_tag(self._run_id, self._round, run.shard),
                    is_final=self._store.folder is not None,
                    is_kept=sum(shard.body_bytes for shard in self._shards) < KEPT_BYTES,
                )
            self._open.append(lines(self._open.tag), run.count, worst_nano_usd)

    def _close(self) -> None:
        if self._open is None:
            return
        shard, self._open = self._open, None
        try:
            with self._store.drafting(self._path()):
                sha256 = shard.close()
            self._store.put_file(self._path(sha256), shard.file)
        finally:
            shard.file.unlink(missing_ok=True)
        self._shards.append(
            ShardRef(
                path=self._path(sha256),
                sha256=sha256,
                requests=shard.requests,
                body_bytes=shard.body_bytes,
                worst_nano_usd=shard.worst_nano_usd,
            )
        )

    def _path(self, sha256: str = "") -> str:
        return shard_path(self._run_id, self._round, len(self._shards), sha256)


class _OpenShard:
    """A body that is being written; hashed and written beside the making of what follows.

    Args:
        file: Where.
        tag: Of the submission.
        is_final: The file itself will be the object: it goes to the disk while it grows, so that there is little left to wait for in the end.
        is_kept: It stays in the page cache after that.
    """

    def __init__(self, file: Path, tag: str, *, is_final: bool, is_kept: bool) -> None:
        self.file = file
        self.tag = tag
        self.requests = 0
        self.body_bytes = 0
        self.worst_nano_usd: int | None = 0
        self._hash = hashlib.sha256()
        self._out: BinaryIO = file.open("wb", buffering=GATHERED_BYTES)
        self._writer = ThreadPoolExecutor(1, "stage")
        self._queued: deque[Future[None]] = deque()
        self._held: list[Piece] = []
        self._held_bytes = 0
        self._is_final = is_final
        self._is_kept = is_kept
        self._unforced_bytes = 0
        self._write(HEAD)

    def append(self, lines: Sequence[Piece], requests: int, worst_nano_usd: int | None) -> None:
        if self.requests:
            self._write(SEPARATOR)
        for piece in lines:
            self._write(piece)
        self.requests += requests
        self.worst_nano_usd = None if self.worst_nano_usd is None or worst_nano_usd is None else self.worst_nano_usd + worst_nano_usd

    def close(self) -> str:
        with self._out, self._writer:
            self._write(TAIL)
            self._flush()
            self._queued.append(self._writer.submit(self._force))
            while self._queued:
                self._queued.popleft().result()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        with suppress(OSError):
            self.close()
        self.file.unlink(missing_ok=True)

    def _write(self, content: Piece) -> None:
        self.body_bytes += len(content)
        self._held.append(content)
        self._held_bytes += len(content)
        if self._held_bytes >= QUEUED_BYTES:
            self._flush()

    def _flush(self) -> None:
        while len(self._queued) >= QUEUED_WRITES:
            self._queued.popleft().result()
        self._queued.append(self._writer.submit(self._put, self._held))
        self._held, self._held_bytes = [], 0

    def _put(self, contents: list[Piece]) -> None:
        for content in contents:
            self._hash.update(content)
            self._unforced_bytes += self._out.write(content)
        if self._unforced_bytes >= FORCED_BYTES:
            self._force()

    def _force(self) -> None:
        if self._is_final:
            self._out.flush()
            os.fsync(self._out.fileno())
            if not self._is_kept:
                forget_pages(self._out)
        self._unforced_bytes = 0
