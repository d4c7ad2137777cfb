"""Recorded histories replay: a run that an older worker began is taken up by this one. How to record anew: conftest.py, RECORDED."""

import asyncio

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from temporal_worker.workflows import BatchRunWorkflow
from tests.stack import HISTORIES, RECORDED


@pytest.mark.parametrize("name", sorted(RECORDED.values()))
def test_a_recorded_history_replays(name: str) -> None:
    """A change of the workflow that breaks open runs breaks this: put it behind `workflow.patched`."""
    history = WorkflowHistory.from_json(f"claude-batch/{name}", (HISTORIES / f"{name}.json").read_text())

    asyncio.run(Replayer(workflows=[BatchRunWorkflow]).replay_workflow(history))


def test_no_history_is_left_over() -> None:
    """A file that nobody records goes stale."""
    assert {path.stem for path in HISTORIES.glob("*.json")} == set(RECORDED.values())
