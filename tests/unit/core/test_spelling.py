"""core/spelling.py."""

import pytest

from claude_batch_dagster.core.spelling import suggest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("txt", "Did you mean 'Text'?"),
        ("TEXT", "Did you mean 'Text'?"),
        ("review id", "Did you mean 'review_id'?"),
        ("body", "Name one of these."),
    ],
)
def test_the_nearest_name_is_meant(name: str, said: str) -> None:
    assert suggest(name, ["review_id", "Text"]) == said
