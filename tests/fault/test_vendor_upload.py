"""The vendor drops the connection in the middle of a body: what did not arrive whole is no batch, and is sent anew."""

from collections.abc import Callable

import pytest

from claude_batch_dagster.core.submission import How, NotAccepted
from tests.fault.judge import sent
from tests.stack import Bench, RunningSimulator, texts

StartSimulator = Callable[..., RunningSimulator]
# More than the buffers of both ends hold, so that the sender sees its body break off.
FILLER = "The poles are light. " * 4_000


@pytest.mark.parametrize(("rows", "how"), [(2, How.RECONCILED), (200, How.REPLY)], ids=["small", "large"])
def test_half_a_body_is_no_batch(bench: Bench, start_simulator: StartSimulator, rows: int, how: How) -> None:
    """A body that left the sender whole may have arrived, so the list is asked; one that broke off did not."""
    simulator = start_simulator("drop-upload")
    bench.start_worker(simulator)
    filler = "" if how is How.RECONCILED else FILLER
    entry = bench.stage([text + filler for text in texts(rows)])

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": rows}
    assert bench.kinds(entry) == {(1, 0): ["send", "not", "send", "batch", "closed:collected"]}
    refused = bench.records(entry)[1, 0][1]
    assert isinstance(refused, NotAccepted)
    assert refused.how is how
    assert sent(simulator) == [rows]
