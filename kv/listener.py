"""The listening socket: bound before anything is started, listening from when the data can be served.

Owns how the port is reserved and what is said when it cannot be used. Until `listen`, clients are refused; from then
on, the kernel queues their connections as long as any process has the socket open, whatever becomes of the others.
"""

import errno
import socket
import time
from typing import Final

from kv.errors import CannotServe

_BACKLOG: Final = 65535  # clamped to the kernel's somaxconn
_PORT_PATIENCE_SECONDS: Final = 2.0  # the processes of a killed supervisor need a moment to end


def bind(host: str, port: int) -> socket.socket:
    """Reserve the port without listening. Raises CannotServe."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CannotServe(f"--host {host} is not an address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + _PORT_PATIENCE_SECONDS
    while True:
        try:
            listener.bind(address)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                listener.close()
                raise CannotServe(_describe(host, port, error)) from error
            time.sleep(0.05)


def listen(listener: socket.socket) -> str:
    """Let clients connect; the address, as HOST:PORT. Raises CannotServe."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another process had bound the port too, and began to listen first
        raise CannotServe(_describe(host, port, error)) from error
    return f"{host}:{port}"


def _describe(host: str, port: int, error: OSError) -> str:
    reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    return f"port {port} on {host} {reason}"
