from typing import Any

import pytest

from claude_batch_dagster.core.errors import ClaudeBatchError, TaskError, UsageError
from claude_batch_dagster.core.presets import Summarize
from claude_batch_dagster.core.prompt_function import PromptFunction
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.verbs.job import Job, Target


def task(name: str) -> ClaudeTask:
    return Summarize(name=name, column="text", model="claude-haiku-5-5")


def job(*targets: Target, **more: Any) -> Job:
    source = ParquetDataset(path="/data/reviews", key="id", partition_column="day")
    fixed = {"root": "/root", "endpoint": "simulator", "temporal_namespace": "default", "source": source}
    return Job(**fixed | {"targets": targets or (Target(task=task("t"), output="/out"),)} | more)


def test_the_defaults_are_the_public_ones() -> None:
    found = job()
    assert (found.max_requests_per_batch, found.max_attempts, found.max_cost_usd, found.replace) == (100_000, 3, None, False)
    assert found.targets[0].columns == "key"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_requests_per_batch", 0),
        ("max_requests_per_batch", 100_001),
        ("max_in_flight_batches", 0),
        ("max_attempts", 0),
        ("max_attempts", 11),
    ],
)
def test_a_limit_out_of_range_is_refused_with_its_range(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"{name} is {value:,}; 1 to [0-9,]+ are possible\. Nothing was sent"):
        job(**{name: value})


@pytest.mark.parametrize("value", [1, 100_000])
def test_the_edges_of_a_range_are_taken(value: int) -> None:
    assert job(max_requests_per_batch=value).max_requests_per_batch == value


@pytest.mark.parametrize("cap", [-0.01, float("nan"), float("-inf")])
def test_a_cap_that_is_no_amount_is_refused(cap: float) -> None:
    with pytest.raises(UsageError, match=r"max_cost_usd is .*Nothing was sent"):
        job(max_cost_usd=cap)


def test_a_cap_of_nothing_is_one() -> None:
    assert job(max_cost_usd=0).max_cost_usd == 0


@pytest.mark.parametrize(
    ("names", "outputs", "kind", "said"),
    [
        ((), (), UsageError, "There is no task"),
        (("a" * 22 + "1", "a" * 22 + "2"), ("/o1", "/o2"), TaskError, "same first 22 characters"),
        (("a b", "a_b"), ("/o1", "/o2"), TaskError, "The tasks a b and a_b"),
        (("a", "b"), ("/o", "/o"), UsageError, "Two tasks write to /o"),
        (("a", "b"), ("/o", "/o/"), UsageError, "Two tasks write to /o"),
    ],
)
def test_tasks_that_could_not_be_told_apart_are_refused(
    names: tuple[str, ...], outputs: tuple[str, ...], kind: type[ClaudeBatchError], said: str
) -> None:
    targets = tuple(Target(task=task(name), output=output) for name, output in zip(names, outputs, strict=True))
    with pytest.raises(kind, match=said) as refused:
        job(targets=targets)
    assert "Nothing was sent" in str(refused.value)


def test_a_job_claims_its_outputs_and_its_root() -> None:
    marker, record = job().marker(), job().root_record("id")
    assert (marker.source, marker.endpoint, marker.partition_column) == ("/data/reviews", "simulator", "day")
    assert (record.root_id, record.endpoint, record.temporal_namespace) == ("id", "simulator", "default")


def test_two_functions_that_pass_for_one_are_refused() -> None:
    """Each task would get the other's answers: of a function a task knows the name only."""

    def ask(name: str, prompt: PromptFunction, version: int = 1) -> Target:
        return Target(task=ClaudeTask(name=name, model="claude-haiku-5-5", prompt=prompt, version=version, max_tokens=9), output=f"/{name}")

    one, other = (lambda row: "one"), (lambda row: "other")
    with pytest.raises(TaskError, match=r"The tasks a and c have two prompt functions of one name and version.*Nothing was sent"):
        job(targets=(ask("a", one), ask("b", one, 2), ask("c", other)))
    assert job(targets=(ask("a", one), ask("b", one), ask("c", other, 2))).targets


class Asker:
    def ask(self, row: object) -> str:
        return "x"


def test_a_method_is_one_function_however_often_it_is_looked_up() -> None:
    asker = Asker()
    targets = [
        Target(task=ClaudeTask(name=name, model="claude-haiku-5-5", prompt=asker.ask, version=1, max_tokens=9), output=f"/{name}")
        for name in "ab"
    ]
    assert job(targets=tuple(targets)).targets
