"""The resource: where the records and outputs lie, what a run may cost, how Temporal is reached. Its `run` is the body of the assets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import ConfigDict, Field

from claude_batch_dagster.assets.asked import AskedAsset, asked_assets
from claude_batch_dagster.assets.decorator import RUN_CONFIG
from claude_batch_dagster.assets.translator import IO_MANAGER_KEY
from claude_batch_dagster.core.errors import UsageError
from claude_batch_dagster.core.shard import MAX_REQUESTS
from claude_batch_dagster.reporting.history import read_history
from claude_batch_dagster.reporting.metadata import check_result, unpublished_result
from claude_batch_dagster.reporting.report import Event, Report
from claude_batch_dagster.resources.deferring import (
    ALREADY_COLLECTED,
    describe_deferring,
    is_executed_again,
    observe_deferred,
    read_collected,
)
from claude_batch_dagster.resources.io_manager import ClaudeBatchIOManager, count_statuses, outputs_folder
from claude_batch_dagster.resources.sources import find_source, name_tables
from claude_batch_dagster.resources.waiting import carry_out, connected, external_server, final_terminations, readable_failures
from claude_batch_dagster.storage.dataset import TableSnapshot
from claude_batch_dagster.storage.store import Store, join_uri
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.endpoint import default_root, is_simulated, resolve_endpoint, root_for
from claude_batch_dagster.verbs.job import DEFAULT_MAX_ATTEMPTS, DEFAULT_MAX_IN_FLIGHT_BATCHES, Job, Target

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from claude_batch_dagster.core.records import DeferralRecord
    from claude_batch_dagster.verbs.views import Views

RESOURCE_KEY = "claude_batch"
DEFAULT_MAX_COST_USD = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a resource's work is.

    Attributes:
        root: Simulated work's own where the work is simulated.
        endpoint: Who answers.
        external: The user's own Temporal, None for the root's embedded one.
    """

    root: str
    endpoint: str
    external: Connection | None


class ClaudeBatchResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Carries out the plans of `@claude_batch_assets`.

    What one run does otherwise stands in the config of the assets' op, which wins over the fields here: see `claude_batch_assets`.
    Ranges are checked when a run begins, not here: a field may be a `dg.EnvVar`, whose value is not known before.
    """

    # A field that is spelled wrong, a cap for instance, must not be passed over.
    model_config = ConfigDict(extra="forbid")

    root: str | None = Field(
        default=None,
        description="Folder or URL (s3://, gs://, az://) of the records and responses. Default: CLAUDE_BATCH_ROOT, else .claude_batch. "
        "Simulated work goes to the folder `simulated` below it.",
    )
    output: str | None = Field(
        default=None,
        description="Folder or URL below which each asset's output lies, under the asset's key. Default: `output` below the root.",
    )
    max_cost_usd: float | None = Field(
        default=DEFAULT_MAX_COST_USD,
        description="What one run may cost in the worst case, in USD. A plan above it is refused before anything is sent. None lifts the cap.",
    )
    limit: int | None = Field(
        default=None,
        description="Only the source's first rows, so many in all: to try a task. They are not paid again in the full run. Default: all rows.",
    )
    preflight: bool = Field(
        default=True,
        description="Try a new task once on a fixed sample text, never on a row of yours, before its first batch is sent.",
    )
    simulate: bool = Field(
        default=False,
        description="Ask a simulator instead of Claude: no key, no cost, answers marked [simulated]. CLAUDE_BATCH_SIMULATE=1 does the same.",
    )
    replace: bool = Field(
        default=False,
        description="Write over an output that holds another endpoint's answers or, with a limit, all rows. Files of others are never replaced.",
    )
    max_requests_per_batch: int = Field(default=MAX_REQUESTS, description="At most so many requests in a Message Batch.")
    max_in_flight_batches: int = Field(
        default=DEFAULT_MAX_IN_FLIGHT_BATCHES, description="At most so many batches of a run in progress at once."
    )
    max_attempts: int = Field(
        default=DEFAULT_MAX_ATTEMPTS,
        description="How often a request is asked at most, where the first answer was a passing failure.",
    )
    temporal_address: str | None = Field(
        default=None,
        description="host:port of your Temporal. Default: TEMPORAL_ADDRESS; without it a server and a worker of the root's own are started.",
    )
    temporal_namespace: str | None = Field(default=None, description="Temporal namespace. Default: TEMPORAL_NAMESPACE, else `default`.")
    task_queue: str | None = Field(
        default=None, description="Task queue of the workers. Default: CLAUDE_BATCH_TASK_QUEUE, else `claude-batch`."
    )
    temporal_ui_url: str | None = Field(default=None, description="Where Temporal's UI is, for links. Default: CLAUDE_BATCH_TEMPORAL_UI.")

    @classmethod
    def _is_dagster_maintained(cls) -> bool:
        return False

    def run(self, context: dg.AssetExecutionContext) -> Iterator[Event]:
        """Ask what is not answered yet about the selected assets and partitions, wait, and publish.

        Yields:
            A materialization and a check result for each selected asset; nothing where the run is deferred (`wait_for`). Where partitions
            failed: a materialization for each other partition, before the failure that names them.

        Raises:
            dg.Failure: Nothing, or not everything, was published; the description says why.
        """
        with readable_failures(), final_terminations(context):
            self._refuse_lost_fields(context)
            asked = asked_assets(context.assets_def)
            selected = {key: asked[key] for key in sorted(context.selected_asset_keys)}
            if selected:
                yield from self._materialize(context, selected)
            else:
                yield from self._check(context)

    def _materialize(self, context: dg.AssetExecutionContext, selected: Mapping[dg.AssetKey, AskedAsset]) -> Iterator[Event]:
        first = next(iter(selected.values()))
        simulate = self.simulate or is_simulated(os.environ)
        place = self.find_place(needs_key=True)
        root, endpoint = place.root, place.endpoint
        folder = outputs_folder(self.root_uri, self.output, endpoint)
        collects, collected = read_collected(context, root)
        if collects is not None and collected is None and not is_executed_again(context):
            context.log.info(ALREADY_COLLECTED)
            return
        partitions = _partitions_of(context, collects=collected is not None)
        _warn_of_new_root(context, place, list(selected))
        source = find_source(
            first.source,
            root=root,
            outputs=folder,
            partitions=partitions,
            partitions_def=context.assets_def.partitions_def,
            upstream=context.assets_def.dependency_keys,
            context=context,
            kept=collected.snapshot if collected is not None else None,
        )
        choices = self._choose(context) if collected is None else _Choices.of(collected)
        with connected(place.external, root, simulate=simulate) as reached:
            connection = reached.connection
            job = Job(
                root=root,
                endpoint=endpoint,
                temporal_namespace=connection.namespace,
                source=source,
                targets=tuple(
                    Target(task=one.task, output=join_uri(folder, *key.path), columns=one.columns) for key, one in selected.items()
                ),
                partitions=partitions,
                max_cost_usd=choices.max_cost_usd,
                max_requests_per_batch=self.max_requests_per_batch,
                max_in_flight_batches=self.max_in_flight_batches,
                max_attempts=self.max_attempts,
                replace=choices.replace,
                limit=choices.limit,
                ask_again=choices.ask_again,
                retry_failed=choices.retry_failed,
                fail_above=first.fail_above,
                preflight=self.preflight,
                dagster_run_id=context.run.run_id,
            )
            deferring = describe_deferring(
                context,
                list(selected),
                first.wait_for,
                collects=collects if collected is not None else None,
                kept=name_tables(source) if isinstance(first.source, TableSnapshot) else None,
            )
            result = carry_out(context, job, reached, deferring)
        if result.deferred is not None:
            observe_deferred(context, list(selected), job, result.deferred, connection)
            return
        from claude_batch_dagster.storage.source import Source

        report = Report(context=context, job=job, result=result, connection=connection, selected=selected, source=Source(source))
        yield from report.published()

    def _check(self, context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
        """Look at what is published: a check that is run alone asks nothing."""
        from claude_batch_dagster.storage.published import list_published

        folder = outputs_folder(self.root_uri, self.output, self._endpoint(needs_key=False))
        asked = asked_assets(context.assets_def)
        for check in sorted(context.selected_asset_check_keys):
            place, one = join_uri(folder, *check.asset_key.path), asked[check.asset_key]
            if list_published(Store(place)):
                files = join_uri(place, *(["*"] if one.source.partition_column else []), "*.parquet")
                yield check_result(check.asset_key, check.name, count_statuses(place, check.asset_key), keys=one.carried_keys, file=files)
            else:
                yield unpublished_result(check.asset_key, check.name)

    def _choose(self, context: dg.AssetExecutionContext) -> "_Choices":
        config = context.op_execution_context.op_config
        given: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
        # A body with a config of its own may have some of them.
        chosen = {name: given[name] for name in RUN_CONFIG if given.get(name) is not None}
        return _Choices(
            limit=chosen.get("limit", self.limit),
            ask_again=tuple(str(key) for key in chosen.get("ask_again", ())),
            retry_failed=chosen.get("retry_failed", False),
            replace=chosen.get("replace", self.replace),
            max_cost_usd=chosen.get("max_cost_usd", self.max_cost_usd),
        )

    def _refuse_lost_fields(self, context: dg.AssetExecutionContext) -> None:
        """Refuse a run config that resets fields of the definitions: Dagster replaces a configured resource whole (1.13.27, measured).

        With the root it would lose the answers that are there, and pay for them again.
        """
        run_config: Mapping[str, Any] = context.run.run_config
        for name, entry in (run_config.get("resources") or {}).items():
            schema = context.job_def.resource_defs[name].config_schema
            defined = schema.default_value if schema.default_provided else None
            # The resource may have another name than ours; the IO manager has not.
            if not isinstance(defined, Mapping) or not (name == IO_MANAGER_KEY or "max_in_flight_batches" in defined):
                continue
            given = (entry or {}).get("config") or {}
            lost = [field for field, value in defined.items() if field not in given and value != type(self).model_fields[field].default]
            if lost:
                raise UsageError(
                    f"The run config sets {', '.join(sorted(given)) or 'nothing'} of the resource {name!r}. Dagster then takes nothing from your "
                    f"Definitions, and {', '.join(sorted(lost))} would be lost. Nothing was sent. Put {', '.join(RUN_CONFIG)} under ops: "
                    f"{context.op_def.name}: config instead, or repeat every field of the resource."
                )

    def find_place(self, *, needs_key: bool) -> "Place":
        """Return where the work is: the environment is read now.

        Raises:
            CredentialsError: Terminal. A key is needed, and there is none.
        """
        external = external_server(self.temporal_address, self.temporal_namespace, self.task_queue, self.temporal_ui_url)
        endpoint = self._endpoint(needs_key=needs_key and external is None)
        return Place(root=root_for(self.root_uri, endpoint), endpoint=endpoint, external=external)

    def open_views(self) -> "AbstractContextManager[Views]":
        """Open the outputs, answers, costs and runs of this resource as SQL views of a `views.connection` to DuckDB; nothing can be written.

        Raises:
            RootError: Terminal. DuckDB is not installed, or the root cannot be read.
        """
        from claude_batch_dagster.verbs.views import open_views

        endpoint = self._endpoint(needs_key=False)
        return open_views(root_for(self.root_uri, endpoint), [self.output] if self.output else [])

    @property
    def root_uri(self) -> str:
        """The root, before simulated work is put apart."""
        return self.root or default_root(os.environ)

    def _endpoint(self, *, needs_key: bool) -> str:
        return resolve_endpoint(simulate=self.simulate, environ=os.environ, needs_key=needs_key)


def claude_batch_resources(
    *,
    root: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    max_cost_usd: float | None = DEFAULT_MAX_COST_USD,
    simulate: bool = False,
    **fields: Any,
) -> dict[str, object]:
    """Return the resources of a code location: `claude_batch`, and the IO manager with which downstream assets load the outputs.

    Args:
        root: Folder or URL of the records and responses; CLAUDE_BATCH_ROOT, else .claude_batch, unless told otherwise.
        output: Folder or URL of the outputs; `output` below the root unless told otherwise.
        max_cost_usd: What one run may cost in the worst case, None for no cap.
        simulate: Ask a simulator instead of Claude.
        fields: Any other field of ClaudeBatchResource.
    """
    root, output = (os.fspath(one) if isinstance(one, os.PathLike) else one for one in (root, output))
    return {
        RESOURCE_KEY: ClaudeBatchResource(root=root, output=output, max_cost_usd=max_cost_usd, simulate=simulate, **fields),
        IO_MANAGER_KEY: ClaudeBatchIOManager(root=root, output=output, simulate=simulate),
    }


def _partitions_of(context: dg.AssetExecutionContext, *, collects: bool) -> tuple[str, ...] | None:
    # A run of a partition may have assets without partitions beside those that it is of.
    if context.assets_def.partitions_def is None:
        return None
    if not context.has_partition_key and not context.has_partition_key_range:
        if collects:
            # Asked and paid before this was refused.
            return None
        keys = [key.to_user_string() for key in sorted(context.selected_asset_keys)]
        raise UsageError(
            f"The run has no partition, and {', '.join(keys)} {'is' if len(keys) == 1 else 'are'} partitioned: it would ask about all partitions "
            "at once. Nothing was sent. Choose a partition or a range of them; in a schedule use dg.build_schedule_from_partitioned_job, "
            "in a sensor RunRequest(partition_key=...)."
        )
    return tuple(context.partition_keys)


def _warn_of_new_root(context: dg.AssetExecutionContext, place: Place, keys: Sequence[dg.AssetKey]) -> None:
    from claude_batch_dagster.storage.plans import read_root

    if read_root(Store(place.root)) is not None:
        return
    before = [key for key in keys if any(past.endpoint == place.endpoint for past in read_history(context.instance, key, limit=1))]
    if before:
        context.log.warning(
            f"The root {place.root} is new, and {', '.join(key.to_user_string() for key in before)} was materialized before, from another root: what was "
            "answered there is asked, and paid, again. If that is not meant, terminate this run and name the old root by its absolute path."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choices:
    """What this run does: its config, else the resource."""

    limit: int | None
    replace: bool
    max_cost_usd: float | None
    ask_again: tuple[str, ...] = ()
    retry_failed: bool = False

    @classmethod
    def of(cls, collected: "DeferralRecord") -> "_Choices":
        """Return those of the run that was deferred; what it was to ask again, it asked."""
        return cls(limit=collected.limit, replace=collected.replace, max_cost_usd=collected.max_cost_usd)
