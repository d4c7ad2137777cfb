"""The workflows and activities of `claude-batch recover` and `claude-batch doctor --audit`: only the worker has the key."""

from typing import TYPE_CHECKING

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.contract import PROGRESS_QUERY
    from claude_batch_dagster.core.recovery_contract import (
        AUDIT_WORKFLOW_TYPE,
        RECOVER_WORKFLOW_TYPE,
        AuditInput,
        AuditReport,
        Harvest,
        HarvestStep,
        RecoverInput,
        RecoverProgress,
    )
    from temporal_worker.activities import attempt
    from temporal_worker.policies import activity_options

    if TYPE_CHECKING:
        from temporal_worker.audit import Auditor
        from temporal_worker.harvest import Harvester


class RecoveryActivities:
    """The activities; `worker.py` hands in what they work with."""

    def __init__(self, *, harvester: "Harvester", auditor: "Auditor") -> None:
        self._harvester = harvester
        self._auditor = auditor

    @activity.defn(no_thread_cancel_exception=True)
    def harvest(self, ask: RecoverInput) -> HarvestStep:
        """Idempotent: what is stored is neither read nor stored again. A retry costs a GET a page of the list, and one batch's results."""
        with attempt("reading the list of batches") as report:
            return self._harvester.harvest(ask, report)

    @activity.defn(no_thread_cancel_exception=True)
    def audit(self, ask: AuditInput) -> AuditReport:
        """Idempotent: looks, and writes nothing. A retry reads the list, and the beginning of unknown batches' results, again."""
        with attempt("comparing the list of batches with the records") as report:
            return self._auditor.audit(ask, report)


@workflow.defn(name=RECOVER_WORKFLOW_TYPE)
class RecoverWorkflow:
    """Harvests a stretch at a time, until no batch is left that might be ours. State is in the root."""

    @workflow.init
    def __init__(self, ask: RecoverInput) -> None:
        self._harvest = Harvest()
        self._note = "reading the list of batches"

    @workflow.run
    async def run(self, ask: RecoverInput) -> Harvest:
        """Return what was found; with `in_progress` left only where nobody waits for those."""
        while True:
            step = await workflow.execute_activity_method(
                RecoveryActivities.harvest, ask, summary="look at the next batches", **activity_options("harvest")
            )
            self._harvest = step.harvest
            if step.complete:
                if not step.harvest.in_progress or not ask.wait:
                    return step.harvest
                self._say(f"{step.harvest.in_progress:,} in progress, whose they are shows at their end")
                await workflow.sleep(step.pause_s, summary="batches are in progress")
            else:
                self._say("looking at batches")
            info = workflow.info()
            if info.is_continue_as_new_suggested() or info.get_current_history_length() > ask.events_before_continue:
                workflow.continue_as_new(ask)

    @workflow.query(name=PROGRESS_QUERY)
    def progress(self) -> RecoverProgress:
        """Say how far the recovery is."""
        return RecoverProgress(harvest=self._harvest, note=self._note)

    def _say(self, note: str) -> None:
        self._note = note
        found = self._harvest
        workflow.set_current_details(
            f"**{found.looked:,}** batches looked at, **{found.harvested:,}** harvested, {sum(found.counts.by_outcome.values()):,} answers · {note}"
        )


@workflow.defn(name=AUDIT_WORKFLOW_TYPE)
class AuditWorkflow:
    """Has one worker compare the vendor's list with the root's records."""

    @workflow.run
    async def run(self, ask: AuditInput) -> AuditReport:
        """Return what it found."""
        return await workflow.execute_activity_method(
            RecoveryActivities.audit, ask, summary="compare the list of batches with the records", **activity_options("audit")
        )
