import inspect
import pickle

import pytest

from claude_batch_dagster.core import errors
from claude_batch_dagster.core.errors import ClaudeBatchError, TerminalError, TransientError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ClaudeBatchError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_message_and_context(kind: type[ClaudeBatchError]) -> None:
    found = pickle.loads(pickle.dumps(kind("Shard 7 is 2 bytes too long. Nothing was sent.", shard=7, sizes=[1, 2])))
    assert type(found) is kind
    assert str(found) == "Shard 7 is 2 bytes too long. Nothing was sent."
    assert found.context == {"shard": 7, "sizes": [1, 2]}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, TransientError)], ids=lambda kind: kind.__name__)
def test_the_wait_that_the_vendor_asked_for_survives_pickling(kind: type[TransientError]) -> None:
    found = pickle.loads(pickle.dumps(kind("Busy.", retry_after_s=12.5, status=429)))
    assert (found.retry_after_s, found.context) == (12.5, {"status": 429})


def test_every_error_is_either_terminal_or_transient() -> None:
    undecided = [
        kind for kind in KINDS if kind is not ClaudeBatchError and issubclass(kind, TerminalError) == issubclass(kind, TransientError)
    ]
    assert undecided == []


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert [kind.__name__ for kind in KINDS if kind.__name__ not in (errors.__doc__ or "")] == []
