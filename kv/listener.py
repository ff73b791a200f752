"""The listening sockets: bound before anything is started, listening from when the data can be served.

Owns how the port is reserved and what is said when it cannot be used. A host name may have several addresses
(localhost has two on most machines); clients try any of them, so there is a socket for each. Until `listen`, clients
are refused; from then on, the kernel queues their connections as long as any process has the sockets open, whatever
becomes of the others.
"""

import errno
import socket
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from kv.errors import CannotServe
from logd.shared.text import printable

BACKLOG: Final = 65535  # clamped to the kernel's somaxconn
_PORT_PATIENCE_SECONDS: Final = 2.0  # the processes of a killed supervisor need a moment to end
_NOT_ON_THIS_MACHINE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""An address of a name may be of a family that is switched off."""

_SocketAddress: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]"


class _Address(NamedTuple):
    family: int
    address: _SocketAddress


def bind(host: str, port: int) -> list[socket.socket]:
    """Reserve the port on every address of the host, without listening. Raises CannotServe."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is no name of a host"
        raise CannotServe(f"--host {printable(host)} is not an address of this machine: {reason}") from error
    addresses = list(dict.fromkeys(_Address(family, address) for family, _, _, _, address in found))
    listeners = []
    unusable = None
    deadline = time.monotonic() + _PORT_PATIENCE_SECONDS
    for each in addresses:
        try:
            listeners.append(_bind(each, deadline, is_alone=len(addresses) == 1))
        except OSError as error:
            if error.errno not in _NOT_ON_THIS_MACHINE:
                raise CannotServe(_describe(host, port, error)) from error
            unusable = error
    if not listeners and unusable:
        raise CannotServe(_describe(host, port, unusable)) from unusable
    return listeners


def _bind(address: _Address, deadline: float, *, is_alone: bool) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == socket.AF_INET6 and not is_alone:  # else it may be the same port as one of IPv4
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    while True:
        try:
            listener.bind(address.address)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                listener.close()
                raise
            time.sleep(0.05)


def listen(listeners: Sequence[socket.socket]) -> list[str]:
    """Let clients connect; the addresses, as HOST:PORT in a URL. Raises CannotServe."""
    for listener in listeners:
        host, port = listener.getsockname()[:2]
        try:
            listener.listen(BACKLOG)
        except OSError as error:  # another process had bound the port too, and began to listen first
            raise CannotServe(_describe(host, port, error)) from error
    return [_in_url(*listener.getsockname()[:2]) for listener in listeners]


def _in_url(host: str, port: int) -> str:
    """An address of IPv6 is in brackets (RFC 3986, 3.2.2), with its zone after %25 (RFC 6874)."""
    return f"[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"


def _describe(host: str, port: int, error: OSError) -> str:
    reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
    return f"port {port} on {printable(host)} {reason}"
