"""Recorded histories replay: a run that an older worker began is taken up by this one. How to record anew: tests/stack.py, RECORDED."""

import asyncio

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from temporal_worker.recovery import AuditWorkflow, RecoverWorkflow
from temporal_worker.workflows import BatchRunWorkflow
from tests.stack import HISTORIES, RECORDED, RECORDED_OF_CLIENTS


@pytest.mark.parametrize("name", sorted([*RECORDED.values(), *RECORDED_OF_CLIENTS]))
def test_a_recorded_history_replays(name: str) -> None:
    """A change of the workflow that breaks open runs breaks this: put it behind `workflow.patched`."""
    history = WorkflowHistory.from_json(f"claude-batch/{name}", (HISTORIES / f"{name}.json").read_text())

    asyncio.run(Replayer(workflows=[BatchRunWorkflow, RecoverWorkflow, AuditWorkflow]).replay_workflow(history))


def test_no_history_is_left_over() -> None:
    """A file that nobody records goes stale."""
    assert {path.stem for path in HISTORIES.glob("*.json")} == {*RECORDED.values(), *RECORDED_OF_CLIENTS}
