"""What holds for every test: a clean environment, and no talk to anything but loopback."""

import ipaddress
import os
import signal
import socket
import sys

from hypothesis import settings

# A machine's own settings must not decide a test, nor a test spend its owner's money.
FOREIGN_VARIABLES = ("ANTHROPIC_", "AWS_", "AZURE_", "CLAUDE_BATCH_", "DAGSTER_", "GOOGLE_", "TEMPORAL_")
LOOPBACK_NAMES = {"", "localhost", "0.0.0.0", "::", socket.gethostname()}
# Port 9 of loopback takes no connection: clients in child processes and in Rust, which the audit hook cannot see, end there.
NOWHERE = "http://127.0.0.1:9"
LOOPBACK = "localhost,127.0.0.1,::1"

settings.register_profile("default", deadline=None)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)


class OutsideError(RuntimeError):
    """A test reached for another machine."""


def pytest_configure() -> None:
    """Clear the environment that tests and their child processes inherit, and guard the sockets."""
    for name in [name for name in os.environ if name.startswith(FOREIGN_VARIABLES)]:
        del os.environ[name]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ[name] = os.environ[name.upper()] = NOWHERE
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = LOOPBACK
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    # A background job's shell ignores signals and hands that on, down to the processes that tests interrupt and hang up.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    settings.load_profile("ci" if os.environ.get("CI") else "default")
    sys.addaudithook(_refuse_outside)


def _refuse_outside(event: str, arguments: tuple[object, ...]) -> None:
    match event, arguments:
        case (("socket.connect" | "socket.sendto" | "socket.sendmsg"), (_, (str() as host, *_))):
            pass
        case "socket.getaddrinfo", ((str() | bytes()) as name, *_):
            host = name.decode() if isinstance(name, bytes) else name
        case _:
            return
    if not _is_loopback(host):
        raise OutsideError(f"{event} to {host!r}: tests talk to loopback only. Use the simulator, or a store in tmp_path.")


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
