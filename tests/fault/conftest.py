"""The same real parts as the integration tests."""

from tests.integration.conftest import bench, start_simulator, temporal_server

__all__ = ["bench", "start_simulator", "temporal_server"]
