"""A vendor that cannot now: limits, a full queue, failing reads. It is waited for, asked as it says, and nothing is sent twice."""

from collections.abc import Callable

from claude_batch_dagster.core.submission import How, NotAccepted, Record
from tests.fault.judge import answered_twice, sent
from tests.stack import Bench, RunningSimulator, texts

StartSimulator = Callable[..., RunningSimulator]
SENT_AND_COLLECTED = ["send", "batch", "closed:collected"]


def how_refused(records: list[Record]) -> list[How]:
    return [record.how for record in records if isinstance(record, NotAccepted)]


def test_a_rate_limit_is_no_lost_post_however_often_it_comes(bench: Bench, start_simulator: StartSimulator) -> None:
    """With and without retry-after: it created nothing for certain, so nothing is looked for, and no person is asked."""
    # In this order, for the pauses without a retry-after grow.
    simulator = start_simulator("429-bare=2", "429=2")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 2}
    assert bench.kinds(entry) == {(1, 0): [*["send", "not"] * 4, *SENT_AND_COLLECTED]}
    assert how_refused(bench.records(entry)[1, 0]) == [How.REPLY] * 4
    assert sent(simulator) == [2]


def test_an_overloaded_vendor_is_settled_before_it_is_asked_again(bench: Bench, start_simulator: StartSimulator) -> None:
    """A 529 does not say whether the batch was created: the list does."""
    simulator = start_simulator("529=2")
    bench.start_worker(simulator)
    entry = bench.stage(texts(2))

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 2}
    assert how_refused(bench.records(entry)[1, 0]) == [How.RECONCILED] * 2
    assert sent(simulator) == [2]


def test_a_full_queue_lets_the_next_batch_in_when_another_has_ended(bench: Bench, start_simulator: StartSimulator) -> None:
    """Four batches of which two fit: each is sent once, none is given up."""
    simulator = start_simulator("queue-limit=4", seconds=1)
    bench.start_worker(simulator)
    entry = bench.stage(texts(8), max_requests=2, max_in_flight=4)

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 8}
    assert sent(simulator) == [2] * 4
    assert answered_twice(simulator) == {}
    records = bench.records(entry)
    assert all(bench.kinds(entry)[place][-3:] == SENT_AND_COLLECTED for place in records)
    refused = [how for place in records for how in how_refused(records[place])]
    assert refused
    assert set(refused) == {How.REPLY}


def test_reads_that_fail_in_every_way_are_repeated(bench: Bench, start_simulator: StartSimulator) -> None:
    """Looks, lists and downloads answered by errors, a redirect, half a body, or not at all: the batch is collected once they succeed."""
    reads = ("429", "429-bare", "529", "error-500-before", "408", "307", "drop-before", "garbled-after")
    simulator = start_simulator("drop-before@list", "429-bare@list", *(f"{fault}@get" for fault in reads))
    bench.start_worker(simulator)
    entry = bench.stage(texts(3))
    for fault in ("529", "error-500-before", "307", "drop-before"):
        simulator.switch_on(f"{fault}@results")

    report = bench.finish(entry)

    assert report.outcome == "finished"
    assert report.counts.by_outcome == {"succeeded": 3}
    assert bench.kinds(entry) == {(1, 0): SENT_AND_COLLECTED}
    assert sent(simulator) == [3]
    assert simulator.books()["calls"]["get"] > len(reads)
    assert simulator.books()["calls"]["results"] == 5
