"""Wires the worker's parts and runs it until it is told to stop."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import Worker

from claude_batch_dagster.core.contract import DEFAULT_TASK_QUEUE
from claude_batch_dagster.core.errors import CredentialsError, TemporalUnavailableError, TransientError, UsageError
from claude_batch_dagster.core.response import PriceUsage
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.verbs.endpoint import is_simulated
from claude_batch_dagster.verbs.estimate import price_usage, price_usages
from temporal_worker.activities import BatchActivities
from temporal_worker.audit import Auditor
from temporal_worker.batches import DOCTOR_TIMEOUT, Batches
from temporal_worker.collect import Collector
from temporal_worker.errands import AdoptWorkflow, DoctorWorkflow
from temporal_worker.examine import Examiner
from temporal_worker.harvest import Harvester
from temporal_worker.preflight import Preflights
from temporal_worker.recovery import AuditWorkflow, RecoverWorkflow, RecoveryActivities
from temporal_worker.runs import Runs
from temporal_worker.settle import Settler
from temporal_worker.submit import Submitter
from temporal_worker.workflows import BatchRunWorkflow

log = logging.getLogger("temporal_worker")

DEFAULT_ADDRESS = "localhost:7233"
CONNECT_S = 30.0
CONNECT_PAUSE_S = 0.5
DEFAULT_POLL_S = 30.0
LEAST_POLL_S = 0.2
DEFAULT_SETTLE_S = 60.0
DEFAULT_SEND_S = 15.0
SECONDS = (
    ("CLAUDE_BATCH_POLL_SECONDS", DEFAULT_POLL_S),
    ("CLAUDE_BATCH_SETTLE_SECONDS", DEFAULT_SETTLE_S),
    ("CLAUDE_BATCH_SEND_SECONDS", DEFAULT_SEND_S),
)
ACTIVITIES_AT_ONCE = 32
GRACE = timedelta(seconds=30)
BEAT_THROTTLE = timedelta(seconds=3)
ASK_TIMEOUT = timedelta(seconds=5)
STICKY_QUEUE = timedelta(seconds=5)
ANY_KEY = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says.

    Attributes:
        api_key: Never printed.
        base_url: None for Anthropic's own.
        poll_s: The shortest pause between two looks at a batch.
        settle_s: After so long, and more for large bodies, a created batch is in the vendor's list.
        send_s: What an upload may take besides its body's part.
        exit_with_parent: Whether the worker stops when its standard input ends.
    """

    api_key: str
    base_url: str | None
    task_queue: str
    poll_s: float
    settle_s: float = DEFAULT_SETTLE_S
    send_s: float = DEFAULT_SEND_S
    exit_with_parent: bool = False


def read_settings(environ: Mapping[str, str], *, exit_with_parent: bool = False) -> Settings:
    """Return the settings.

    Raises:
        UsageError: Terminal. A variable cannot be read.
        CredentialsError: Terminal. There is no key, and the vendor is not known to be the simulator.
    """
    poll_s, settle_s, send_s = (_read_seconds(environ, name, default_s) for name, default_s in SECONDS)
    base_url = environ.get("ANTHROPIC_BASE_URL") or None
    api_key = environ.get("ANTHROPIC_API_KEY") or None
    if api_key is None:
        simulated = is_simulated(environ) or (base_url is not None and _is_simulator(base_url))
        if not simulated:
            raise CredentialsError(
                "ANTHROPIC_API_KEY is not set. The worker did not start. Set it, or try things out against the simulator: "
                "CLAUDE_BATCH_SIMULATE=1 with ANTHROPIC_BASE_URL of a `claude-batch simulator`."
            )
        api_key = ANY_KEY
    return Settings(
        api_key=api_key,
        base_url=base_url,
        task_queue=environ.get("CLAUDE_BATCH_TASK_QUEUE") or DEFAULT_TASK_QUEUE,
        poll_s=max(LEAST_POLL_S, poll_s),
        settle_s=settle_s,
        send_s=send_s,
        exit_with_parent=exit_with_parent,
    )


def _read_seconds(environ: Mapping[str, str], name: str, default_s: float) -> float:
    text = environ.get(name, "").strip()
    try:
        seconds = float(text) if text else default_s
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise UsageError(
            f"{name} is {text!r}, which is no number of seconds. The worker did not start. Write a number, for instance {default_s:g}."
        )
    return seconds


async def run_worker(settings: Settings) -> None:
    """Work until SIGTERM, SIGINT or, where asked, the end of standard input.

    Raises:
        TemporalUnavailableError: Transient. No server within 30 s.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.exit_with_parent:
        threading.Thread(target=_wait_for_parent, args=(loop, stop), name="parent", daemon=True).start()
    client = await connect()
    batches = Batches(settings.api_key, settings.base_url)
    endpoint = await asyncio.to_thread(_describe_endpoint, batches)
    with ThreadPoolExecutor(ACTIVITIES_AT_ONCE, thread_name_prefix="activity") as threads:
        async with build_worker(client, settings, batches, threads, price_usage):
            address = client.service_client.config.target_host
            print(f"worker ready on task queue {settings.task_queue} at {address} (endpoint {endpoint})", flush=True)
            await stop.wait()
            log.info("stopping: attempts under way have %d s to end", GRACE.total_seconds())
    batches.close()


def _watch_cancels(client: Client) -> Callable[[], bool]:
    """Return what tells, in an activity's thread, whether somebody asked to cancel its workflow; no, where Temporal cannot be asked."""
    loop = asyncio.get_running_loop()

    async def ask(workflow_id: str, run_id: str | None) -> bool:
        found = await client.get_workflow_handle(workflow_id, run_id=run_id).describe(rpc_timeout=ASK_TIMEOUT)
        return bool(found.raw_description.workflow_extended_info.cancel_requested)

    def is_called_off() -> bool:
        info = activity.info()
        if info.workflow_id is None:
            return False
        try:
            return asyncio.run_coroutine_threadsafe(ask(info.workflow_id, info.workflow_run_id), loop).result()
        except RPCError as error:
            log.warning("Temporal does not say whether %s was canceled: %s", info.workflow_id, error)
            return False

    return is_called_off


def build_worker(client: Client, settings: Settings, batches: Batches, threads: ThreadPoolExecutor, price: PriceUsage) -> Worker:
    """Return a worker with its parts; it does not run yet."""
    preflights = Preflights(batches=batches, price_usage=price, clock=_now)
    activities = BatchActivities(
        runs=Runs(open_store=Store, batches=batches, price_usage=price, preflights=preflights, clock=_now),
        submitter=Submitter(
            open_store=Store, batches=batches, clock=_now, boot_s=_boot_s, send_s=settings.send_s, settle_s=settings.settle_s
        ),
        settler=Settler(open_store=Store, batches=batches, clock=_now),
        collector=Collector(open_store=Store, batches=batches, price_usage=price, price_usages=price_usages),
        batches=batches,
        examiner=Examiner(open_store=Store, batches=Batches(settings.api_key, settings.base_url, timeout=DOCTOR_TIMEOUT), clock=_now),
        poll_s=settings.poll_s,
        is_called_off=_watch_cancels(client),
    )
    recovery = RecoveryActivities(
        harvester=Harvester(open_store=Store, batches=batches, price_usage=price, clock=_now, poll_s=settings.poll_s),
        auditor=Auditor(open_store=Store, batches=batches, clock=_now),
    )
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=[BatchRunWorkflow, AdoptWorkflow, DoctorWorkflow, RecoverWorkflow, AuditWorkflow],
        activities=[
            activities.open_run,
            activities.submit,
            activities.find_candidates,
            activities.settle,
            activities.adopt_batch,
            activities.see_through,
            activities.cancel_batches,
            activities.close_shards,
            activities.open_round,
            activities.finish_run,
            activities.examine_vendor,
            recovery.harvest,
            recovery.audit,
        ],
        activity_executor=threads,
        max_concurrent_activities=ACTIVITIES_AT_ONCE,
        identity=f"claude-batch worker {os.getpid()}@{socket.gethostname()}",
        graceful_shutdown_timeout=GRACE,
        # The SDK's own throttle sends a beat only after four fifths of the heartbeat timeout.
        max_heartbeat_throttle_interval=BEAT_THROTTLE,
        sticky_queue_schedule_to_start_timeout=STICKY_QUEUE,
    )


async def connect() -> Client:
    """Connect to Temporal as its own environment variables and profile say.

    Raises:
        TemporalUnavailableError: Transient. No server within 30 s.
    """
    config = ClientConfig.load_client_connect_config()
    address = config.setdefault("target_host", DEFAULT_ADDRESS)
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"))))
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            return await Client.connect(**config, runtime=runtime)
        except (RPCError, RuntimeError) as error:
            if time.monotonic() >= deadline:
                raise TemporalUnavailableError(
                    f"No Temporal server at {address} within {CONNECT_S:.0f} s ({str(error).partition(chr(10))[0][:200]}). The worker did not "
                    "start. Start one, or correct TEMPORAL_ADDRESS."
                ) from error
            await asyncio.sleep(CONNECT_PAUSE_S)


def _is_simulator(base_url: str) -> bool:
    batches = Batches(ANY_KEY, base_url)
    try:
        return batches.find_endpoint() == "simulator"
    except TransientError:
        return False
    finally:
        batches.close()


def _describe_endpoint(batches: Batches) -> str:
    try:
        return batches.find_endpoint()
    except TransientError:
        return f"{batches.base_url}, not reachable yet"


def _wait_for_parent(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def _boot_s() -> float:
    """Return seconds on a clock that counts a suspended machine's sleep too, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _now() -> datetime:
    return datetime.now(UTC)
