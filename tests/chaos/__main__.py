"""`python -m tests.chaos --rounds 20 --seed 7`: random kills, cuts and vendor faults; the vendor's books are the judge.

Each round asks about thousands of rows in several batches by two or three clients whose work overlaps, while clients, workers, the
Temporal server and its supervisor are killed and suspended, the network is cut, and the vendor misbehaves. Then it is quiet, and the
same commands run until they end. Exit 0 only where every row of every output is accounted for and nothing was paid for twice.
Decisions depend on the seed alone, timing does not: a seed repeats what happens, not to the millisecond.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.play import Outcome, play_round
from tests.chaos.storm import Round, defer_round, draw_round


def main() -> int:
    """Play the rounds; return 0 where all were good, else 1."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="claude-batch-chaos-", dir=arguments.folder))
    numbers = arguments.only or range(arguments.first, arguments.first + arguments.rounds)
    print(f"chaos: {len(numbers)} rounds, seed {arguments.seed}, {arguments.rows:,} rows a client, in {base}", flush=True)
    began_s = time.monotonic()
    outcomes: dict[int, Outcome] = {}
    stop = threading.Event()

    def play(number: int) -> None:
        drawn = draw_round(arguments.seed, number, arguments.rows)
        if arguments.deferred:
            drawn = defer_round(drawn, arguments.seed)
        if arguments.verbose:
            print(f"round {number}", *(str(event) for event in drawn.events), drawn.faults, drawn.worker_traps, sep="\n  ", flush=True)
        outcomes[number] = play_round(drawn, base / f"round-{number}", stop, keep=arguments.keep)
        _print_round(number, drawn, outcomes[number], base)

    with ThreadPoolExecutor(arguments.at_once, thread_name_prefix="round") as rounds:
        try:
            for _ in rounds.map(play, numbers):
                pass
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            # Whatever ended this, rounds under way end their processes.
            stop.set()
            rounds.shutdown(cancel_futures=True)
    good = _print_sum(outcomes, arguments, time.monotonic() - began_s)
    if good and not arguments.keep:
        shutil.rmtree(base, ignore_errors=True)
    return 0 if good and len(outcomes) == len(numbers) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(100_000), help="of all decisions (drawn and printed)")
    parser.add_argument("--first", type=int, default=1, help="number of the first round (%(default)s)")
    parser.add_argument("--only", type=int, action="append", help="play this round of the seed only; repeatable")
    parser.add_argument("--at-once", type=int, default=2, help="rounds at a time: they mostly wait (%(default)s)")
    parser.add_argument("--rows", type=int, default=1_500, help="rows of each client (%(default)s)")
    parser.add_argument("--deferred", action="store_true", help="Dagster runs that do not wait, and a sensor, in each round")
    parser.add_argument("--folder", help="where rounds leave their files (default: the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the files of good rounds too")
    parser.add_argument("--verbose", action="store_true", help="print what is going to happen")
    return parser.parse_args()


def _print_round(number: int, drawn: Round, outcome: Outcome, base: Path) -> None:
    verdict = outcome.verdict
    print(
        f"round {number:3} {'embedded' if drawn.embedded else 'own     '} {'good' if outcome.good else 'BAD '} {outcome.took_s:5.1f} s  "
        f"{sum(outcome.kills.values()):2} kills and cuts, {sum(outcome.faults.values()):2} faults; rows {verdict.rows_in:,} in, "
        f"{verdict.rows_out:,} out, {verdict.faulty_rows} failed; {verdict.batches} batches, {verdict.answers:,} answers, "
        f"{len(verdict.paid_twice)} paid twice"
        + (f"; {outcome.asked} questions" if outcome.asked else "")
        + (f"; {outcome.deferred} deferred runs collected, {outcome.given_up} left to a person" if drawn.deferred else ""),
        flush=True,
    )
    for line in outcome.refusals:
        print(f"    in quiet: {line}")
    if not outcome.good:
        for error in verdict.errors:
            print(f"    {error}")
        for request, numbers in list(verdict.paid_twice.items())[:3]:
            print(f"    paid twice: {request} in batches {numbers}")
        print(f"    its files: {base / f'round-{number}'}", flush=True)


def _print_sum(outcomes: dict[int, Outcome], arguments: argparse.Namespace, took_s: float) -> bool:
    bad = [number for number, outcome in outcomes.items() if not outcome.good]
    kills = sum((outcome.kills for outcome in outcomes.values()), Counter())
    faults = sum((outcome.faults for outcome in outcomes.values()), Counter())
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    print(f"\nseed {arguments.seed}: {len(outcomes)} rounds in {took_s:.0f} s, {len(outcomes) - len(bad)} good, {len(bad)} bad")
    print(f"kills and cuts   {sum(kills.values()):,}: {_list(kills)}")
    print(f"vendor faults    {sum(faults.values()):,}: {_list(faults)}")
    print(f"processes        {sum(outcome.starts for outcome in outcomes.values()):,} started")
    print(f"rows in          {sum(verdict.rows_in for verdict in verdicts):,}")
    print(f"rows out         {sum(verdict.rows_out for verdict in verdicts):,}")
    print(f"batches          {sum(verdict.batches for verdict in verdicts):,}")
    print(f"answers          {sum(verdict.answers for verdict in verdicts):,}")
    print(f"paid twice       {sum(len(verdict.paid_twice) for verdict in verdicts):,}")
    deferred, given_up = sum(outcome.deferred for outcome in outcomes.values()), sum(outcome.given_up for outcome in outcomes.values())
    print(f"deferred         {deferred:,} collected by the sensor alone, {given_up:,} left to a person")
    print(f"questions        {sum(outcome.asked for outcome in outcomes.values()):,} answered in a person's place")
    if bad:
        print(
            f"again: python -m tests.chaos --seed {arguments.seed} --rows {arguments.rows} {'--deferred ' if arguments.deferred else ''}"
            + " ".join(f"--only {number}" for number in bad)
            + " --keep --verbose"
        )
    sys.stdout.flush()
    return not bad


def _list(counts: "Counter[str]") -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
