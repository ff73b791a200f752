"""The memory that values over 64 KiB take of a worker while they are read: which may be requested, and which wait.

Room is acquired for a value before it is requested, and released when the value is no longer needed: by its reader,
or by kv/log_client/reads.py when the reader is gone. Knows no messages.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from kv.log_client.pending import Pending

_REQUESTED_BYTES_MAX: Final = 1 << 20
"""Of values that were requested and have not arrived. More would wait in logd, and small answers after them."""


class LargeValue:
    """A value that takes room. Whoever gets one has to release it."""

    __slots__ = ("_release", "data")

    def __init__(self, data: bytes, release: Callable[[], None]) -> None:
        self.data = data
        self._release = release

    def release(self) -> None:
        """Free the value and its room. May be called again."""
        self.data = b""
        self._release()


Found: TypeAlias = bytes | LargeValue | None
"""What a read finds; None when there is no such key."""


class Read(Pending[Found]):
    """A read of one key."""

    __slots__ = ("key", "size")

    key: str
    size: int
    """Of the value, in bytes, once it is known to be large."""


class Budget:
    """Decides which values there is room for, in the order in which they were found to be large."""

    def __init__(self, bytes_max: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when there may be room for a read that waits."""
        self.bytes_max = bytes_max
        self.on_room = on_room
        self.held_bytes = 0
        """Of values that were requested, or that readers have."""
        self.requested_bytes = 0
        """Of these, what has not arrived."""
        self.waiting: deque[Read] = deque()

    def acquire(self) -> "tuple[Read, Room] | None":
        """The next read that may be made, and the room for its value. None when there is none, or no room for it."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        if not self.waiting or not self._may_request(self.waiting[0].size):
            return None
        read = self.waiting.popleft()
        room = Room(self)
        room.resize(read.size, requested_bytes=read.size)
        return read, room

    def is_short(self) -> bool:
        """True when a read waits for room that readers of other values have not released."""
        return bool(self.waiting) and not self._has_room(self.waiting[0].size)

    def _may_request(self, size: int) -> bool:
        is_first = not self.requested_bytes
        return self._has_room(size) and (is_first or self.requested_bytes + size <= _REQUESTED_BYTES_MAX)

    def _has_room(self, size: int) -> bool:
        """True when a value of this size fits. One that is alone always does."""
        return not self.held_bytes or self.held_bytes + size <= self.bytes_max


class Room:
    """What one value takes of a budget."""

    __slots__ = ("_budget", "_held_bytes", "_requested_bytes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held_bytes = self._requested_bytes = 0

    def resize(self, held_bytes: int, *, requested_bytes: int = 0) -> None:
        """Take as much for the value from now on; `requested_bytes` of it have not arrived."""
        budget = self._budget
        budget.held_bytes += held_bytes - self._held_bytes
        budget.requested_bytes += requested_bytes - self._requested_bytes
        self._held_bytes, self._requested_bytes = held_bytes, requested_bytes
        if budget.waiting:
            budget.on_room()

    def release(self) -> None:
        """Take nothing any more. May be called again."""
        self.resize(0)
