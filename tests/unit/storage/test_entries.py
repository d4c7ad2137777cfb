import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_batch_dagster.core.outcome import Outcome
from claude_batch_dagster.storage import entries
from claude_batch_dagster.storage.entries import Entries, Ranked, keep_best, no_entries, plan_merge, rank_responses
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.responses import CODES, FINAL

WORDS = (0, 1, 2, 2**63, 2**64 - 1)
HALVES = st.sampled_from(WORDS)
KEYS = st.tuples(HALVES, HALVES)
ROWS = st.lists(st.tuples(KEYS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 5)), max_size=40)


def ranked(rows: list[tuple[tuple[int, int], int, int, int]]) -> Ranked:
    return Ranked(
        high=np.array([high for (high, _), *_ in rows], np.uint64),
        low=np.array([low for (_, low), *_ in rows], np.uint64),
        row=np.arange(len(rows), dtype=np.uint32),
        file=np.array([file for *_, file in rows], np.uint32),
        code=np.zeros(len(rows), np.uint8),
        rank=np.array([rank for _, rank, _, _ in rows], np.uint64),
        batch=np.array([batch for _, _, batch, _ in rows], np.int32),
    )


def keys_of(entries: Entries) -> list[tuple[int, int]]:
    return list(zip(entries.high.tolist(), entries.low.tolist(), strict=True))


@settings(max_examples=200, deadline=None)
@given(rows=ROWS)
def test_the_best_of_each_key_is_kept_in_the_order_of_keys(rows: list[tuple[tuple[int, int], int, int, int]]) -> None:
    best: dict[tuple[int, int], tuple[int, int, int]] = {}
    for at, (key, rank, batch, _) in enumerate(rows):
        best[key] = max(best.get(key, (-1, -1, -1)), (rank, batch, at))
    kept = keep_best(ranked(rows))
    assert keys_of(kept) == sorted(best)
    assert kept.row.tolist() == [best[key][2] for key in sorted(best)]
    assert kept.file.tolist() == [rows[best[key][2]][3] for key in sorted(best)]


@settings(max_examples=200, deadline=None)
@given(old=ROWS, new=ROWS, probes=st.lists(KEYS, max_size=20), at_once=st.sampled_from([1, 3, entries.FOUND_AT_ONCE]))
def test_merged_entries_are_found_and_the_new_ones_count(
    old: list[tuple[tuple[int, int], int, int, int]],
    new: list[tuple[tuple[int, int], int, int, int]],
    probes: list[tuple[int, int]],
    at_once: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "FOUND_AT_ONCE", at_once)
        patch.setattr(entries, "MERGED_AT_ONCE", at_once)
        check_merge(old, new, probes)


def check_merge(
    old: list[tuple[tuple[int, int], int, int, int]], new: list[tuple[tuple[int, int], int, int, int]], probes: list[tuple[int, int]]
) -> None:
    first, second = keep_best(ranked(old)), keep_best(ranked(new))
    expected = {
        **dict(zip(keys_of(first), first.row.tolist(), strict=True)),
        **dict(zip(keys_of(second), second.row.tolist(), strict=True)),
    }
    merge = plan_merge(first, second)
    merged = merge.entries()
    assert dict(zip(keys_of(merged), merged.row.tolist(), strict=True)) == expected
    assert keys_of(merged) == sorted(expected)
    found = merged.find(np.array(probes, np.uint64).reshape(-1, 2))
    assert [int(merged.row[place]) if place >= 0 else None for place in found] == [expected.get(probe) for probe in probes]


@pytest.mark.parametrize("shape", ["uniform", "low", "high", "two ends", "one value", "powers"])
def test_few_keys_are_found_among_many_wherever_these_lie(shape: str) -> None:
    rng = np.random.default_rng(1)
    count = entries.GUESSED_FROM
    words = {
        "uniform": lambda: rng.integers(0, 2**64, count, np.uint64),
        "low": lambda: rng.integers(0, 2**20, count, np.uint64),
        "high": lambda: 2**64 - 1 - rng.integers(0, 2**20, count, np.uint64),
        "two ends": lambda: np.concatenate([np.zeros(count // 2, np.uint64), np.full(count // 2, 2**64 - 1, np.uint64)]),
        "one value": lambda: np.full(count, 2**63, np.uint64),
        "powers": lambda: np.uint64(1) << rng.integers(0, 64, count, np.uint64),
    }[shape]()
    words.sort()
    near = words[rng.integers(0, count, 150)]
    wanted = np.sort(np.concatenate([near, near + np.uint64(1), near - np.uint64(1), np.array([0, 1, 2**64 - 1], np.uint64)]))
    assert len(wanted) * entries.SPARSE <= count
    assert np.array_equal(entries._search(words, wanted), np.searchsorted(words, wanted))


def test_nothing_is_found_among_no_entries() -> None:
    assert no_entries().find(pack_keys([bytes(16), b"x" * 16])).tolist() == [-1, -1]
    assert len(keep_best(no_entries())) == 0


def test_a_usable_response_ranks_over_a_final_one_over_a_later_one_over_one_of_a_later_round() -> None:
    order = [
        ("expired", 0, 5, 1),
        ("expired", 0, 5, 2),
        ("expired", 0, 6, 1),
        ("invalid", FINAL, 0, 1),
        ("succeeded", FINAL, 0, 1),
        ("succeeded", FINAL, 0, 1_000_000),
        ("succeeded", FINAL, 4_000_000_000_000_000, 0),
    ]
    ranks = rank_responses(
        np.array([CODES[Outcome(word)] | final for word, final, _, _ in order], np.uint8),
        np.array([stamp for _, _, stamp, _ in order], np.int64),
        np.array([number for *_, number in order], np.int32),
    ).tolist()
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)
