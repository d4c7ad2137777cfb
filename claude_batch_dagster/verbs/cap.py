"""The cost cap: the worst case is compared with it before anything is admitted or sent."""

from claude_batch_dagster.core.errors import CostError
from claude_batch_dagster.core.money import usd
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.plan import Plan
from claude_batch_dagster.verbs.reasons import explain_reasons

_NANO = 1_000_000_000


def check_cap(job: Job, plan: Plan, spent_worst_nano_usd: int = 0) -> None:
    """Refuse a plan whose worst case exceeds the cap.

    Raises:
        CostError: Terminal. With rows, expected and worst cost, and why so many.
    """
    asked = plan.total.asked
    if job.max_cost_usd is None or not asked:
        return
    worst, expected = plan.worst_nano_usd, plan.expected_nano_usd
    if worst is None or expected is None:
        models = sorted({target.task.model for target in job.targets if plan.estimates[target.task.name].worst_nano_usd is None})
        raise CostError(
            f"{_requests(asked)} to {', '.join(models)} would be sent, and this model has no known price, so the worst case cannot be compared with "
            f"the cap of {usd(job.max_cost_usd)}. Nothing was sent. Check the model's name, or lift the cap: leave --max-cost-usd out (in Dagster: max_cost_usd=None)."
        )
    if worst + spent_worst_nano_usd > job.max_cost_usd * _NANO:
        total = plan.total
        raise CostError(
            f"{_requests(asked)} for {total.rows:,} {'row' if total.rows == 1 else 'rows'} would be sent ({explain_plan(plan)}{_others(plan)}); the cost is about "
            f"{usd(expected / _NANO)} and at most {usd((worst + spent_worst_nano_usd) / _NANO)}, which is over the cap of {usd(job.max_cost_usd)}. "
            "Nothing was sent. Raise --max-cost-usd (in Dagster: max_cost_usd), lower max_tokens, or ask fewer rows (--limit).",
            rows=total.rows,
            requests=asked,
            expected_nano_usd=expected,
            worst_nano_usd=worst + spent_worst_nano_usd,
            max_cost_usd=job.max_cost_usd,
        )


def explain_plan(plan: Plan) -> str:
    """Say in a line why a plan asks what it asks; names the parts of a task that changed."""
    return "; ".join(explain_reasons(plan.reasons, plan.changed_parts))


def _others(plan: Plan) -> str:
    counts = ((plan.total.already_answered, "more answered before"), (plan.total.in_flight, "more in flight in other runs"))
    return "".join(f"; {count:,} {text}" for count, text in counts if count)


def _requests(number: int) -> str:
    return f"{number:,} {'request' if number == 1 else 'requests'}"
