import math
from typing import Any

import pytest

from claude_batch_dagster.core.errors import CostError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.verbs.cap import check_cap
from tests.unit.verbs.conftest import SUMMARIES

UNPRICED = Summarize(name="unpriced", column="text", model="claude-of-tomorrow-9")
TEXTS = ["a", "b", None, "a"]


def test_a_worst_case_over_the_cap_is_refused_with_the_numbers(lake: Any) -> None:
    lake.texts(*(f"text {i}" for i in range(1_000)), "text 0", None)
    job = lake.job(max_cost_usd=0.01)
    plan = lake.plan(job, preview=True)
    with pytest.raises(CostError) as refused:
        check_cap(job, plan)
    message = str(refused.value)
    assert "1,000 requests for 1,002 rows would be sent (1,000 new)" in message
    assert f"at most ${plan.worst_nano_usd / 1e9:.2g}" in message
    assert "over the cap of $0.01. Nothing was sent. Raise --max-cost-usd" in message
    assert refused.value.context == {
        "rows": plan.total.rows,
        "requests": plan.total.asked,
        "expected_nano_usd": plan.expected_nano_usd,
        "worst_nano_usd": plan.worst_nano_usd,
        "max_cost_usd": 0.01,
    }


def test_a_cap_is_kept_to_the_last_nano_dollar(lake: Any) -> None:
    lake.texts(*TEXTS)
    plan = lake.plan(lake.job(), preview=True)
    worst = plan.worst_nano_usd
    check_cap(lake.job(max_cost_usd=worst / 1e9), plan)
    check_cap(lake.job(max_cost_usd=(worst + 5) / 1e9), plan, 5)
    with pytest.raises(CostError):
        check_cap(lake.job(max_cost_usd=(worst - 1) / 1e9), plan)
    with pytest.raises(CostError):
        check_cap(lake.job(max_cost_usd=worst / 1e9), plan, 1)


def test_a_cap_of_nothing_allows_what_asks_nothing(lake: Any) -> None:
    lake.texts(None, " ")
    job = lake.job(max_cost_usd=0)
    check_cap(job, lake.plan(job, preview=True))
    lake.texts("a")
    with pytest.raises(CostError):
        check_cap(job, lake.plan(job, preview=True))


def test_without_a_cap_nothing_is_refused(lake: Any) -> None:
    lake.texts(*TEXTS)
    job = lake.job(UNPRICED, max_cost_usd=None)
    check_cap(job, lake.plan(job, preview=True))


def test_a_model_without_a_price_cannot_be_compared_with_a_cap(lake: Any) -> None:
    lake.texts(*TEXTS)
    job = lake.job(UNPRICED, max_cost_usd=1_000_000)
    plan = lake.plan(job, preview=True)
    assert (plan.worst_nano_usd, plan.expected_nano_usd) == (None, None)
    assert plan.warnings == ("claude-of-tomorrow-9 has no known price: the cost of unpriced is unknown, not zero.",)
    with pytest.raises(CostError, match=r"2 requests to claude-of-tomorrow-9 .*no known price.*cap of \$1,000,000\.00\. Nothing was sent"):
        check_cap(job, plan)


def test_the_try_of_a_new_task_counts_at_the_full_price_in_the_preview_and_in_the_plan(lake: Any) -> None:
    lake.texts("a", "b")
    without = lake.plan(lake.job(preflight=False), preview=True)
    for preview in (True, False):
        plan = lake.plan(lake.job(), preview=preview)
        [preflight] = plan.preflights
        # 288 tokens of output at most and 72 as expected, at 0.10 and 0.50 USD a million tokens: twice the batch price.
        params_bytes = len(lake.store.get(f"plans/{lake.plan(lake.job()).run_id}/preflight-{SUMMARIES.task_key}.json"))
        assert preflight.worst_nano_usd == math.ceil(params_bytes / 2) * 100 + 288 * 500
        assert preflight.expected_nano_usd == math.ceil(params_bytes / 3.5) * 100 + 72 * 500
        assert plan.worst_nano_usd == without.worst_nano_usd + preflight.worst_nano_usd
        assert plan.expected_nano_usd == without.expected_nano_usd + preflight.expected_nano_usd
        with pytest.raises(CostError):
            check_cap(lake.job(max_cost_usd=without.worst_nano_usd / 1e9), plan)
        assert lake.store.get(preflight.ref.path) is None if preview else lake.store.get(preflight.ref.path)
    lake.finish(lake.job())
    lake.texts("c")
    assert lake.plan(lake.job(), preview=True).preflights == ()
