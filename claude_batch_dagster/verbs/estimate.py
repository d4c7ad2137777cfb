"""What requests cost: before they are asked, by their bytes; afterwards, by their usage. Prices are genai-prices' batch prices.

`genai-prices` answers a wrong context or an unknown model quietly or slowly, so prices are asked once a model and prompt size, for a
million tokens of each kind, and refused where they are not below the standard price.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from genai_prices import Usage, calc_price

from claude_batch_dagster.core.response import UNPRICED
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.core.vision import count_prompt_bytes
from claude_batch_dagster.storage.staging import Nanos

PROMPT_STEPS_TOKENS = (100_000, 200_000)
"""Prompts above these have another price with some models."""
_PROBES_TOKENS = (10_000, 150_000, 1_000_000)
"""Enough tokens of one kind that the whole prompt is on the wanted side of each step."""
WORST_BYTES_PER_TOKEN = 2
EXPECTED_BYTES_PER_TOKEN = 3.5
ASSUMED_OUTPUT_SHARE = 0.25
_EXACT_TOKENS = 1 << 20
_EXACT_TOTAL = 1 << 53
_MILLION = 1_000_000
_NANO_PER_USD = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrices:
    """Prices of one model for one size of prompt, in nano-USD a million tokens, at batch price."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEstimate:
    """What asking one task's requests may cost.

    Attributes:
        requests: How many.
        worst_input_tokens: At 2 bytes a token.
        expected_input_tokens: At 3.5 bytes a token.
        worst_output_tokens: At `max_tokens` each.
        expected_output_tokens: At the task's own mean so far, else at a quarter of `max_tokens`.
        worst_nano_usd: None where the model has no price.
        expected_nano_usd: None where the model has no price.
        largest_params_bytes: Of one request.
        assumption: What the expected figures rest on, in words.
    """

    requests: int
    worst_input_tokens: int
    expected_input_tokens: int
    worst_output_tokens: int
    expected_output_tokens: int
    worst_nano_usd: int | None
    expected_nano_usd: int | None
    largest_params_bytes: int
    assumption: str


def params_counter(task: ClaudeTask) -> Callable[[bytes], int]:
    """Return what counts the bytes of a request's params for an Estimator; only a function puts images into them."""
    return count_prompt_bytes if callable(task.prompt) else len


class Estimator:
    """Adds up what one task's requests may cost.

    Args:
        model: The task's.
        max_tokens: The task's.
        mean_output_tokens: Of the task's answers so far, None for none.
    """

    def __init__(self, model: str, max_tokens: int, mean_output_tokens: float | None) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._output_tokens = mean_output_tokens if mean_output_tokens is not None else max_tokens * ASSUMED_OUTPUT_SHARE
        source = "the mean of this task's answers so far" if mean_output_tokens is not None else f"a quarter of max_tokens={max_tokens}"
        self._assumption = (
            f"{EXPECTED_BYTES_PER_TOKEN} bytes a token of input; {self._output_tokens:,.0f} tokens of output a request, {source}"
        )
        self._requests = self._largest = self._worst_input = self._worst_output = self._expected_input = self._worst_nano = 0
        self._expected_nano = 0.0

    def add(self, params_bytes: npt.NDArray[np.int64], max_tokens: npt.NDArray[np.int64] | None = None) -> Nanos | None:
        """Count requests; return what each may cost at most, None where the model has no price.

        Args:
            params_bytes: Of each request's params, as `params_counter` counts them.
            max_tokens: Of each, where they are asked with others than the task's.
        """
        caps: npt.NDArray[np.int64] = np.full(len(params_bytes), self._max_tokens) if max_tokens is None else max_tokens
        if not len(params_bytes):
            return params_bytes
        worst_input = -(-params_bytes // WORST_BYTES_PER_TOKEN)
        expected_input = np.ceil(params_bytes / EXPECTED_BYTES_PER_TOKEN).astype(np.int64)
        self._requests += len(params_bytes)
        self._largest = max(self._largest, int(params_bytes.max()))
        self._worst_input += int(worst_input.sum())
        self._worst_output += int(caps.sum())
        self._expected_input += int(expected_input.sum())
        worst_cost, expected_cost = self._price(worst_input, caps), self._price(expected_input, self._output_tokens)
        if worst_cost is None or expected_cost is None:
            return None
        worst: Nanos = -(-worst_cost // _MILLION)
        self._worst_nano += int(worst.sum())
        self._expected_nano += float(expected_cost.sum()) / _MILLION
        return worst

    def _price(self, input_tokens: npt.NDArray[np.int64], output_tokens: float | npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
        """Return what requests with these tokens cost, in nano-USD times a million."""
        steps = np.searchsorted(PROMPT_STEPS_TOKENS, input_tokens)
        prices = [_prices_of_step(self._model, step) for step in range(int(steps.max()) + 1)]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        by_input, by_output = np.array([(price.input, price.output) for price in known], np.int64).T
        cost: npt.NDArray[Any] = input_tokens * by_input[steps] + output_tokens * by_output[steps]
        return cost

    def finish(self) -> TaskEstimate:
        """Return the sums."""
        priced = unit_prices(self._model, 0) is not None
        return TaskEstimate(
            requests=self._requests,
            worst_input_tokens=self._worst_input,
            expected_input_tokens=self._expected_input,
            worst_output_tokens=self._worst_output,
            expected_output_tokens=round(self._requests * self._output_tokens),
            worst_nano_usd=self._worst_nano if priced else None,
            expected_nano_usd=round(self._expected_nano) if priced else None,
            largest_params_bytes=self._largest,
            assumption=self._assumption,
        )


def price_usage(
    model: str, *, input_tokens: int, output_tokens: int, cache_read_tokens: int, cache_write_5m_tokens: int, cache_write_1h_tokens: int
) -> int | None:
    """Return the cost of one answer in nano-USD at batch price, None where the model has no known price.

    Args:
        model: As the answer names it.
        input_tokens: Prompt tokens less cache reads and writes, as the API's usage says.
        output_tokens: Thinking included.
        cache_read_tokens: Read from the cache.
        cache_write_5m_tokens: Written for five minutes.
        cache_write_1h_tokens: Written for an hour.
    """
    prompt = input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens
    prices = _prices_of_step(model, bisect_left(PROMPT_STEPS_TOKENS, prompt))
    if prices is None:
        return None
    total = (
        input_tokens * prices.input
        + output_tokens * prices.output
        + cache_read_tokens * prices.cache_read
        + cache_write_5m_tokens * prices.cache_write_5m
        + cache_write_1h_tokens * prices.cache_write_1h
    )
    return round(total / _MILLION)


def price_usages(
    model: str,
    *,
    input_tokens: Nanos,
    output_tokens: Nanos,
    cache_read_tokens: Nanos,
    cache_write_5m_tokens: Nanos,
    cache_write_1h_tokens: Nanos,
) -> Nanos:
    """Return what `price_usage` says of each of several answers of one model, UNPRICED for None; twenty times as fast."""
    kinds = (input_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens)
    steps = np.searchsorted(PROMPT_STEPS_TOKENS, sum(kinds) - output_tokens)
    costs = np.full(len(input_tokens), UNPRICED, np.int64)
    # Above these int64 or float64 would round otherwise than Python does.
    large = np.any([np.abs(kind) > _EXACT_TOKENS for kind in kinds], axis=0)
    for step in range(len(PROMPT_STEPS_TOKENS) + 1):
        rows = steps == step
        if rows.any() and (prices := _prices_of_step(model, step)) is not None:
            unit = (prices.input, prices.output, prices.cache_read, prices.cache_write_5m, prices.cache_write_1h)
            total = sum(kind[rows] * price for kind, price in zip(kinds, unit, strict=True))
            costs[rows] = np.rint(total / _MILLION)
            large[rows] |= np.abs(total) > _EXACT_TOTAL
    for row in np.flatnonzero(large).tolist():
        tokens = [int(kind[row]) for kind in kinds]
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
        cost = price_usage(model, **dict(zip(names, tokens, strict=True)))
        costs[row] = UNPRICED if cost is None else cost
    return costs


def unit_prices(model: str, prompt_tokens: int) -> UnitPrices | None:
    """Return a model's batch prices for a prompt of this size, caches included; None where they are not known."""
    return _prices_of_step(model, bisect_left(PROMPT_STEPS_TOKENS, prompt_tokens))


@cache
def _prices_of_step(model: str, step: int) -> UnitPrices | None:
    tokens = _PROBES_TOKENS[step]
    kinds = {
        "input": Usage(input_tokens=tokens),
        "cache_read": Usage(input_tokens=tokens, cache_read_tokens=tokens),
        "cache_write_5m": Usage(input_tokens=tokens, cache_write_tokens=tokens, cache_write_5m_tokens=tokens),
        "cache_write_1h": Usage(input_tokens=tokens, cache_write_tokens=tokens, cache_write_1h_tokens=tokens),
    }
    found = {}
    try:
        for kind, usage in kinds.items():
            batch = _price(usage, model, batch=True)
            if batch >= _price(usage, model, batch=False):
                return None
            found[kind] = _per_million(batch, tokens)
        with_output = Usage(input_tokens=tokens, output_tokens=tokens)
        output = _price(with_output, model, batch=True) - _price(kinds["input"], model, batch=True)
    except LookupError:
        return None
    return UnitPrices(output=_per_million(output, tokens), **found)


def _price(usage: Usage, model: str, *, batch: bool) -> Decimal:
    context = {"processing": "batch"} if batch else None
    price = calc_price(usage, model, provider_id="anthropic", genai_request_timestamp=datetime.now(UTC), price_context=context)
    return Decimal(price.total_price)


def _per_million(usd: Decimal, tokens: int) -> int:
    return round(usd * _NANO_PER_USD * _MILLION / tokens)
