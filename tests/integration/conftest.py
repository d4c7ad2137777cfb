"""The stack's fixtures."""

from tests.cli_shell import held_simulator, shell, slow_simulator
from tests.dagster_house import open_house, place, simulator, task_queue
from tests.stack import bench, start_simulator, temporal_server

__all__ = [
    "bench",
    "held_simulator",
    "open_house",
    "place",
    "shell",
    "simulator",
    "slow_simulator",
    "start_simulator",
    "task_queue",
    "temporal_server",
]
