"""`python -m tests.model [--depth deep] [--trace] [NAME]`: search, and print what docs/reliability.md says."""

import argparse
import sys

from tests.model.bounds import DEPTHS, QUICK, pick_scenes
from tests.model.safeguards import ASSUMPTIONS, SAFEGUARDS, STUCK
from tests.model.search import search


def main() -> int:
    """Print a Markdown table of scenes and one of removals; return 1 where one is not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--depth", choices=DEPTHS, default=QUICK)
    parser.add_argument("--trace", action="store_true", help="print the shortest way to each failure")
    parser.add_argument("name", nargs="?", default="", help="part of a name")
    options = parser.parse_args()
    wrong = 0
    print("| bounds | states | steps | seconds | result |\n|---|---|---|---|---|")
    for scene in pick_scenes(options.depth):
        if options.name not in scene.name:
            continue
        found = search(scene.model())
        wrong += not (found.holds and found.whole)
        result = "holds" if found.holds else found.describe()
        print(f"| {scene.name} | {found.states:,} | {found.steps:,} | {found.seconds:.0f} | {result} |", flush=True)
        _print_trace(found.trace, shown=options.trace)
    print("\n| without | what happens | after steps | states |\n|---|---|---|---|")
    for removal in (*SAFEGUARDS, *ASSUMPTIONS):
        if options.name not in removal.name:
            continue
        found = removal.search()
        wrong += not found.stuck if removal.ends == STUCK else found.violation != removal.ends
        happens = found.violation or (STUCK if found.stuck else "nothing")
        print(f"| {removal.name} | {happens} | {len(found.trace)} | {found.states:,} |", flush=True)
        _print_trace(found.trace, shown=options.trace)
    return 1 if wrong else 0


def _print_trace(trace: tuple[str, ...], *, shown: bool) -> None:
    if shown:
        print(*(f"    {step}" for step in trace), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
