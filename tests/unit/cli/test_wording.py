"""How numbers and commands read."""

import doctest

import pytest

from claude_batch_dagster.cli import wording


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(wording).failed == 0


@pytest.mark.parametrize(
    ("root", "environ", "line"),
    [
        ("/data/.claude_batch", {}, "claude-batch status r1 --root /data/.claude_batch"),
        ("/data/my root/simulated", {}, "claude-batch status r1 --root '/data/my root' --simulate"),
        ("/data/x", {"CLAUDE_BATCH_ROOT": "/data/x"}, "claude-batch status r1"),
        ("/data/x/simulated", {"CLAUDE_BATCH_ROOT": "/data/x", "CLAUDE_BATCH_SIMULATE": "1"}, "claude-batch status r1"),
    ],
)
def test_command_names_only_what_the_environment_does_not(monkeypatch, root, environ, line):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert wording.command("status", root, "r1") == line
