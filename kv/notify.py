"""Tells the service manager (systemd, with Type=notify) how far the server is.

Knows the protocol of sd_notify(3), and not who says what when. Without a service manager it does nothing.
"""

import logging
import os
import socket
from typing import Final

_PATIENCE_SECONDS: Final = 1.0  # a manager that does not read must not stop the supervisor from watching

log = logging.getLogger("kv.notify")


def tell(state: str) -> None:
    """Send assignments such as READY=1, one a line."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # how an abstract socket is written, where a name cannot begin with NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(_PATIENCE_SECONDS)
            manager.sendto(state.encode(), address)
    except OSError as error:
        log.warning("the service manager cannot be told %s: %s", state.partition("\n")[0], error)
