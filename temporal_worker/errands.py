"""Workflows of one activity each: what a client asks a worker for, since only the worker has the key."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from claude_batch_dagster.core.errand_contract import ADOPT_WORKFLOW_TYPE, DOCTOR_WORKFLOW_TYPE, AdoptInput, DoctorInput, DoctorReport
    from temporal_worker.activities import BatchActivities
    from temporal_worker.policies import activity_options


@workflow.defn(name=DOCTOR_WORKFLOW_TYPE)
class DoctorWorkflow:
    """Asks one worker what it sees of the vendor and the root."""

    @workflow.run
    async def run(self, ask: DoctorInput) -> DoctorReport:
        """Return what the worker that took it found."""
        return await workflow.execute_activity_method(
            BatchActivities.examine_vendor, ask, summary="look at the API and the root", **activity_options("examine_vendor")
        )


@workflow.defn(name=ADOPT_WORKFLOW_TYPE)
class AdoptWorkflow:
    """Takes the batch that a person named for a shard's, if its results prove it."""

    @workflow.run
    async def run(self, ask: AdoptInput) -> str:
        """Return what was done."""
        return await workflow.execute_activity_method(
            BatchActivities.adopt_batch, ask, summary=f"is {ask.batch_id} shard {ask.shard}?", **activity_options("adopt_batch")
        )
