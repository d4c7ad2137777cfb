"""The connection over which a batch is sent."""

import socket
from urllib.request import getproxies

import httpx2

UNACKNOWLEDGED_S = 20.0
"""Of a body's bytes on the wire; far less than the time after which a batch must be in the list."""
ONE_USE = httpx2.Limits(max_keepalive_connections=0)
"""A kept connection may be dead already, and a POST that dies on it would look as if it might have arrived."""


def open_send_transport() -> httpx2.HTTPTransport | None:
    """Return a transport on which bytes that nobody acknowledges are given up soon, so that none arrives when nobody reckons with it.

    None where the system has no such setting, or a proxy stands between: then the client's own.
    """
    if not hasattr(socket, "TCP_USER_TIMEOUT") or getproxies():
        return None
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNACKNOWLEDGED_S * 1_000)),
    ]
    return httpx2.HTTPTransport(limits=ONE_USE, socket_options=options)
