"""The stack's fixtures."""

from tests.stack import bench, start_simulator, temporal_server

__all__ = ["bench", "start_simulator", "temporal_server"]
