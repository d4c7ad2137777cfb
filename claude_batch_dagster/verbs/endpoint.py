"""Whose API the work goes to, under the name that records carry; and the root that belongs to it."""

import os
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from claude_batch_dagster.core.errors import CredentialsError, VendorUnavailableError
from claude_batch_dagster.storage.store import absolute_uri, join_uri

ANTHROPIC = "anthropic"
SIMULATOR = "simulator"
ANTHROPIC_HOST = "api.anthropic.com"
SIMULATOR_HEADER = "simulator"
DEFAULT_ROOT = ".claude_batch"
SIMULATED_FOLDER = "simulated"
PROBE_TIMEOUT_S = 2.0
ANSWER_COMMAND = re.compile(r"claude-batch answer r\d+(?: \d+)? (?:adopt BATCH|resend|abandon|resume)")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def default_root(environ: Mapping[str, str] = os.environ) -> str:
    """Return the root that the environment names, absolute; the part for simulated work is below it (`root_for`)."""
    return absolute_uri(environ.get("CLAUDE_BATCH_ROOT") or DEFAULT_ROOT)


def is_simulated(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether CLAUDE_BATCH_SIMULATE asks for simulated work."""
    return environ.get("CLAUDE_BATCH_SIMULATE", "").strip().lower() in ("1", "true", "yes", "on")


def name_root(question: str, root: str) -> str:
    """Return a run's question with the root in each command that answers it: it can be typed anywhere, whatever the environment names.

    >>> name_root("Raise the limit; at once with: claude-batch answer r1 resume", "/data/root/simulated")
    'Raise the limit; at once with: claude-batch answer r1 resume --root /data/root --simulate'
    """
    return ANSWER_COMMAND.sub(lambda found: f"{found[0]} {root_options(root)}", question)


def root_options(root: str) -> str:
    """Return the options by which any command finds a root."""
    base = root.removesuffix(f"/{SIMULATED_FOLDER}")
    return shlex.join(["--root", base, *([] if base == root else ["--simulate"])])


def has_credentials(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the environment says whom to ask: a key or an address."""
    return any(environ.get(name, "").strip() for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"))


def resolve_endpoint(*, simulate: bool, environ: Mapping[str, str] = os.environ, needs_key: bool = True) -> str:
    """Return the endpoint's name: `anthropic`, `simulator`, or `host_port` of ANTHROPIC_BASE_URL.

    A server at ANTHROPIC_BASE_URL is asked once who it is.

    Args:
        simulate: Work is simulated whatever the environment says.
        environ: The environment.
        needs_key: False for a preview, and where the worker, which alone needs the key, is somebody else's (an external Temporal).

    Raises:
        CredentialsError: Terminal. Neither a key, nor an address, nor simulation.
        VendorUnavailableError: Transient. ANTHROPIC_BASE_URL is on this machine and nothing answers there.
    """
    if simulate or is_simulated(environ):
        return SIMULATOR
    if base_url := environ.get("ANTHROPIC_BASE_URL", "").strip():
        return _name_endpoint(base_url)
    if needs_key and not has_credentials(environ):
        raise CredentialsError(
            "There is no API key: ANTHROPIC_API_KEY is not set. Nothing was sent. "
            "Set it (export ANTHROPIC_API_KEY=sk-ant-...), or try everything without a key and without cost: --simulate, "
            "or CLAUDE_BATCH_SIMULATE=1 (in Dagster also the resource's simulate=True)."
        )
    return ANTHROPIC


def root_for(root: str, endpoint: str) -> str:
    """Return the root for an endpoint's work, absolute: simulated work has one of its own, so that it never spoils a real one."""
    uri = absolute_uri(root)
    is_below = uri.rpartition("/")[2] == SIMULATED_FOLDER
    return join_uri(uri, SIMULATED_FOLDER) if endpoint == SIMULATOR and not is_below else uri


def _name_endpoint(base_url: str) -> str:
    parts = urlsplit(base_url if "//" in base_url else f"//{base_url}")
    host = parts.hostname or base_url
    if host == ANTHROPIC_HOST:
        return ANTHROPIC
    if SIMULATOR_HEADER in _server_header(base_url, host):
        return SIMULATOR
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return f"{host}_{port}"


def _server_header(base_url: str, host: str) -> str:
    try:
        # A proxy is for the world, not for this machine.
        handlers = [urllib.request.ProxyHandler({})] if host in LOOPBACK_HOSTS else []
        with urllib.request.build_opener(*handlers).open(base_url, timeout=PROBE_TIMEOUT_S) as reply:
            return str(reply.headers.get("server", "")).lower()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return str(refusal.headers.get("server", "")).lower()
    except (OSError, ValueError) as error:
        if host in LOOPBACK_HOSTS:
            # A simulator that is not up yet would be taken for a vendor of its own, and its name be pinned in a real root.
            raise VendorUnavailableError(
                f"Nothing answers at ANTHROPIC_BASE_URL={base_url} ({error}). Nothing was sent. "
                "Start the server there, or unset ANTHROPIC_BASE_URL."
            ) from error
        return ""
