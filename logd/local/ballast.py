"""Room kept for a start on a full disk.

Recovery writes the last segment anew before it serves it (logd/local/recovery.py), and a checkpoint writes a snapshot
before it can remove anything. On a full disk neither would be possible, and the server could not even be started to
read. So a file of nothing is kept, to be given up at such a moment and made again when there is room.

Knows one file; not what the room is for.
"""

import contextlib
import logging
from typing import Final

from logd.local.disk import Disk

NAME: Final = "RESERVE"
_MARGIN_BYTES: Final = 256 << 10

log = logging.getLogger("logd.local.ballast")


def release(disk: Disk) -> bool:
    """Give the room up. False when there was none."""
    if NAME not in disk.names():
        return False
    disk.remove(NAME)
    disk.sync_directory()
    log.warning("no space left on the device: gave up the reserve")
    return True


def ensure(disk: Disk, size: int) -> None:
    """Keep that much room, or a part of it that is worth keeping, if it is to be had. Never fails."""
    with contextlib.suppress(OSError):
        if NAME in disk.names():
            if disk.size(NAME) == size:
                return
            disk.remove(NAME)
        affordable = min(size, disk.free_bytes() - _MARGIN_BYTES)
        if affordable < size // 2:
            return
        try:
            file = disk.create(NAME)
            try:
                file.allocate(affordable)
            finally:
                file.close()
        except OSError:
            disk.remove(NAME)
