"""A run's activities as its workflow calls them: inputs, policies, and the summaries that people read in the Temporal UI."""

from collections.abc import Sequence

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.contract import (
        BatchInput,
        CancelInput,
        Candidates,
        ClosedShards,
        CloseInput,
        Counts,
        DoubtInput,
        FinishInput,
        OpenedRound,
        OpenedRun,
        OpenInput,
        RoundInput,
        RunInput,
        RunReport,
        RunState,
        ShardInput,
        Stray,
        Submitted,
    )
    from claude_batch_dagster.core.submission import CloseReason, Mode
    from temporal_worker.activities import BatchActivities
    from temporal_worker.notes import count_batches
    from temporal_worker.policies import activity_options


class Steps:
    """The activities of one run. Each raises temporalio's ActivityError."""

    def __init__(self, run: RunInput) -> None:
        self._root = run.root
        self._number = run.number
        self._run_id = run.run_id
        state = run.state or RunState()
        self.round = state.round
        self.shards = state.shards

    def name(self, shard: int) -> str:
        """Return what people call a shard of the round; shards count from 0, as `claude-batch answer` does."""
        return f"shard {shard}" + (f" of {self.shards}" if self.shards > 1 else "") + (f" in round {self.round}" if self.round > 1 else "")

    async def open(self, mode: Mode) -> OpenedRun:
        """Read where the run stands and whether anything may be sent; submit the first shard."""
        return await workflow.execute_activity_method(
            BatchActivities.open_run,
            OpenInput(root=self._root, number=self._number, run_id=self._run_id, mode=mode),
            summary=f"open batch run r{self._number}" + (" and submit its first shard" if mode is Mode.RUN else ""),
            **activity_options("open_run"),
        )

    async def submit(self, shard: int, mode: Mode) -> Submitted:
        """Take a shard as far as it goes without waiting."""
        return await workflow.execute_activity_method(
            BatchActivities.submit,
            ShardInput(root=self._root, number=self._number, run_id=self._run_id, round=self.round, shard=shard, mode=mode),
            summary=f"submit {self.name(shard)}",
            **activity_options("submit"),
        )

    async def find_candidates(self, shard: int, slot: int) -> Candidates:
        """List the batches that could be a shard's."""
        return await workflow.execute_activity_method(
            BatchActivities.find_candidates,
            self._doubt(shard, slot),
            summary=f"look for {self.name(shard)} in the list of batches",
            **activity_options("find_candidates"),
        )

    async def settle(self, shard: int, slot: int, candidates: tuple[str, ...]) -> Submitted:
        """See the candidates to their end, and write what became of the shard."""
        while True:
            settled = await workflow.execute_activity_method(
                BatchActivities.settle,
                self._doubt(shard, slot, candidates),
                summary=f"settle {self.name(shard)}, candidates: {len(candidates)}",
                **activity_options("settle"),
            )
            if not settled.candidates:
                return settled
            candidates = settled.candidates

    async def see_through(self, shard: int, batch_id: str) -> Counts:
        """Wait for a batch's end and collect it."""
        batch = BatchInput(root=self._root, number=self._number, run_id=self._run_id, round=self.round, shard=shard, batch_id=batch_id)
        return await workflow.execute_activity_method(
            BatchActivities.see_through,
            batch,
            summary=f"see {batch_id} through, {self.name(shard)}",
            **activity_options("see_through"),
        )

    async def keep_stray(self, stray: Stray) -> None:
        """Wait for a stray's end and store what it answered."""
        batch = BatchInput(
            root=self._root,
            number=self._number,
            run_id=self._run_id,
            round=stray.round,
            shard=stray.shard,
            batch_id=stray.batch_id,
            stray=True,
        )
        await workflow.execute_activity_method(
            BatchActivities.see_through, batch, summary=f"keep what stray {stray.batch_id} answered", **activity_options("see_through")
        )

    async def cancel(self, batch_ids: Sequence[str]) -> None:
        """Stop batches at the vendor."""
        await workflow.execute_activity_method(
            BatchActivities.cancel_batches,
            CancelInput(root=self._root, batch_ids=tuple(batch_ids)),
            summary=f"cancel {count_batches(len(batch_ids))}",
            **activity_options("cancel_batches"),
        )

    async def close_shards(self, reason: CloseReason) -> ClosedShards:
        """Close what was not sent."""
        return await workflow.execute_activity_method(
            BatchActivities.close_shards,
            CloseInput(root=self._root, number=self._number, run_id=self._run_id, round=self.round, reason=reason),
            summary=f"close what was not sent of {self.shards} shards",
            **activity_options("close_shards"),
        )

    async def open_round(self, number: int, *, empty: bool, outcome: str, error: str | None) -> OpenedRound:
        """Open the next round, or the empty one that ends the run: then `done` is written too, unless strays are to be waited for."""
        return await workflow.execute_activity_method(
            BatchActivities.open_round,
            RoundInput(root=self._root, number=self._number, run_id=self._run_id, round=number, empty=empty, outcome=outcome, error=error),
            summary=f"open round {number}, or finish batch run r{self._number} as {outcome}",
            **activity_options("open_round"),
        )

    async def finish(self, outcome: str, error: str | None) -> RunReport:
        """Write `done`."""
        return await workflow.execute_activity_method(
            BatchActivities.finish_run,
            FinishInput(root=self._root, number=self._number, run_id=self._run_id, outcome=outcome, error=error),
            summary=f"finish batch run r{self._number} as {outcome}",
            **activity_options("finish_run"),
        )

    def _doubt(self, shard: int, slot: int, candidates: tuple[str, ...] = ()) -> DoubtInput:
        return DoubtInput(
            root=self._root, number=self._number, run_id=self._run_id, round=self.round, shard=shard, slot=slot, candidates=candidates
        )
