"""Prices below are copied by hand from the vendor's price list (checked 2026-11-22), halved as batches are, in nano-USD a token."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_batch_dagster.core.response import UNPRICED
from claude_batch_dagster.verbs.estimate import Estimator, UnitPrices, price_usage, price_usages, unit_prices

NANO_PER_MTOK = 10**9


def usd(**prices: float) -> UnitPrices:
    return UnitPrices(**{name: round(price * NANO_PER_MTOK) for name, price in prices.items()})


HAIKU = usd(input=0.05, output=0.25, cache_read=0.005, cache_write_5m=0.0625, cache_write_1h=0.10)
HAIKU_LONG = usd(input=0.25, output=1.25, cache_read=0.025, cache_write_5m=0.3125, cache_write_1h=0.50)
SONNET_4_5 = usd(input=1.5, output=7.5, cache_read=0.15, cache_write_5m=1.875, cache_write_1h=3)
SONNET_4_5_LONG = usd(input=3, output=11.25, cache_read=0.3, cache_write_5m=3.75, cache_write_1h=6)
SONNET = usd(input=1, output=5, cache_read=0.05, cache_write_5m=1.25, cache_write_1h=2)


@pytest.mark.parametrize(
    ("model", "prompt_tokens", "prices"),
    [
        ("claude-haiku-5-5", 0, HAIKU),
        ("claude-haiku-5-5", 100_000, HAIKU),
        ("claude-haiku-5-5", 100_001, HAIKU_LONG),
        ("claude-haiku-5-5", 900_000, HAIKU_LONG),
        ("claude-sonnet-5-5", 1_000, SONNET),
        ("claude-sonnet-5-5", 900_000, SONNET),
        ("claude-sonnet-4-5", 100_001, SONNET_4_5),
        ("claude-sonnet-4-5", 200_000, SONNET_4_5),
        ("claude-sonnet-4-5", 200_001, SONNET_4_5_LONG),
        ("claude-of-tomorrow-9", 1_000, None),
        ("gpt-4o", 1_000, None),
        ("", 1_000, None),
    ],
)
def test_a_token_costs_half_the_list_price_of_its_prompts_size(model: str, prompt_tokens: int, prices: UnitPrices | None) -> None:
    assert unit_prices(model, prompt_tokens) == prices


@pytest.mark.parametrize(
    ("model", "usage", "nano_usd"),
    [
        ("claude-haiku-5-5", (1_000, 200, 0, 0, 0), 100_000),
        ("claude-haiku-5-5", (100_000, 1_000, 0, 0, 0), 5_250_000),
        ("claude-haiku-5-5", (100_001, 1_000, 0, 0, 0), 26_250_250),
        ("claude-haiku-5-5", (90_000, 0, 5_000, 5_000, 0), 4_500_000 + 25_000 + 312_500),
        ("claude-haiku-5-5", (90_000, 0, 5_000, 5_000, 1), 22_500_000 + 125_000 + 1_562_500 + 500),
        ("claude-sonnet-5-5", (1_000, 100, 10_000, 0, 2_000), 1_000_000 + 500_000 + 500_000 + 4_000_000),
        ("claude-sonnet-4-5", (150_000, 1_000, 0, 0, 0), 232_500_000),
        ("claude-haiku-5-5", (1, 0, 0, 0, 0), 50),
        ("claude-haiku-5-5", (0, 0, 0, 0, 0), 0),
        ("claude-of-tomorrow-9", (1_000, 200, 0, 0, 0), None),
    ],
)
def test_an_answer_costs_what_its_usage_says(model: str, usage: tuple[int, int, int, int, int], nano_usd: int | None) -> None:
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    assert price_usage(model, **dict(zip(names, usage, strict=True))) == nano_usd


TOKENS = st.integers(-5, 3_000) | st.integers(99_000, 101_000) | st.integers(199_000, 3_000_000) | st.integers(0, 1 << 45)


@given(
    st.sampled_from(["claude-haiku-5-5", "claude-sonnet-4-5", "claude-opus-4-5", "claude-of-tomorrow-9"]),
    st.lists(st.tuples(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS), max_size=5),
)
def test_many_answers_cost_what_each_costs(model: str, usages: list[tuple[int, int, int, int, int]]) -> None:
    """To the last nano-dollar, rounding included."""
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    columns = np.array(usages, np.int64).reshape(-1, 5).T
    each = [price_usage(model, **dict(zip(names, usage, strict=True))) for usage in usages]
    found = price_usages(model, **dict(zip(names, columns, strict=True)))
    assert found.tolist() == [UNPRICED if cost is None else cost for cost in each]


def ask(estimator: Estimator, *params_bytes: int) -> list[int]:
    worst = estimator.add(np.array(params_bytes, np.int64))
    assert worst is not None
    return worst.tolist()


def test_the_worst_case_is_half_a_token_a_byte_and_all_of_max_tokens() -> None:
    estimator = Estimator("claude-haiku-5-5", 288, None)
    # 701 bytes are 351 tokens at worst and 201 as expected; 72 tokens of output are a quarter of 288.
    assert ask(estimator, 701, 700) == [89_550, 350 * 50 + 288 * 250]
    found = estimator.finish()
    assert (found.requests, found.worst_input_tokens, found.worst_output_tokens) == (2, 701, 576)
    assert (found.expected_input_tokens, found.expected_output_tokens) == (201 + 200, 144)
    assert found.worst_nano_usd == 89_550 + 89_500
    assert found.expected_nano_usd == 201 * 50 + 200 * 50 + 144 * 250
    assert found.assumption == "3.5 bytes a token of input; 72 tokens of output a request, a quarter of max_tokens=288"


def test_what_came_so_far_is_expected_of_the_rest() -> None:
    estimator = Estimator("claude-sonnet-5-5", 4_000, 12.5)
    ask(estimator, 350)
    ask(estimator, 350)
    found = estimator.finish()
    assert found.expected_output_tokens == 25
    assert found.expected_nano_usd == 200 * 1_000 + 25 * 5_000
    assert found.worst_nano_usd == 350 * 1_000 + 8_000 * 5_000
    assert "the mean of this task's answers so far" in found.assumption


@pytest.mark.parametrize(
    ("params_bytes", "worst", "expected"),
    [
        (200_000, 100_000 * 50 + 100 * 250, 57_143 * 50 + 25 * 250),
        (200_001, 100_001 * 250 + 100 * 1_250, 57_144 * 50 + 25 * 250),
        (350_000, 175_000 * 250 + 100 * 1_250, 100_000 * 50 + 25 * 250),
        (350_001, 175_001 * 250 + 100 * 1_250, 100_001 * 250 + 25 * 1_250),
    ],
)
def test_above_a_hundred_thousand_tokens_every_token_of_haiku_costs_five_times(params_bytes: int, worst: int, expected: int) -> None:
    estimator = Estimator("claude-haiku-5-5", 100, None)
    assert ask(estimator, 4, params_bytes) == [2 * 50 + 100 * 250, worst]
    assert estimator.finish().expected_nano_usd == 2 * 50 + 25 * 250 + expected


def test_a_model_without_a_price_costs_an_unknown_amount_never_zero() -> None:
    estimator = Estimator("claude-of-tomorrow-9", 100, None)
    assert estimator.add(np.array([1_000])) is None
    found = estimator.finish()
    assert (found.worst_nano_usd, found.expected_nano_usd) == (None, None)
    assert (found.requests, found.worst_input_tokens) == (1, 500)


def test_nothing_asked_costs_nothing() -> None:
    found = Estimator("claude-haiku-5-5", 100, None).finish()
    assert (found.worst_nano_usd, found.expected_nano_usd, found.requests) == (0, 0, 0)


@given(sizes=st.lists(st.integers(1, 500_000), max_size=20), mean=st.none() | st.floats(0, 100))
def test_the_expected_cost_never_exceeds_the_worst(sizes: list[int], mean: float | None) -> None:
    estimator = Estimator("claude-haiku-5-5", 100, mean)
    parts = ask(estimator, *sizes[:7]) + ask(estimator, *sizes[7:])
    found = estimator.finish()
    assert found.worst_nano_usd == sum(parts)
    assert found.expected_nano_usd is not None
    assert found.expected_nano_usd <= found.worst_nano_usd
    assert found.worst_input_tokens == sum(math.ceil(size / 2) for size in sizes)
