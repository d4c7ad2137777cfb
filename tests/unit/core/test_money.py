"""core/money.py: how money reads."""

import doctest

from claude_batch_dagster.core import money


def test_examples_in_the_docstring_hold() -> None:
    assert doctest.testmod(money).attempted > 0
    assert doctest.testmod(money).failed == 0
