"""Admission: a staged plan takes the next number of the plan log, or gives up the keys of those who were faster.

One put-if-absent on the next number gives all plans of a root one order, without a clock or a lease. Whoever loses subtracts the
winner's keys, so that no key is ever owned by two open runs.
"""

import os
import socket
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress, groupby, islice

import numpy as np

from claude_batch_dagster.core.records import CostRange, KeysRef, LogEntry, Owner, ShardRef, SourceRef, TaskRef
from claude_batch_dagster.core.request import LineFrame, parse_custom_id, short_name
from claude_batch_dagster.core.shard import iter_lines, line_custom_id, line_max_tokens, line_params
from claude_batch_dagster.storage.keys import KeySet, pack_keys, read_owned_keys
from claude_batch_dagster.storage.lines import Lines
from claude_batch_dagster.storage.plans import admit_entry, read_entry, read_log
from claude_batch_dagster.storage.source import PIECE_ROWS
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.estimate import Estimator, params_counter
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.plan import Plan
from claude_batch_dagster.verbs.stage import PlanStage


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What came of a plan.

    Attributes:
        own: The run that was admitted, None where others own every key.
        waits: Other runs that hold wanted keys.
    """

    own: LogEntry | None
    waits: tuple[LogEntry, ...]


def admit_plan(job: Job, plan: Plan, *, reserved_nano_usd: int = 0) -> Admission:
    """Write the plan into the log, less what others admitted meanwhile. After this its keys are its own until `done`.

    Args:
        job: What is asked.
        plan: Of this job.
        reserved_nano_usd: What earlier runs of this invocation may cost: the job's cap is for all of them.
    """
    store = Store(job.root)
    for target in job.targets:
        store.put_if_absent(f"tasks/{target.task.task_key}.json", target.task.encode_document())
    waits = {entry.number: entry for entry in plan.waits}
    shards, keys, tip = plan.shards, plan.keys, plan.snapshot.tip
    while keys is not None:
        entry = _entry(job, plan, number=tip + 1, shards=shards, keys=keys, reserved_nano_usd=reserved_nano_usd)
        # An object store's client may have repeated a put that had succeeded; no two plans share a run_id.
        if admit_entry(store, entry) or read_entry(store, entry.number).run_id == plan.run_id:
            return Admission(own=entry, waits=tuple(waits.values()))
        winners = [read_entry(store, number) for number in range(tip + 1, read_log(store).tip + 1)]
        tip = winners[-1].number
        lost = _held_by(store, job, winners, plan.run_id, waits)
        if any(len(held) for held in lost.values()):
            shards, keys = _restage(job, store, plan.run_id, shards, lost)
    for path in store.list(f"plans/{plan.run_id}"):
        store.delete(path)
    return Admission(own=None, waits=tuple(waits.values()))


def _held_by(store: Store, job: Job, winners: list[LogEntry], run_id: str, waits: dict[int, LogEntry]) -> dict[str, KeySet]:
    """Return the keys of ours that the winners own, by task_key; note the winners that hold any."""
    ours: dict[str, KeySet] = {}
    for task_key, keys in read_owned_keys(store, run_id):
        ours.setdefault(task_key, KeySet()).add(keys)
    lost = {target.task.task_key: KeySet() for target in job.targets}
    for winner in winners:
        for task_key, keys in read_owned_keys(store, winner.run_id):
            if task_key in ours and (mine := ours[task_key].contains(keys)).any():
                lost[task_key].add(keys[mine])
                waits[winner.number] = winner
    return lost


def _restage(
    job: Job, store: Store, run_id: str, shards: tuple[ShardRef, ...], lost: dict[str, KeySet]
) -> tuple[tuple[ShardRef, ...], KeysRef | None]:
    """Stage the requests again that are still ours. The old files stay behind as garbage that no record names."""
    tasks = {short_name(target.task.name): target.task for target in job.targets}
    estimators = {name: Estimator(task.model, task.max_tokens, None) for name, task in tasks.items()}
    counters = {name: params_counter(task) for name, task in tasks.items()}
    with store.scratch() as scratch, closing(PlanStage(job, store, run_id, scratch)) as stage:
        for shard in shards:
            lines = ((parse_custom_id(line_custom_id(line)), line) for line in iter_lines(store.stream(shard.path)))
            while piece := list(islice(lines, PIECE_ROWS)):
                for name, group in groupby(piece, key=lambda pair: pair[0].name):
                    members = list(group)
                    keys = pack_keys([bytes.fromhex(identity.request_key) for identity, _ in members])
                    kept = ~lost[tasks[name].task_key].contains(keys)
                    params = [line_params(line) for _, line in compress(members, kept)]
                    caps = np.array([line_max_tokens(line) for _, line in compress(members, kept)], np.int64)
                    worst = estimators[name].add(np.array([counters[name](one) for one in params], np.int64), caps)
                    stage.add(tasks[name].task_key, Lines.of(LineFrame(name, b""), params), keys[kept], worst, caps)
        staged = stage.finish()
    return staged.shards, staged.keys


def _entry(job: Job, plan: Plan, *, number: int, shards: tuple[ShardRef, ...], keys: KeysRef, reserved_nano_usd: int) -> LogEntry:
    # Of what is left after lost races.
    worst = [shard.worst_nano_usd for shard in shards] + [preflight.worst_nano_usd for preflight in plan.preflights]
    expected = plan.expected_nano_usd
    return LogEntry(
        run_id=plan.run_id,
        number=number,
        admitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        endpoint=job.endpoint,
        owner=Owner(host=socket.gethostname(), pid=os.getpid(), dagster_run_id=job.dagster_run_id),
        tasks=tuple(
            TaskRef(
                name=target.task.name,
                task_key=target.task.task_key,
                largest_params_bytes=plan.estimates[target.task.name].largest_params_bytes,
            )
            for target in job.targets
        ),
        source=SourceRef(uri=job.source.uri, fingerprint=plan.fingerprint),
        keys=keys,
        shards=shards,
        cost_nano_usd=CostRange(
            expected=None if expected is None else round(expected * keys.count / plan.total.asked),
            worst=None if None in worst else sum(cost or 0 for cost in worst),
            cap=None if job.max_cost_usd is None else round(job.max_cost_usd * 1_000_000_000) - reserved_nano_usd,
        ),
        max_attempts=job.max_attempts,
        max_in_flight_batches=job.max_in_flight_batches,
        preflights=tuple(preflight.ref for preflight in plan.preflights),
    )
