"""The sensor that sees deferred runs to their end: it requests the run that publishes, and one that fails where a person is asked.

A tick is one list of the deferrals, one of the runs that are over, and one of the workflows that run (a page for each 1,000); at most 100
records are read, those of which something can be done.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import dagster as dg

from claude_batch_dagster.assets.asked import asked_assets
from claude_batch_dagster.core.errors import TemporalUnavailableError, UsageError
from claude_batch_dagster.resources.deferring import COLLECTS_TAG, SENSOR_METADATA_KEY
from claude_batch_dagster.resources.resource import RESOURCE_KEY, ClaudeBatchResource

if TYPE_CHECKING:
    from claude_batch_dagster.verbs.connection import Connection
    from claude_batch_dagster.verbs.defer import Deferral
    from claude_batch_dagster.verbs.ended import Question

_BY_RECORDS = "Runs that are over are collected all the same; one that was terminated by hand, or asks a question, is not seen."
_STRANGER = "its deferred run is another sensor's, or the asset is gone. Where loading prefixed its key, give build_claude_batch_sensor what loading returned."
DEFERRED_BY_TAG = "claude_batch/deferred_by"
QUESTION_TAG = "claude_batch/question"
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
MOST_REQUESTED = 3
"""So many runs are requested for one end where each fails without having published: killed, or the disk was full."""
AGAIN_AFTER_S = 600.0
MOST_LISTED = 20
MOST_NOTES = 5


def build_claude_batch_sensor(
    *definitions: dg.AssetsDefinition | Sequence[dg.AssetsDefinition],
    name: str = "claude_batch_sensor",
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    resource_key: str = RESOURCE_KEY,
) -> dg.SensorDefinition:
    """Return the sensor that collects what runs of these assets deferred (`wait_for`).

    Once the batch runs of a deferred run are over, finished, failed or canceled, it requests one run of the same assets and partitions:
    that one publishes, and its checks run, or it fails and says why. Where a batch run waits for a person, it requests one run that fails
    at once with the question and the line to type, so that whatever tells you of failed runs tells you of this one.

    It needs the resource `claude_batch`. It knows the assets by their keys: where loading prefixes these (`load_assets_from_modules`), give it
    what loading returned.

    Args:
        definitions: Made by `claude_batch_assets`; a list of them is taken too.
        name: Of the sensor.
        minimum_interval_seconds: Between two looks.
        default_status: Running unless told otherwise: a deferred run that no sensor collects is never published.
        resource_key: Of the ClaudeBatchResource that deferred the runs.

    Raises:
        UsageError: Terminal. No definitions, or one that `claude_batch_assets` did not make.
    """
    # A key is a tuple too.
    given: list[dg.AssetsDefinition] = []
    for one in definitions:
        given += one if isinstance(one, list) else [cast(dg.AssetsDefinition, one)]
    if not given:
        raise UsageError(
            "build_claude_batch_sensor has no assets, so there is nothing to collect. Give it the definitions whose runs are deferred."
        )
    ops = {key: definition.op.name for definition in given for key in _asked_keys(definition)}
    keys = sorted(ops)

    @dg.sensor(
        name=name,
        asset_selection=dg.AssetSelection.assets(*keys),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={resource_key},
        description="Requests the run that publishes what a deferred run asked, once its batches are over.",
        metadata={SENSOR_METADATA_KEY: ", ".join(key.to_user_string() for key in keys)},
    )
    def collect(context: dg.SensorEvaluationContext, **_resources: object) -> dg.SensorResult | dg.SkipReason:
        # A test that calls a sensor hands it its resources by name, the daemon does not.
        return _tick(context, getattr(context.resources, resource_key), ops)

    return collect


def _asked_keys(definition: object) -> list[dg.AssetKey]:
    if isinstance(definition, dg.AssetsDefinition):
        with suppress(UsageError):
            return list(asked_assets(definition))
    name = ", ".join(key.to_user_string() for key in definition.keys) if isinstance(definition, dg.AssetsDefinition) else repr(definition)
    raise UsageError(
        f"build_claude_batch_sensor was given {name}, which is no asset of @claude_batch_assets. Give it what the decorator returned."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """What Temporal says.

    Attributes:
        questions: The runs whose workflow runs, each with its question; None where it cannot be asked.
        stopped: There is no server now: the embedded one was stopped, with every run.
        problem: Why it cannot be asked.
    """

    questions: Mapping[int, str] | None = None
    stopped: bool = False
    problem: str | None = None


def _tick(
    context: dg.SensorEvaluationContext, resource: ClaudeBatchResource, ops: Mapping[dg.AssetKey, str]
) -> dg.SensorResult | dg.SkipReason:
    from claude_batch_dagster.storage.deferrals import list_deferrals
    from claude_batch_dagster.storage.store import Store
    from claude_batch_dagster.verbs.ended import look_at_deferrals

    place = resource.find_place(needs_key=False)
    store = Store(place.root)
    names = list_deferrals(store)
    if not names:
        return dg.SkipReason("No run is deferred.")
    running = _ask_temporal(place.external, place.root)
    if running.problem is not None:
        context.log.warning(running.problem)

    def has_ended(run_id: str) -> bool:
        run = context.instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    look = look_at_deferrals(store, names, running.questions, after=context.cursor or None, has_ended=has_ended)
    own = [deferral for deferral in look.idle if _keys(deferral) & ops.keys()]
    # Whoever comes first starts a stopped server again, and with it every run.
    idle = own[:1] if running.stopped else own
    notes = [running.problem] if running.problem else []
    strangers = [deferral for deferral in (*look.ended, *look.idle) if not _keys(deferral) & ops.keys()]
    notes += [f"This sensor has no {_name(deferral)}: {_STRANGER}" for deferral in strangers]
    requests: list[dg.RunRequest] = []
    for deferral in (*(deferral for deferral in look.ended if deferral not in strangers), *idle):
        before = _find_requested(context.instance, deferral)
        if _may_request(before):
            requests.append(_request(deferral, ops, len(before) + 1))
        elif not before[0].dagster_run.is_finished:
            notes.append(f"Run {before[0].dagster_run.run_id[:8]} is to publish {_name(deferral)}.")
        elif len(before) >= MOST_REQUESTED:
            notes.append(f"{len(before)} runs that were to publish {_name(deferral)} failed, no further one is requested: materialize it.")
    requests += [_request_failure(question, ops) for question in look.questions if _keys(question.deferral) & ops.keys()]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else _tell_waiting(look.deferred - len(strangers), notes),
        cursor=look.after or "",
    )


def _ask_temporal(external: "Connection | None", root: str) -> _Running:
    from claude_batch_dagster.verbs.ended import list_running

    connection = external
    if connection is None:
        from claude_batch_dagster.embedded import find_stack, has_ended

        stack = find_stack(root)
        if stack is None:
            if has_ended(root):
                return _Running(questions={}, stopped=True)
            return _Running(problem=f"The Temporal server of {root} is not on this machine. {_BY_RECORDS}")
        connection = stack.connection
    try:
        return _Running(questions=asyncio.run(list_running(connection, root)))
    except TemporalUnavailableError as error:
        return _Running(problem=f"{error} {_BY_RECORDS}")


def _find_requested(instance: dg.DagsterInstance, deferral: "Deferral") -> Sequence[dg.RunRecord]:
    """Return the runs that were to collect this end, the newest first, those that somebody started again too."""
    tags = {COLLECTS_TAG: deferral.name, DEFERRED_BY_TAG: deferral.record.dagster_run_id or ""}
    found = instance.get_run_records(dg.RunsFilter(tags=tags), limit=MOST_LISTED)
    return [record for record in found if QUESTION_TAG not in record.dagster_run.tags]


def _may_request(before: Sequence[dg.RunRecord]) -> bool:
    """Tell whether no run is on its way, or was terminated, and the last one has not failed a moment ago, or once too often."""
    if not before:
        return True
    has_failed = before[0].dagster_run.status is dg.DagsterRunStatus.FAILURE
    return has_failed and len(before) < MOST_REQUESTED and time.time() - (before[0].end_time or 0.0) >= AGAIN_AFTER_S


def _request(deferral: "Deferral", ops: Mapping[dg.AssetKey, str], number: int) -> dg.RunRequest:
    # A job that is deferred again, under the same name too, is collected again.
    run_key = f"{deferral.name}/{deferral.record.dagster_run_id}" + (f"/{number}" if number > 1 else "")
    return _run_request(deferral, ops, run_key=run_key, tags={})


def _request_failure(question: "Question", ops: Mapping[dg.AssetKey, str]) -> dg.RunRequest:
    digest = hashlib.sha256(question.text.encode()).hexdigest()[:16]
    tags = {QUESTION_TAG: question.run.label}
    return _run_request(question.deferral, ops, run_key=f"question/{question.run.run_id}/{digest}", tags=tags)


def _run_request(deferral: "Deferral", ops: Mapping[dg.AssetKey, str], *, run_key: str, tags: Mapping[str, str]) -> dg.RunRequest:
    # Those that are left of them in this code location: the answers of a removed or renamed one are kept.
    record, keys = deferral.record, sorted(_keys(deferral) & ops.keys())
    named: dict[str, str] = {**tags, COLLECTS_TAG: deferral.name}
    if record.dagster_run_id is not None:
        named[DEFERRED_BY_TAG] = record.dagster_run_id
    partitions = record.partitions or ()
    if len(partitions) > 1:
        named |= {RANGE_START_TAG: partitions[0], RANGE_END_TAG: partitions[-1]}
    return dg.RunRequest(
        run_key=run_key,
        asset_selection=keys,
        partition_key=partitions[0] if len(partitions) == 1 else None,
        run_config={"ops": {ops[keys[0]]: {"config": record.config}}} if record.config else {},
        tags=named,
    )


def _keys(deferral: "Deferral") -> set[dg.AssetKey]:
    return {dg.AssetKey(path) for path in deferral.record.assets}


def _name(deferral: "Deferral") -> str:
    assets = ", ".join(key.to_user_string() for key in sorted(_keys(deferral)))
    partitions = deferral.record.partitions or ()
    return assets + (f" ({' to '.join(dict.fromkeys((partitions[0], partitions[-1])))})" if partitions else "")


def _tell_waiting(waiting: int, notes: Sequence[str]) -> str:
    number = f"{waiting:,} deferred {'run waits' if waiting == 1 else 'runs wait'} for {'its' if waiting == 1 else 'their'} batches."
    return " ".join([*([number] if waiting or not notes else []), *notes[:MOST_NOTES]])
