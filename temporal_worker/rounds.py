"""Opens a run's next round: what is asked again, and whether the cap allows it. PROTOCOL, "A run"."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from typing import TYPE_CHECKING, assert_never

import numpy as np

from claude_batch_dagster.core.contract import BatchInput, OpenedRound, RoundInput, Stray
from claude_batch_dagster.core.errors import RunError
from claude_batch_dagster.core.outcome import Again, Outcome, choose_again, error_type, raise_max_tokens
from claude_batch_dagster.core.records import RoundRecord, ShardRef
from claude_batch_dagster.core.request import parse_custom_id, short_name
from claude_batch_dagster.core.response import PriceUsage
from claude_batch_dagster.core.shard import iter_lines, line_custom_id, line_max_tokens, line_params, raise_line
from claude_batch_dagster.core.submission import Accepted, Closed, Record
from claude_batch_dagster.core.vision import count_prompt_bytes
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import Keys, KeySet, pack_keys
from claude_batch_dagster.storage.plans import (
    batch_ids,
    last_round,
    list_strays,
    list_submissions,
    read_round,
    read_shard,
    read_task,
    write_round,
)
from claude_batch_dagster.storage.recovered import list_unstored_strays
from claude_batch_dagster.storage.staging import ShardStager
from claude_batch_dagster.storage.stored import StoredFiles, read_stored_files
from temporal_worker.asked import check_requests, read_requests
from temporal_worker.further import InvalidBefore, ModelLimits
from temporal_worker.root import OpenRoot, check_endpoint
from temporal_worker.usage import read_usage, sum_cost

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

log = logging.getLogger(__name__)

CHUNK_REQUESTS = 8_192
BYTES_PER_TOKEN = 2
"""Of the worst case: input at one token per two UTF-8 bytes of a request's params; images in these at what they weigh."""


def open_round(root: OpenRoot, ask: RoundInput, batches: "Batches", price_usage: PriceUsage) -> OpenedRound:
    """Open a round with what the round before left to ask again (`core/outcome.py`), or the empty one that ends the run.

    Its worst case fits what the run's cap leaves, each request at its own `max_tokens`; else the round is empty.

    Raises:
        RunError: Terminal. A shard of an earlier round is open.
        VendorUnavailableError: Transient.
    """
    opened = read_round(root.store, root.entry, ask.round)
    if opened is None:
        # An open shard behind a further round would be out of everybody's sight.
        check_closed(root, list_submissions(root.store, ask.run_id))
        over = ask.empty or ask.round > root.entry.max_attempts
        staged = RoundRecord(round=ask.round, shards=()) if over else _stage_round(root, ask.round, batches, price_usage)
        # Another driver may have opened it meanwhile: then that one counts, and what was staged here is nobody's.
        opened = write_round(root.store, ask.run_id, staged)
    strays = tuple(
        Stray(batch_id=stray.batch_id, round=stray.round, shard=stray.shard)
        for stray in list_unstored_strays(root.store)
        if stray.run_id == ask.run_id
    )
    return OpenedRound(shards=len(opened.shards), strays=strays)


def check_closed(root: OpenRoot, submissions: dict[tuple[int, int], list[Record]]) -> None:
    """Raise RunError where a shard of any round is not closed."""
    last = last_round(root.store, root.entry)
    for round_number in range(1, last.round + 1):
        current = read_round(root.store, root.entry, round_number)
        for shard in range(len(current.shards) if current else 0):
            records = submissions.get((round_number, shard), [])
            if not records or not isinstance(records[-1], Closed):
                tip = (
                    "no record" if not records else f"batch {records[-1].id}" if isinstance(records[-1], Accepted) else "an open submission"
                )
                raise RunError(
                    f"Batch run {root.entry.label} cannot finish: shard {shard} of round {round_number} ends with {tip}. Its requests stay its "
                    f"own, no other run buys them. Mend the cause, then run again, or: claude-batch cancel {root.entry.label}"
                )


def _stage_round(root: OpenRoot, round_number: int, batches: "Batches", price_usage: PriceUsage) -> RoundRecord:
    check_endpoint(root, batches.find_endpoint())
    entry = root.entry
    previous = read_round(root.store, entry, round_number - 1)
    assert previous is not None, "a round is opened after the one before it"
    submissions = list_submissions(root.store, entry.run_id)
    strays = [stray.batch_id for stray in list_strays(root.store) if stray.run_id == entry.run_id]
    tasks = _read_tasks(root, strays, round_number, ModelLimits(batches), price_usage)
    reasons: Counter[str] = Counter()
    with root.store.scratch() as scratch:
        stager = ShardStager(
            root.store,
            run_id=entry.run_id,
            round_number=round_number,
            scratch=scratch,
            max_requests=max((shard.requests for shard in entry.shards), default=1),
        )
        for number, shard in enumerate(previous.shards):
            ids = batch_ids({place: records for place, records in submissions.items() if place == (previous.round, number)})
            if not ids:
                continue
            batch = BatchInput(
                root=root.store.uri, number=entry.number, run_id=entry.run_id, round=previous.round, shard=number, batch_id=ids[-1]
            )
            last = {name: task.read_last(ids) for name, task in tasks.items()}
            lines = _read_repeatable(root, batch, shard, list(last.values()))
            while chunk := list(islice(lines, CHUNK_REQUESTS)):
                for asked in _pick_again(chunk, tasks, last):
                    stager.add(asked.line, asked.worst_nano_usd)
                    reasons[asked.reason] += 1
        shards = stager.finish()
    if not shards:
        return RoundRecord(round=round_number, shards=())
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    too_dear = _compare_with_cap(root, [*batch_ids(submissions), *strays], shards)
    why = f"{told} asked again" if too_dear is None else f"{told} not asked again: {too_dear}; the next run asks them"
    log.log(logging.INFO if too_dear is None else logging.WARNING, "Batch run %s, round %d: %s.", entry.label, round_number, why)
    return RoundRecord(round=round_number, shards=shards if too_dear is None else (), why=why)


def _compare_with_cap(root: OpenRoot, own: Sequence[str], shards: Sequence[ShardRef]) -> str | None:
    """Return why the cap has no room for a round, None where it has."""
    entry = root.entry
    cap = entry.cost_nano_usd.cap
    if cap is None:
        return None
    spent = sum_cost(read_usage(root.store, root.record.endpoint, [task.task_key for task in entry.tasks], own, run_id=entry.run_id))
    # What a late batch will have cost shows at its end.
    late = [stray for stray in list_unstored_strays(root.store) if stray.run_id == entry.run_id]
    parts = [shard.worst_nano_usd for shard in (*shards, *(read_shard(root.store, entry, stray.round, stray.shard) for stray in late))]
    worst = None if None in parts else sum(part for part in parts if part is not None)
    if spent is not None and worst is not None and spent + worst <= cap:
        return None
    return f"they may cost {_show_usd(worst)}, {_show_usd(spent)} of the cap of {_show_usd(cap)} are spent"


def _show_usd(nano_usd: int | None) -> str:
    return "an unknown amount (the model has no price)" if nano_usd is None else f"${nano_usd / 1e9:,.6f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    line: bytes
    reason: str
    worst_nano_usd: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _AskedTask:
    """A task and what this run's batches answered to it in the rounds before the last one, and late."""

    stored: StoredFiles
    model: str
    has_function: bool
    limits: ModelLimits
    price_usage: PriceUsage
    invalid_before: InvalidBefore
    strays: Answers

    def read_last(self, batch_ids: Sequence[str]) -> Answers:
        """Return what batches of one shard answered: memory does not grow with the shards."""
        stored = self.stored
        return Answers(stored.store, stored.endpoint, stored.task_key, batch_ids=batch_ids, stored=stored)

    def pick(self, lines: Sequence[bytes], keys: Keys, last: Answers) -> list[_Asked | None]:
        """Return each line as it is asked again, None for those that are not."""
        answered = self.strays.ended_as(keys, Outcome.SUCCEEDED)
        # Of these alone it is asked: other runs' answers may have to be read for it.
        before = last.ended_as(keys, Outcome.INVALID)
        if before.any():
            before[before] = self.invalid_before.tell(keys[before])
        return [
            None if late or outcome is None else self._ask(line, outcome, error, once_more=not again)
            for line, (outcome, error), late, again in zip(lines, last.outcomes(keys), answered, before, strict=True)
        ]

    def _ask(self, line: bytes, outcome: str, error: str | None, *, once_more: bool) -> _Asked | None:
        match choose_again(outcome, error):
            case None:
                return None
            case Again.UNCHANGED:
                return self._price(line, line_max_tokens(line), error_type(error))
            case Again.ONCE:
                return self._price(line, line_max_tokens(line), outcome) if once_more else None
            case Again.LARGER:
                max_tokens = raise_max_tokens(line_max_tokens(line), self.limits.find(self.model))
                return None if max_tokens is None else self._price(raise_line(line, max_tokens), max_tokens, outcome)
            case again:
                assert_never(again)

    def _price(self, line: bytes, max_tokens: int, reason: str) -> _Asked:
        line_bytes = len(line)
        if self.has_function:
            params = line_params(line)
            line_bytes += count_prompt_bytes(params) - len(params)
        worst = self.price_usage(
            self.model,
            input_tokens=-(-line_bytes // BYTES_PER_TOKEN),
            output_tokens=max_tokens,
            cache_read_tokens=0,
            cache_write_5m_tokens=0,
            cache_write_1h_tokens=0,
        )
        return _Asked(line=line, reason=reason, worst_nano_usd=worst)


def _read_tasks(
    root: OpenRoot,
    strays: Sequence[str],
    round_number: int,
    limits: ModelLimits,
    price_usage: PriceUsage,
) -> dict[str, _AskedTask]:
    tasks: dict[str, _AskedTask] = {}
    for task in root.entry.tasks:
        stored = read_stored_files(root.store, root.record.endpoint, task.task_key)
        document = read_task(root.store, task.task_key)
        tasks[short_name(task.name)] = _AskedTask(
            stored=stored,
            model=str(document["model"]),
            has_function=isinstance(document["prompt"], dict),
            limits=limits,
            price_usage=price_usage,
            invalid_before=InvalidBefore(root, task.task_key, round_number - 1),
            strays=Answers(root.store, root.record.endpoint, task.task_key, batch_ids=strays, stored=stored),
        )
    return tasks


def _read_repeatable(root: OpenRoot, batch: BatchInput, shard: ShardRef, last: Sequence[Answers]) -> Iterator[bytes]:
    """Yield a shard's requests that ended in a way after which some are asked again. Where none did, nothing of the shard is read."""
    wanted = [answers.repeatable() for answers in last]
    if not any(map(len, wanted)):
        return
    requests = read_requests(root, batch)
    chosen = np.zeros(len(requests), np.bool_)
    for number, keys in enumerate(wanted):
        held = KeySet(len(keys))
        held.add(keys)
        ours = np.flatnonzero(requests.tasks == number)
        chosen[ours] = held.contains(requests.keys[ours])
    if not chosen.any():
        return
    # The places are those of the owned keys, which are a file of their own.
    check_requests(root, batch, requests)
    yield from compress(iter_lines(root.store.stream(shard.path)), chosen.tolist())


def _pick_again(lines: Sequence[bytes], tasks: dict[str, _AskedTask], last: dict[str, Answers]) -> Iterator[_Asked]:
    """Yield what is asked again of these requests, in their order."""
    ids = [parse_custom_id(line_custom_id(line)) for line in lines]
    picked: list[_Asked | None] = [None] * len(lines)
    for name, task in tasks.items():
        places = [place for place, custom_id in enumerate(ids) if custom_id.name == name]
        keys = pack_keys([bytes.fromhex(ids[place].request_key) for place in places])
        for place, asked in zip(places, task.pick([lines[place] for place in places], keys, last[name]), strict=True):
            picked[place] = asked
    return (asked for asked in picked if asked is not None)
