"""One batch run: a window over its shards, the rounds of what is asked again, and one way to finish for every end.

The main coroutine only admits, waits and decides; each shard has a task of its own (submit, then see its batch through). So a cancel
request reaches the main coroutine alone, and finds every submit still under way. The store decides what may be done (PROTOCOL); this
driver may be killed, repeated or run twice.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.contract import (
        DOCTOR_WORKFLOW_TYPE,
        PROGRESS_QUERY,
        WORKFLOW_TYPE,
        BatchInput,
        CancelInput,
        ClosedShards,
        CloseInput,
        DoctorInput,
        DoctorReport,
        FinishInput,
        LiveShard,
        OpenedRun,
        OpenInput,
        ParkedShard,
        Progress,
        RoundInput,
        RunInput,
        RunReport,
        RunState,
        ShardInput,
        Submitted,
    )
    from claude_batch_dagster.core.submission import CloseReason, Mode
    from temporal_worker.activities import BatchActivities
    from temporal_worker.policies import activity_options

MOST_IN_FLIGHT = 200
"""More activities at once would not fit a workflow task."""
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
        self._round = state.round
        self._shards = state.shards
        self._next_shard = state.next_shard
        self._live = {live.shard: live.batch_id for live in state.live}
        self._parked = {parked.shard: parked.question for parked in state.parked}
        self._submitted = state.submitted
        self._collected = state.collected
        self._counts = state.counts
        self._failure = state.failure
        self._max_in_flight = state.max_in_flight_batches
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._submitting: dict[int, bool] = {}
        self._rest_closed = False
        self._canceling = False
        self._moved = False
        self._look_again_s = FIRST_LOOK_AGAIN_S
        self._note = "opening the run"

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
                raise ApplicationError(f"{self._failure} {_tell_cause(error)}", type="RunError", non_retryable=True) from error
        await _finish_whatever_comes(self._settle_canceled())
        raise asyncio.CancelledError

    @workflow.query(name=PROGRESS_QUERY)
    def progress(self) -> Progress:
        """Say where the run stands."""
        return Progress(
            round=self._round,
            shards=self._shards,
            submitted=self._submitted,
            collected=self._collected,
            in_progress=len(self._live),
            counts=self._counts,
            parked=self._list_parked(),
            note=self._note,
        )

    @property
    def _buys(self) -> bool:
        return self._run.mode is Mode.RUN and self._failure is None and not self._canceling

    async def _carry_out(self) -> RunReport:
        if not self._opened:
            opened = await self._open(self._run.mode)
            if opened.report is not None:
                return opened.report
        while not self._is_over():
            await self._work_round()
            await self._open_next_round()
        return await self._finish("finished" if self._failure is None else "failed")

    def _is_over(self) -> bool:
        return self._round > 1 and self._shards == 0

    async def _open(self, mode: Mode) -> OpenedRun:
        opened = await workflow.execute_activity_method(
            BatchActivities.open_run,
            OpenInput(root=self._run.root, number=self._run.number, run_id=self._run.run_id, mode=mode),
            summary=f"open batch run r{self._run.number}",
            **activity_options("open_run"),
        )
        self._opened = True
        self._round = opened.round
        self._shards = opened.shards
        self._max_in_flight = max(1, min(opened.max_in_flight_batches, MOST_IN_FLIGHT))
        self._failure = opened.failure
        return opened

    async def _work_round(self) -> None:
        """Take every shard of the round to its end."""
        for shard in self._live:
            self._start(shard, self._see_through(shard))
        while True:
            while self._buys and self._next_shard < self._shards and len(self._tasks) < self._max_in_flight:
                self._start(self._next_shard, self._drive(self._next_shard))
                self._next_shard += 1
            self._say_note()
            if self._tasks:
                await workflow.wait(list(self._tasks.values()), return_when=asyncio.FIRST_COMPLETED)
                self._reap()
            elif not self._buys and not self._rest_closed:
                await self._close_rest()
            elif self._parked:
                await self._look_again()
            else:
                return
            await self._continue_as_new_where_long()

    async def _drive(self, shard: int) -> None:
        submitted = await self._submit(shard)
        if submitted is None:
            return
        self._moved = True
        if submitted.question is not None:
            self._parked[shard] = submitted.question
        elif submitted.batch_id is not None:
            self._submitted += 1
            self._live[shard] = submitted.batch_id
            self._say_note()
            if not self._canceling:
                await self._see_through(shard)

    async def _submit(self, shard: int) -> Submitted | None:
        """Return what became of a submit, None where it was canceled or refused: then nothing was sent."""
        self._submitting[shard] = True
        try:
            return await workflow.execute_activity_method(
                BatchActivities.submit,
                ShardInput(
                    root=self._run.root,
                    number=self._run.number,
                    run_id=self._run.run_id,
                    round=self._round,
                    shard=shard,
                    mode=Mode.RUN if self._buys else Mode.DRAIN,
                ),
                summary=f"submit {self._name(shard)}",
                **activity_options("submit"),
            )
        except (ActivityError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                self._fail(error)
            return None
        finally:
            del self._submitting[shard]

    async def _see_through(self, shard: int) -> None:
        """Wait for a batch's end and collect it; a dropped one stays live."""
        batch_id = self._live[shard]
        try:
            counts = await workflow.execute_activity_method(
                BatchActivities.see_through,
                BatchInput(
                    root=self._run.root,
                    number=self._run.number,
                    run_id=self._run.run_id,
                    round=self._round,
                    shard=shard,
                    batch_id=batch_id,
                ),
                summary=f"see {batch_id} through, {self._name(shard)}",
                **activity_options("see_through"),
            )
        except (ActivityError, asyncio.CancelledError) as error:
            if not is_cancelled_exception(error):
                self._fail(error)
            return
        del self._live[shard]
        self._moved = True
        self._collected += 1
        self._counts = self._counts.plus(counts)
        self._say_note()

    def _fail(self, error: BaseException) -> None:
        """Send nothing more: submits under way are called off, live batches are seen through."""
        text = _tell_cause(error)
        if self._failure is not None or self._canceling:
            workflow.logger.warning("%s", text)
            return
        self._failure = text
        for shard in self._submitting:
            self._tasks[shard].cancel()

    async def _close_rest(self) -> None:
        closed = await self._close_shards(CloseReason.DRAINED, abandon_unknown=False)
        self._rest_closed = True
        self._next_shard = self._shards
        self._parked = {parked.shard: parked.question for parked in closed.parked}
        for live in closed.live:
            self._start(live.shard, self._see_through(live.shard))

    async def _look_again(self) -> None:
        """Wait, then look whether somebody settled what is not known: a slow sender, or a person."""
        await workflow.sleep(self._look_again_s, summary="a person decides: claude-batch status shows the question")
        self._look_again_s = min(2 * self._look_again_s, LONGEST_LOOK_AGAIN_S)
        self._moved = True
        for shard in list(self._parked):
            del self._parked[shard]
            self._start(shard, self._drive(shard))

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
        number = self._round + 1
        self._note = f"opening round {number}"
        opened = await workflow.execute_activity_method(
            BatchActivities.open_round,
            RoundInput(root=self._run.root, number=self._run.number, run_id=self._run.run_id, round=number, empty=not self._buys),
            summary=f"open round {number}",
            **activity_options("open_round"),
        )
        self._round = number
        self._shards = opened.shards
        self._next_shard = 0
        self._live = {}
        self._parked = {}
        self._rest_closed = False

    async def _finish(self, outcome: str) -> RunReport:
        self._note = "finishing the run"
        report = await workflow.execute_activity_method(
            BatchActivities.finish_run,
            FinishInput(root=self._run.root, number=self._run.number, run_id=self._run.run_id, outcome=outcome, error=self._failure),
            summary=f"finish batch run r{self._run.number} as {outcome}",
            **activity_options("finish_run"),
        )
        self._note = f"the run is {outcome}"
        self._show_details()
        return report

    async def _settle_canceled(self) -> None:
        """Cancel what lives at the vendor, collect what it answered, close the rest, finish."""
        self._canceling = True
        self._say_note()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await workflow.wait(list(self._tasks.values()))
            self._reap()
        if not self._opened and (await self._open(Mode.DRAIN)).report is not None:
            return
        while not self._is_over():
            await self._cancel_at_vendor(self._live.values())
            known = set(self._live.values())
            closed = await self._close_shards(CloseReason.CANCELED, abandon_unknown=True)
            self._parked = {}
            await self._cancel_at_vendor(live.batch_id for live in closed.live if live.batch_id not in known)
            for live in closed.live:
                self._start(live.shard, self._see_through(live.shard))
            if self._tasks:
                await workflow.wait(list(self._tasks.values()))
                self._reap()
            await self._open_next_round()
        await self._finish("canceled")

    async def _cancel_at_vendor(self, batch_ids: Iterable[str]) -> None:
        ids = tuple(batch_ids)
        if not ids:
            return
        try:
            await workflow.execute_activity_method(
                BatchActivities.cancel_batches,
                CancelInput(root=self._run.root, batch_ids=ids),
                summary=f"cancel {count_batches(len(ids))} at the vendor",
                **activity_options("cancel_batches"),
            )
        except ActivityError as error:
            workflow.logger.warning("%d batches could not be canceled, they are collected as they end: %s", len(ids), error.cause)

    async def _close_shards(self, reason: CloseReason, *, abandon_unknown: bool) -> ClosedShards:
        closed = await workflow.execute_activity_method(
            BatchActivities.close_shards,
            CloseInput(
                root=self._run.root,
                number=self._run.number,
                run_id=self._run.run_id,
                round=self._round,
                first=0,
                reason=reason,
                abandon_unknown=abandon_unknown,
            ),
            summary=f"close what was not sent of {self._shards} shards",
            **activity_options("close_shards"),
        )
        self._submitted += sum(live.shard not in self._live for live in closed.live)
        self._live |= {live.shard: live.batch_id for live in closed.live}
        return closed

    def _start(self, shard: int, work: Coroutine[object, object, None]) -> None:
        self._tasks[shard] = asyncio.create_task(work)

    def _reap(self) -> None:
        for shard, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[shard]
                if not task.cancelled():
                    task.result()

    def _to_state(self) -> RunState:
        return RunState(
            round=self._round,
            next_shard=self._next_shard,
            shards=self._shards,
            live=tuple(LiveShard(shard=shard, batch_id=batch_id) for shard, batch_id in self._live.items()),
            parked=self._list_parked(),
            submitted=self._submitted,
            collected=self._collected,
            counts=self._counts,
            failure=self._failure,
            max_in_flight_batches=self._max_in_flight,
        )

    def _list_parked(self) -> tuple[ParkedShard, ...]:
        return tuple(ParkedShard(shard=shard, question=question) for shard, question in self._parked.items())

    def _name(self, shard: int) -> str:
        return f"shard {shard + 1} of {self._shards}" + (f" in round {self._round}" if self._round > 1 else "")

    def _say_note(self) -> None:
        if self._canceling:
            self._note = "canceling: batches are stopped at the vendor, what they answered is kept"
        elif self._failure is not None:
            self._note = "nothing more is sent, what was sent is collected"
        elif self._run.mode is Mode.DRAIN:
            self._note = "settling what is open, buying nothing"
        elif self._parked and not self._tasks:
            self._note = "waiting for a person"
        else:
            self._note = f"{count_batches(len(self._live))} in progress, usually under 1 h, at most 24 h"
        self._show_details()

    def _show_details(self) -> None:
        lines = [f"**{self._collected}/{max(self._submitted, self._collected)}** batches ended · round {self._round} · {self._note}"]
        # Markdown takes a list only after an empty line.
        lines += ["", *(f"- {name}: {count:,}" for name, count in sorted(self._counts.by_outcome.items()))]
        lines += [f"\n**Failed**: {self._failure}"] if self._failure else []
        lines += [f"\n**Question**: {question}" for question in self._parked.values()]
        workflow.set_current_details("\n".join(lines))


@workflow.defn(name=DOCTOR_WORKFLOW_TYPE)
class DoctorWorkflow:
    """Asks one worker what it sees of the vendor and the root: only the worker has the key."""

    @workflow.run
    async def run(self, ask: DoctorInput) -> DoctorReport:
        """Return what the worker that took it found."""
        return await workflow.execute_activity_method(
            BatchActivities.examine_vendor, ask, summary="look at the vendor and the root", **activity_options("examine_vendor")
        )


def _tell_cause(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ActivityError) else None
    return str(getattr(cause, "message", None) or cause or error)


def count_batches(count: int) -> str:
    """Return a number of batches in words."""
    return f"{count:,} batch" if count == 1 else f"{count:,} batches"


async def _finish_whatever_comes(work: Coroutine[object, object, None]) -> None:
    """Run to the end though the workflow is canceled again meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()
