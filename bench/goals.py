"""What the product promises to cost, and what was measured beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.measure import align


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and its limit; `rows` is the size for which it is meant, None for any."""

    figure: str
    text: str
    least: float | None = None
    most: float | None = None
    rows: int | None = None

    def is_reached(self, value: float) -> bool:
        """Tell whether a measured value keeps the limit."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


K, M = 1_000, 1_000_000
GOALS = (
    Goal(figure="plan.against_iterrows", text="plan, times as fast as iterrows + SDK types", least=12, rows=100 * K),
    Goal(figure="plan.against_to_dict", text="plan, times as fast as to_dict + json.dumps", least=3, rows=100 * K),
    Goal(figure="plan.share_of_p0", text="plan, % of the speed without keys", least=70, rows=100 * K),
    Goal(figure="plan.callable_of_simple", text="plan with a function as prompt, % of the template's speed", least=40, rows=100 * K),
    Goal(figure="plan.unchanged", text="plan of an answered, unchanged source, % of its first", most=15, rows=M),
    Goal(figure="plan.rewritten", text="the same, written anew with equal content, %", most=100, rows=M),
    Goal(figure="submit.against_sdk", text="submit 100k, times as fast as the SDK", least=10, rows=100 * K),
    Goal(figure="submit.over_idle_mb", text="submit 100k, MB over an idle worker", most=100, rows=100 * K),
    Goal(figure="collect.against_sdk", text="collect 100k, times as fast as results() + pandas (stretch: 15)", least=8, rows=100 * K),
    Goal(figure="collect.cpu_beyond_network_s", text="collect 100k, CPU s beyond the network", most=0.6, rows=100 * K),
    Goal(figure="collect.over_start_mb", text="collect 100k, MB over an idle worker", most=200, rows=100 * K),
    Goal(figure="lookup.all_cpu_s", text="look up 1M keys among 10M, CPU s", most=0.8, rows=M),
    Goal(figure="lookup.few_cpu_s", text="look up 10k keys among 10M, CPU s", most=0.3, rows=M),
    Goal(figure="lookup.disk_per_key", text="index on disk, bytes a key", most=24, rows=M),
    Goal(figure="publish.all_cpu_s", text="publish 1M out of 10M, CPU s", most=12, rows=M),
    Goal(figure="publish.all_peak_mb", text="publish 1M out of 10M, peak MB", most=400, rows=M),
    Goal(figure="publish.day_cpu_s", text="publish a day of 10k out of 10M, CPU s", most=0.7, rows=M),
    Goal(figure="publish.day_after_compaction", text="publish a day after compaction, % of before", most=110, rows=M),
    Goal(figure="end_to_end.against_naive", text="end to end 100k, times as fast as a script", least=10, rows=100 * K),
    Goal(figure="end_to_end.against_airflow", text="end to end 100k, times as fast as Airflow's path", least=6, rows=100 * K),
    Goal(figure="soak.cpu_min_per_10m", text="10M rows, CPU min of all client work", most=5, rows=10 * M),
    Goal(figure="soak.client_peak_mb", text="10M rows, peak MB of the client", most=600, rows=10 * M),
    Goal(figure="soak.worker_peak_mb", text="10M rows, peak MB of the worker", most=600, rows=10 * M),
    Goal(figure="soak.client_growth", text="client, bytes that a row adds to the peak", most=35, rows=10 * M),
    Goal(figure="soak.worker_growth", text="worker, bytes that a row adds to the peak", most=35, rows=10 * M),
    Goal(figure="events.shards_1_of_allowed", text="events of a run of 1 shard, % of 19 a shard and 5", most=100),
    Goal(figure="events.shards_12_of_allowed", text="events of a run of 12 shards, %", most=100),
    Goal(figure="events.shards_1000_of_allowed", text="events of a run of 1,000 shards, %", most=100),
    Goal(figure="start.help_s", text="claude-batch --help, s", most=0.5),
    Goal(figure="start.import_s", text="import claude_batch_dagster, s over python", most=0.1),
)


def judge(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal with what was measured; `reached` is None where nothing was, or at another size."""
    figures = {f"{report['bench']}.{name}": (figure, report["rows"]) for report in reports for name, figure in report["figures"].items()}
    judged = []
    for goal in GOALS:
        found, rows = figures.get(goal.figure, (None, 0))
        value = found["value"] if found else None
        at_size = goal.rows is None or rows == goal.rows
        judged.append(
            {
                "figure": goal.figure,
                "goal": goal.text,
                "limit": f">= {goal.least:g}" if goal.least is not None else f"<= {goal.most:g}",
                "value": value,
                "unit": found["unit"] if found else None,
                "rows": rows,
                "at_size": at_size,
                "reached": None if value is None else goal.is_reached(value),
            }
        )
    return judged


def show_goals(judged: Iterable[Mapping[str, Any]]) -> str:
    """Return the table goal | limit | measured | reached."""
    rows = [["goal", "limit", "measured", "reached"]]
    for one in judged:
        if one["value"] is None:
            rows.append([one["goal"], one["limit"], "-", "not measured"])
            continue
        size = "" if one["at_size"] else f", but at {one['rows']:,} rows"
        rows.append([one["goal"], one["limit"], f"{one['value']:,.4g}", ("yes" if one["reached"] else "NO") + size])
    return "\n".join(align(rows))
