"""One batch run: a window over its shards, the rounds of what is asked again, and one way to finish for every end.

The main coroutine only admits, waits and decides; each shard has a task of its own:

    submit ─▶ see its batch through
       └─▶ nobody saw the end of its POST: wait, list, settle ─▶ submit again, which reads what was settled

So a cancel request reaches the main coroutine alone, and finds every submit still under way. What only a person can decide or mend is
parked with a question, and looked at again when they answer, or after a while. The store decides what may be done (PROTOCOL); this driver
may be killed, repeated or run twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.contract import (
        LOOK_AGAIN_SIGNAL,
        PROGRESS_QUERY,
        WORKFLOW_TYPE,
        Doubt,
        Failed,
        LiveShard,
        ParkedShard,
        Progress,
        RunInput,
        RunReport,
        RunState,
        Submitted,
    )
    from claude_batch_dagster.core.submission import CloseReason, Mode
    from temporal_worker import notes
    from temporal_worker.policies import MENDED_BY_PEOPLE, find_kind, tell_cause
    from temporal_worker.steps import Steps

T = TypeVar("T")

MOST_IN_FLIGHT = 1_000
"""More activities at once would not fit a workflow task, whose messages end at 4 MB: each is about 1 kB."""
FIRST_LOOK_AGAIN_S = 15.0
LONGEST_LOOK_AGAIN_S = 3_600.0


@workflow.defn(name=WORKFLOW_TYPE)
class BatchRunWorkflow:
    """Carries one batch run out. State is a cursor and counts; whatever is worth keeping is in the store."""

    @workflow.init
    def __init__(self, run: RunInput) -> None:
        state = run.state or RunState()
        self._run = run
        self._opened = run.state is not None
        self._steps = Steps(run)
        self._next_shard = state.next_shard
        self._live = {live.shard: live.batch_id for live in state.live}
        self._parked: dict[int | str, ParkedShard] = {parked.shard: parked for parked in state.parked if parked.shard not in self._live}
        self._strays = {stray.batch_id: stray for stray in state.strays}
        self._submitted = state.submitted
        self._collected = state.collected
        self._counts = state.counts
        self._failure = state.failure
        self._max_in_flight = state.max_in_flight_batches
        self._opening: asyncio.Task[Submitted | None] | None = None
        self._first: Submitted | None = None
        self._report: RunReport | None = None
        self._tasks: dict[int | str, asyncio.Task[None]] = {}
        self._submitting: set[int] = set()
        self._settling: set[int] = set()
        self._question: str | None = None
        self._paused = False
        self._answered = bool(self._parked)
        self._rest_closed = False
        self._canceling = False
        self._moved = False
        self._look_again_s = FIRST_LOOK_AGAIN_S
        self._note = notes.OPENING if run.mode is Mode.DRAIN else notes.OPENING_AND_SENDING

    @workflow.run
    async def run(self, run: RunInput) -> RunReport:
        """Return what became of the run; a canceled one ends as canceled, after its batches are settled."""
        try:
            return await self._carry_out()
        except BaseException as error:
            # Around activities a cancel request does not come as asyncio's CancelledError.
            if not is_cancelled_exception(error):
                if self._failure is None or not isinstance(error, ActivityError):
                    raise
                # What cannot be finished has a reason that came before.
                raise ApplicationError(f"{self._failure} {tell_cause(error)}", type="RunError", non_retryable=True) from error
        settling = asyncio.create_task(self._settle_canceled())
        while not settling.done():
            # It runs to its end though the workflow is canceled again meanwhile.
            with suppress(asyncio.CancelledError):
                await asyncio.shield(settling)
        settling.result()
        raise asyncio.CancelledError

    @workflow.query(name=PROGRESS_QUERY)
    def progress(self) -> Progress:
        """Say where the run stands."""
        return Progress(
            round=self._steps.round,
            shards=self._steps.shards,
            submitted=self._submitted,
            collected=self._collected,
            in_progress=len(self._live),
            counts=self._counts,
            parked=tuple(self._parked.values()),
            question=self._question,
            note=self._note,
        )

    @workflow.signal(name=LOOK_AGAIN_SIGNAL)
    def look_again(self) -> None:
        """Look at once at what waits for a person: they answered."""
        self._answered, self._look_again_s = True, FIRST_LOOK_AGAIN_S

    @property
    def _buys(self) -> bool:
        return self._run.mode is Mode.RUN and self._failure is None and not self._canceling

    @property
    def _may_start(self) -> bool:
        # A shard that is being settled may have a batch at the vendor, and holds its place; a stray only awaits its end.
        in_flight = len(self._tasks.keys() - self._strays)
        return self._buys and not self._paused and self._next_shard < self._steps.shards and in_flight < self._max_in_flight

    async def _carry_out(self) -> RunReport:
        if not self._opened:
            self._opening = asyncio.create_task(self._open(self._run.mode))
            # A cancel request must not end it: it may be sending.
            self._first = await asyncio.shield(self._opening)
            if self._first is not None and self._first.failed is not None:
                self._take_told(0, self._first.failed)
                self._first, self._next_shard = None, 1
        return await self._work()

    async def _work(self) -> RunReport:
        """Work one round after another, and finish."""
        while self._report is None and (self._steps.round == 1 or self._steps.shards):
            await self._work_round()
            await self._open_next_round()
        if self._report is None:
            await self._keep_strays()
            self._note = "finishing the run"
            self._report = await self._insist(lambda: self._steps.finish(self._outcome, self._failure))
        self._note = f"the run is {self._report.outcome}"
        self._show_details()
        return self._report

    @property
    def _outcome(self) -> str:
        return "canceled" if self._canceling else "finished" if self._failure is None else "failed"

    async def _open(self, mode: Mode) -> Submitted | None:
        """Learn where the run stands; return what became of its first shard's submit, None where that was not tried."""
        opened = await self._steps.open(mode)
        self._opened = True
        self._report = opened.report
        self._steps.round = opened.round
        self._steps.shards = opened.shards
        self._max_in_flight = max(1, min(opened.max_in_flight_batches, MOST_IN_FLIGHT))
        self._failure = opened.failure
        return opened.first

    async def _work_round(self) -> None:
        """Take every shard of the round to its end."""
        for shard in self._live:
            self._start(shard, self._see_through(shard))
        for batch_id in self._strays:
            self._start(batch_id, self._keep_stray(batch_id))
        alarm: asyncio.Task[None] | None = None
        while True:
            while self._may_start:
                self._start(self._next_shard, self._drive(self._next_shard))
                self._next_shard += 1
            self._say_note()
            if not (self._buys or self._rest_closed or self._submitting):
                await self._close_rest()
            elif self._tasks or self._parked:
                if self._parked and alarm is None:
                    alarm = asyncio.create_task(self._await_answer())
                await workflow.wait([*self._tasks.values(), *([alarm] if alarm else [])], return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if alarm is not None and alarm.done():
                    alarm = None
                    self._take_up_parked()
            else:
                break
            await self._continue_as_new_where_long()
        if alarm is not None:
            alarm.cancel()

    async def _drive(self, shard: int) -> None:
        while (submitted := await self._submit(shard)) is not None:
            self._moved = True
            settled = submitted if submitted.doubt is None else await self._settle(shard, submitted.doubt)
            if settled is None:
                return
            if settled.again:
                continue
            if settled.question is not None:
                self._parked[shard] = ParkedShard(shard=shard, question=settled.question, undecided=True)
            elif settled.batch_id is not None:
                await self._take_batch(shard, settled.batch_id)
            return

    async def _take_batch(self, shard: int, batch_id: str) -> None:
        self._submitted += 1
        self._live[shard] = batch_id
        self._say_note()
        if self._canceling:
            if not self._rest_closed:
                return
            # It was found after the others were canceled.
            await self._cancel_at_vendor([batch_id])
        await self._see_through(shard)

    async def _submit(self, shard: int) -> Submitted | None:
        """Return what became of a submit, None where it was canceled, paused or refused: then nothing was sent."""
        first, self._first = self._first, None
        if first is not None:
            return first
        self._submitting.add(shard)
        try:
            return await self._steps.submit(shard, Mode.RUN if self._buys else Mode.DRAIN)
        except (ActivityError, asyncio.CancelledError) as error:
            self._take_failure(shard, error)
            return None
        finally:
            self._submitting.discard(shard)

    async def _settle(self, shard: int, doubt: Doubt) -> Submitted | None:
        """Find out what became of a POST whose end nobody saw; None where that was canceled or paused."""
        self._settling.add(shard)
        self._say_note()
        try:
            await workflow.sleep(doubt.wait_s, summary=f"until the batch of {self._steps.name(shard)}, if there is one, is listed")
            found = await self._steps.find_candidates(shard, doubt.slot)
            if found.question is not None:
                return Submitted(question=found.question)
            return await self._steps.settle(shard, doubt.slot, found.batch_ids)
        except (ActivityError, asyncio.CancelledError) as error:
            self._take_failure(shard, error)
            return None
        finally:
            self._settling.discard(shard)

    async def _see_through(self, shard: int) -> None:
        """Wait for a batch's end and collect it; a dropped one stays live."""
        try:
            counts = await self._steps.see_through(shard, self._live[shard])
        except (ActivityError, asyncio.CancelledError) as error:
            self._take_failure(shard, error)
            return
        del self._live[shard]
        self._moved = True
        self._collected += 1
        self._counts = self._counts.plus(counts)
        self._say_note()

    async def _keep_strays(self) -> None:
        """Wait for the strays that the last look found, when no shard is left."""
        self._rest_closed = True
        await self._work_round()

    async def _keep_stray(self, batch_id: str) -> None:
        """Keep what a batch answered that came too late; its shard goes its own way."""
        try:
            await self._steps.keep_stray(self._strays[batch_id])
        except (ActivityError, asyncio.CancelledError) as error:
            self._take_failure(batch_id, error)
            return
        del self._strays[batch_id]

    def _take_failure(self, work: int | str, error: BaseException) -> None:
        """Park what people have to mend; else send nothing more: submits under way are called off, live batches are seen through."""
        if not is_cancelled_exception(error):
            self._take_told(work, Failed(kind=find_kind(error) or "", text=tell_cause(error)))

    def _take_told(self, work: int | str, failed: Failed) -> None:
        if failed.kind in MENDED_BY_PEOPLE:
            shard = self._strays[work].shard if isinstance(work, str) else work
            self._parked[work] = ParkedShard(shard=shard, question=self._ask_to_mend(failed.text))
            self._paused = True
        elif self._failure is not None or self._canceling:
            workflow.logger.warning("%s", failed.text)
        else:
            self._failure = failed.text
            for shard in self._submitting:
                self._tasks[shard].cancel()

    async def _close_rest(self) -> None:
        before = set(self._live)
        closed = await self._insist(lambda: self._steps.close_shards(CloseReason.CANCELED if self._canceling else CloseReason.DRAINED))
        # What ended meanwhile was collected, or was parked and is taken up below.
        self._reap()
        found = [live for live in closed.live if live.shard not in self._live and live.shard not in before]
        self._submitted += len(found)
        self._live |= {live.shard: live.batch_id for live in found}
        self._rest_closed = True
        self._paused = False
        self._next_shard = self._steps.shards
        self._parked = {work: parked for work, parked in self._parked.items() if isinstance(work, str)}
        if self._canceling:
            await self._cancel_at_vendor([live.batch_id for live in found])
        for shard in self._live:
            if shard not in self._tasks:
                self._start(shard, self._see_through(shard))
        for shard in closed.unknown:
            if shard not in self._tasks:
                self._start(shard, self._drive(shard))

    async def _await_answer(self) -> None:
        """Wait until a person answered, or until it is time to look whether something was mended or settled without a word."""
        try:
            about = "a person decides: claude-batch status shows the question"
            await workflow.wait_condition(lambda: self._answered, timeout=self._look_again_s, timeout_summary=about)
        except TimeoutError:
            self._look_again_s = min(2 * self._look_again_s, LONGEST_LOOK_AGAIN_S)
        self._answered = False

    def _take_up_parked(self) -> None:
        self._paused = False
        self._moved = True
        parked, self._parked = self._parked, {}
        for work in parked:
            if isinstance(work, str):
                self._start(work, self._keep_stray(work))
            else:
                self._start(work, self._see_through(work) if work in self._live else self._drive(work))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a step returns, asking people meanwhile to mend what only they can."""
        while True:
            try:
                return await call()
            except ActivityError as error:
                if find_kind(error) not in MENDED_BY_PEOPLE:
                    raise
                self._question = self._ask_to_mend(tell_cause(error))
                self._say_note()
                await self._await_answer()
                self._question = None

    def _ask_to_mend(self, text: str) -> str:
        return f"{text} The run looks again by itself, within the hour; at once with: claude-batch answer r{self._run.number} resume"

    async def _continue_as_new_where_long(self) -> None:
        """Hand the live list on where the history is long; pollers are dropped, since the next run looks at once."""
        info = workflow.info()
        long = info.is_continue_as_new_suggested() or info.get_current_history_length() > self._run.events_before_continue
        # Without a step made since the last time this would go round for ever.
        if not long or not self._moved:
            return
        await workflow.wait_condition(lambda: not self._submitting)
        self._reap()
        workflow.continue_as_new(replace(self._run, state=self._to_state()))

    async def _open_next_round(self) -> None:
        number = self._steps.round + 1
        self._note = f"opening round {number}"
        opened = await self._insist(
            lambda: self._steps.open_round(number, empty=not self._buys, outcome=self._outcome, error=self._failure)
        )
        self._report = opened.report
        self._steps.round = number
        self._steps.shards = opened.shards
        self._strays = {stray.batch_id: stray for stray in opened.strays}
        self._next_shard = 0
        self._live = {}
        self._parked = {}
        self._rest_closed = False

    async def _settle_canceled(self) -> None:
        """Cancel what lives at the vendor, collect what it answered, close the rest, finish."""
        self._canceling = True
        self._say_note()
        self._first = None
        if self._opening is not None:
            # Whatever came of its submit shows in the records.
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await workflow.wait(list(self._tasks.values()))
            self._reap()
        # What is parked shows in the records, and so does a shard that was just being looked at.
        self._parked, self._question, self._paused = {}, None, False
        if not self._opened:
            await self._open(Mode.DRAIN)
        await self._cancel_at_vendor(list(self._live.values()))
        await self._work()

    async def _cancel_at_vendor(self, batch_ids: Sequence[str]) -> None:
        if not batch_ids:
            return
        try:
            await self._insist(lambda: self._steps.cancel(batch_ids))
        except ActivityError as error:
            workflow.logger.warning("%d batches could not be canceled, they are collected as they end: %s", len(batch_ids), error.cause)

    def _start(self, name: int | str, work: Coroutine[object, object, None]) -> None:
        """Give a shard, or a stray by its batch's id, a task of its own."""
        self._tasks[name] = asyncio.create_task(work)

    def _reap(self) -> None:
        for name, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[name]
                if not task.cancelled():
                    task.result()

    def _to_state(self) -> RunState:
        parked = self._settling | {work for work in self._parked if isinstance(work, int)}
        return RunState(
            round=self._steps.round,
            next_shard=self._next_shard,
            shards=self._steps.shards,
            live=tuple(LiveShard(shard=shard, batch_id=batch_id) for shard, batch_id in self._live.items()),
            # Whoever goes on takes these up at once.
            parked=tuple(ParkedShard(shard=shard, question="") for shard in sorted(parked)),
            strays=tuple(self._strays.values()),
            submitted=self._submitted,
            collected=self._collected,
            counts=self._counts,
            failure=self._failure,
            max_in_flight_batches=self._max_in_flight,
        )

    def _say_note(self) -> None:
        self._note = notes.tell_note(
            live=len(self._live),
            canceling=self._canceling,
            failed=self._failure is not None,
            asks=bool(self._parked or self._question),
            drains=self._run.mode is Mode.DRAIN,
            settles=bool(self._settling),
        )
        self._show_details()

    def _show_details(self) -> None:
        notes.show(self.progress(), self._failure)
