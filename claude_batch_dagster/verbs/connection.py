"""How to reach Temporal: the user's own server through Temporal's own configuration, or the embedded one."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from claude_batch_dagster.core.contract import DEFAULT_TASK_QUEUE
from claude_batch_dagster.core.errors import TemporalUnavailableError

if TYPE_CHECKING:
    from temporalio.client import Client, WorkflowFailureError

CONNECT_TIMEOUT_S = 30.0
RETRY_EVERY_S = 0.5
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where a Temporal server is, and on which task queue the workers listen.

    Attributes:
        address: `host:port` of the gRPC front end.
        ui_url: Of Temporal's UI without a trailing slash, None where none is known.
        external: Whether Temporal's own configuration (TLS, API key, ...) applies; the embedded server has none.
        start: Starts the server and returns its address, where it is started by the first `connect` (`lazy_connection`).
        revive: Starts the server again where it died, at its former address; None for a server of the user's own.
    """

    address: str
    namespace: str = DEFAULT_NAMESPACE
    task_queue: str = DEFAULT_TASK_QUEUE
    ui_url: str | None = None
    external: bool = False
    start: Callable[[], str] | None = None
    revive: Callable[[], None] | None = field(default=None, compare=False)

    def workflow_url(self, workflow_id: str) -> str | None:
        """Return the page of a workflow in Temporal's UI, None where no UI is known."""
        if self.ui_url is None:
            return None
        return f"{self.ui_url}/namespaces/{self.namespace}/workflows/{workflow_id.replace('/', '%2F')}"


def task_queue_of(environ: Mapping[str, str]) -> str:
    """Return the task queue that the environment names."""
    return environ.get("CLAUDE_BATCH_TASK_QUEUE") or DEFAULT_TASK_QUEUE


def external_connection(environ: Mapping[str, str] = os.environ) -> Connection | None:
    """Return the connection that Temporal's own configuration names (TEMPORAL_ADDRESS, a profile), None where it names none."""
    from temporalio.envconfig import ClientConfigProfile

    profile = ClientConfigProfile.load(override_env_vars=dict(environ))
    if not profile.address:
        return None
    ui_url = environ.get("CLAUDE_BATCH_TEMPORAL_UI")
    return Connection(
        address=profile.address,
        namespace=profile.namespace or DEFAULT_NAMESPACE,
        task_queue=task_queue_of(environ),
        ui_url=ui_url.rstrip("/") if ui_url else None,
        external=True,
    )


def lazy_connection(
    start: Callable[[], str], environ: Mapping[str, str] = os.environ, *, revive: Callable[[], None] | None = None
) -> Connection:
    """Return a connection whose server is started when it is first needed: a job that asks nothing needs none.

    Args:
        start: Starts the embedded server (again: returns the same one) and returns its address.
        environ: The environment.
        revive: Starts it again where it died.
    """
    return Connection(address="embedded", task_queue=task_queue_of(environ), start=start, revive=revive)


async def connect(connection: Connection, timeout_s: float = CONNECT_TIMEOUT_S) -> "Client":
    """Return a client of a server that answers.

    Raises:
        TemporalUnavailableError: Transient. Nothing answered for `timeout_s`.
    """
    from temporalio.client import Client
    from temporalio.envconfig import ClientConfig
    from temporalio.service import RPCError

    settings = ClientConfig.load_client_connect_config() if connection.external else {}
    address = connection.start() if connection.start else connection.address
    settings["target_host"] = address
    settings["namespace"] = connection.namespace
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return await Client.connect(**settings)
        except (RuntimeError, RPCError) as error:
            if time.monotonic() >= deadline_s:
                raise TemporalUnavailableError(
                    f"The Temporal server at {address} (namespace {connection.namespace}) did not answer for {timeout_s:g} s: "
                    f"{error}. What was admitted is kept. Start the server, or correct TEMPORAL_ADDRESS (unset, a local server is started).",
                    address=address,
                ) from error
        await asyncio.sleep(RETRY_EVERY_S)


def find_reason(error: "WorkflowFailureError") -> str:
    """Return why a workflow failed, in the words of the activity that could not go on."""
    from temporalio.exceptions import ActivityError

    cause: BaseException = error.cause
    while isinstance(cause, ActivityError) and cause.cause is not None:
        cause = cause.cause
    return str(getattr(cause, "message", None) or cause)
