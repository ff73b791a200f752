"""Messages to the service manager (systemd, with Type=notify).

Knows the protocol of sd_notify(3), and not which message is sent when. Without a service manager it does nothing.
"""

import logging
import os
import socket
from typing import Final

_TIMEOUT_SECONDS: Final = 1.0  # a manager that does not read must not keep the supervisor from its work

log = logging.getLogger("kv.notify")


def send(state: str) -> None:
    """Send assignments such as READY=1, one per line."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # stands for the NUL byte with which the name of an abstract socket begins
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(_TIMEOUT_SECONDS)
            manager.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot send %s to the service manager: %s", state.partition("\n")[0], error)
