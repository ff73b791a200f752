"""The ballast: room that is kept free for a full disk.

Recovery writes the last segment anew before it serves it (logd/local/recovery.py), and a checkpoint writes a snapshot
before it can remove anything. On a full disk neither would be possible, no delete could be written that makes room, and
the server could not even be started to read. So a file without content of interest is kept, to be removed at such a
moment and made again when there is room (the idea, and the word, are CockroachDB's).

Knows one file, and nothing of what the room is used for.
"""

import contextlib
import logging
from typing import Final

from logd.local.disk import Disk

NAME: Final = "BALLAST"
FORMER_NAME: Final = "RESERVE"
"""The name that earlier versions gave to this file."""

MARGIN_BYTES: Final = 256 << 10
_BYTES_MIN: Final = 64 << 10
_LOOK_BYTES: Final = 4096

log = logging.getLogger("logd.local.ballast")


def release(disk: Disk) -> bool:
    """Give the room to others. False when there was none."""
    found = [name for name in (NAME, FORMER_NAME) if name in disk.names() and _is_ours(disk, name)]
    for name in found:
        disk.remove(name)
    if found:
        with contextlib.suppress(OSError):  # if it is there again after a crash, it is removed again
            disk.sync_directory()
        log.warning("no space left on the device: released the ballast")
    return bool(found)


def ensure(disk: Disk, size: int, margin_bytes: int = MARGIN_BYTES) -> None:
    """Keep `size` bytes free, beyond a margin; if there is not that much, at least half of it; else nothing.

    Never fails.
    """
    with contextlib.suppress(OSError):
        if NAME in disk.names() and not _is_ours(disk, NAME):
            log.warning("%s is not a file of this server: it is left alone, and no room is kept for a full disk", NAME)
            return
        if FORMER_NAME in disk.names() and _is_ours(disk, FORMER_NAME):
            disk.rename(FORMER_NAME, NAME)
        if NAME in disk.names():
            if disk.size(NAME) == size:
                return
            disk.remove(NAME)
        affordable = min(size, disk.free_bytes() - margin_bytes)
        if affordable >= size // 2:
            _make(disk, affordable)


def _is_ours(disk: Disk, name: str) -> bool:
    """True for a file of zeros, by its beginning. Somebody may have given the name to a file of his own."""
    with disk.open(name) as file:
        return not file.read(_LOOK_BYTES).strip(b"\0")


def _make(disk: Disk, size: int) -> None:
    """Make the file, or a smaller one, where a quota allows less than there is free."""
    while size >= _BYTES_MIN:
        try:
            file = disk.create(NAME)
            try:
                file.allocate(size)
                return
            finally:
                file.close()
        except OSError:
            disk.remove(NAME)
        size //= 2
