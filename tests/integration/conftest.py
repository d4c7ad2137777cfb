"""The stack's fixtures."""

from tests.cli_shell import shell, slow_simulator
from tests.stack import bench, start_simulator, temporal_server

__all__ = ["bench", "shell", "slow_simulator", "start_simulator", "temporal_server"]
