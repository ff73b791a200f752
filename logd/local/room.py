"""Room on the device: how sizes follow from it, and what is done when there is none, before a write is refused.

Owns the policy; the ballast is one file (logd/local/ballast.py), a checkpoint one child (logd/local/checkpointer.py).

The options give sizes that suit a large device. A small one is divided up, so that the log, two snapshots and the
ballast fit. That cannot be exact: how fast the log grows while a checkpoint runs is not known, and others may write to
the device too. So when a write finds no room, the ballast is released for a checkpoint that keeps only what is
needed, the write waits for it, and is refused only when that did not help. The ballast is made again by the checkpoint.
"""

import contextlib
import resource
import time
from typing import Final, NamedTuple

from logd.local import ballast
from logd.local.checkpointer import Checkpointer
from logd.local.disk import Disk
from logd.local.publish import NoSpace
from logd.local.wal import Wal

_SEGMENT_SHARE: Final = 32
_LOG_SHARE: Final = 16
_BALLAST_SHARE: Final = 8
_SEGMENT_BYTES_MIN: Final = 1024

_WAIT_SECONDS: Final = 4.0
"""How long a write waits for a checkpoint: less than clients wait for it, and the supervisor for the end of logd."""
_RETRY_SECONDS: Final = 5.0
"""How long after a checkpoint that made no room the next is tried."""


class Sizes(NamedTuple):
    """The sizes that go with a device, in bytes."""

    segment: int
    checkpoint_log: int
    ballast: int


def sizes(disk: Disk, *, segment_bytes: int, checkpoint_log_bytes: int, message_bytes_max: int) -> Sizes:
    """The sizes that were asked for, or less on a small device.

    The ballast is to be as much as the last segment can have: one that is not quite full, and the largest message.
    """
    capacity = disk.free_bytes() + sum(map(disk.size, disk.names()))
    segment = min(segment_bytes, max(_SEGMENT_BYTES_MIN, min(capacity // _SEGMENT_SHARE, _file_bytes_max() // 2)))
    return Sizes(
        segment,
        min(checkpoint_log_bytes, max(segment, capacity // _LOG_SHARE)),
        min(segment + message_bytes_max, capacity // _BALLAST_SHARE),
    )


def _file_bytes_max() -> int:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


class RoomMaker:
    """Makes room for a write that found none. Used by the thread that writes the log, which has to wait for it."""

    def __init__(self, disk: Disk, log: Wal, checkpointer: Checkpointer) -> None:
        self._disk = disk
        self._log = log
        self._checkpointer = checkpointer
        self._last_tried: tuple[int, float] = (-1, 0.0)  # how far the log was, and when

    def checkpoint(self) -> bool:
        """Release the ballast for a checkpoint of all that is in the log, and wait for that. False: not tried again.

        Also a checkpoint that failed may have left more room than there was: the sealed segment has no zeros ahead.
        """
        sequence, at = self._last_tried
        if self._log.last_sequence == sequence and time.monotonic() - at < _RETRY_SECONDS:
            return False
        self.release_ballast()
        with contextlib.suppress(NoSpace):
            self._log.seal()
        self._checkpointer.make_room(self._log.sealed, _WAIT_SECONDS)
        self._last_tried = (self._log.last_sequence, time.monotonic())
        return True

    def release_ballast(self) -> bool:
        """Give up the ballast: for writes that make the data smaller. False when there is none."""
        return ballast.release(self._disk)
