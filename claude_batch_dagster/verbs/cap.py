"""The cost cap: the worst case is compared with it before anything is admitted or sent."""

from claude_batch_dagster.core.errors import CostError
from claude_batch_dagster.verbs.job import Job
from claude_batch_dagster.verbs.plan import Plan

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
            f"{asked:,} requests to {', '.join(models)} would be sent, and this model has no known price, so the worst case cannot be compared with "
            f"the cap of ${job.max_cost_usd:,.2f}. Nothing was sent. Check the model's name, or lift the cap (max_cost_usd=None)."
        )
    if worst + spent_worst_nano_usd > job.max_cost_usd * _NANO:
        total = plan.total
        raise CostError(
            f"{asked:,} requests of {total.rows:,} rows would be sent ({explain_reasons(plan)}{_others(plan)}); they cost about "
            f"{_usd(expected)} and at most {_usd(worst + spent_worst_nano_usd)}, which is over the cap of ${job.max_cost_usd:,.2f}. "
            "Nothing was sent. Raise max_cost_usd, lower max_tokens, or ask fewer rows.",
            rows=total.rows,
            requests=asked,
            expected_nano_usd=expected,
            worst_nano_usd=worst + spent_worst_nano_usd,
            max_cost_usd=job.max_cost_usd,
        )


def explain_reasons(plan: Plan) -> str:
    """Say why a plan asks what it asks, in a few words.

    Names the parts of a task that changed.
    """
    words = {
        "new": "new rows",
        "changed": "changed rows",
        "prompt_changed": "whose task changed",
        "failed_before": "that failed before",
        "asked_again": "asked again on purpose",
    }
    parts = [f"{plan.reasons[reason]:,} {text}" for reason, text in words.items() if plan.reasons.get(reason)]
    changes = [f"{name}: {', '.join(changed)}" for name, changed in plan.changed_parts.items()]
    return ", ".join(parts) + (f" ({'; '.join(changes)})" if changes else "")


def _others(plan: Plan) -> str:
    counts = ((plan.total.already_answered, "more are answered"), (plan.total.in_flight, "in flight"))
    return "".join(f"; {count:,} {text}" for count, text in counts if count)


def _usd(nano_usd: int) -> str:
    # Beside a cap of $0.01 a worst case of $0.014 must not read $0.01.
    amount = nano_usd / _NANO
    return f"${amount:,.2f}" if amount >= 0.1 else "$" + f"{float(f'{amount:.2g}'):.9f}".rstrip("0")
