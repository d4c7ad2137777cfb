"""Roots whose response store is full, written by the product's own writer. Made once, kept in the work folder."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

import claude_batch_dagster
from bench.data import CATEGORIES, MOST_CHARS, make_pool, make_source
from bench.job import ENDPOINT, MAX_TOKENS, MODEL, TASK, make_job
from bench.measure import made_once
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.keys import Keys, read_owned_keys
from claude_batch_dagster.storage.responses import write_responses
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.plan import plan_job

BATCH_REQUESTS = 100_000
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def answer_source(work: Path, rows: int, *, batch_requests: int = BATCH_REQUESTS) -> Path:
    """Return a folder with a root in which every request of the source of this size is answered, as batches of so many left it."""
    return _fill(work, rows, 0, batch_requests, maintained=False)


def fill_store(work: Path, rows: int, others: int) -> Path:
    """Return a folder with a root that holds answers to a source's requests and to so many others, maintained as after a run.

    `keys.npy` beside the root holds the keys of the source's requests.
    """
    return _fill(work, rows, others, BATCH_REQUESTS, maintained=True)


def _fill(work: Path, rows: int, others: int, batch_requests: int, *, maintained: bool) -> Path:
    folder = work / f"answered-{rows}-{others}-{batch_requests}-{_hash_product()}"
    with made_once(folder) as making:
        if making is None:
            return folder
        store = Store(str(making / "root"))
        plan = plan_job(make_job(make_source(rows, work), making))
        keys = np.concatenate([found for _, found in read_owned_keys(store, plan.run_id)])
        np.save(making / "keys.npy", keys)
        number = _write_others(store, others // 2, 0)
        number = _write(store, (keys[start : start + batch_requests] for start in range(0, len(keys), batch_requests)), number)
        _write_others(store, others - others // 2, number)
        shutil.rmtree(making / "root" / "plans")
        if maintained:
            maintain_root(making)
    return folder


def other_keys(count: int, number: int) -> Keys:
    """Return the keys of one of the other files: random, the same for the same number."""
    return np.random.default_rng(number).integers(1, 1 << 64, (count, 2), np.uint64)


def link_root(folder: Path, target: Path) -> Path:
    """Return a copy of a folder for one process to change. Files are links: the product replaces files, it never writes into one."""
    shutil.copytree(folder, target, copy_function=os.link)
    return target


def maintain_root(folder: Path) -> None:
    """Index and compact a root's responses as the product does after a run."""
    maintain_responses(Store(str(folder / "root")), ENDPOINT, TASK.task_key)


def _hash_product() -> str:
    """Return what changes when the product writes other files: a store that an older version wrote would hide it."""
    package = Path(claude_batch_dagster.__file__).parent
    files = sorted([*(package / "core").glob("*.py"), *(package / "storage").glob("*.py")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _write_others(store: Store, count: int, number: int) -> int:
    batches = (
        other_keys(min(BATCH_REQUESTS, count - start), number + start // BATCH_REQUESTS) for start in range(0, count, BATCH_REQUESTS)
    )
    return _write(store, batches, number)


def _write(store: Store, batches: Iterator[Keys], number: int) -> int:
    # Without what JSON escapes: a slice of it stands in an answer as it is.
    pool = re.sub(r'["\\\n]', " ", make_pool())
    for keys in batches:
        write_responses(
            store,
            endpoint=ENDPOINT,
            task_key=TASK.task_key,
            batch_id=f"msgbatch_{number:06}",
            round_number=1,
            answered_at=NOON + timedelta(seconds=number),
            responses=_make_responses(keys, number, pool),
        )
        number += 1
    return number


def _make_responses(keys: Keys, number: int, pool: str) -> list[Response]:
    rng = np.random.default_rng(number)
    begins = rng.integers(0, len(pool) - MOST_CHARS, len(keys)).tolist()
    lengths = rng.integers(150, 350, len(keys)).tolist()
    packed = np.ascontiguousarray(keys).tobytes()
    responses = []
    for at, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        key = packed[16 * at : 16 * at + 16]
        if begin % 1_000 < 17:
            error = "invalid_request_error: the text cannot be processed"
            responses.append(Response(request_key=key, outcome="errored", error=error, max_tokens=MAX_TOKENS))
            continue
        label, score = CATEGORIES[begin % len(CATEGORIES)], begin % 11
        answer = f'{{"summary":"{pool[begin : begin + length]}","label":"{label}","score":{score}}}'
        responses.append(
            Response(
                request_key=key,
                outcome="succeeded",
                answer=answer,
                stop_reason="end_turn",
                model=MODEL,
                input_tokens=350 + begin % 300,
                output_tokens=40 + length // 4,
                max_tokens=MAX_TOKENS,
                cost_nano_usd=1_000 * (length + begin % 300),
            )
        )
    return responses
