"""The memory that values over 64 KiB, and pages, take of a worker while they are read: which may be requested.

Room is acquired before the request, and released when what was read is no longer needed: by its reader, or by the part
that requested it (kv/log_client/reads.py, pages.py) when the reader is gone. Knows no messages.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from kv.log_client.pending import Pending

_T = TypeVar("_T")
_REQUESTED_BYTES_MAX: Final = 1 << 20
"""Of values that were requested and have not arrived. More would wait in logd, and small answers after them."""


class Held:
    """What takes room while it is read. Whoever gets it has to release it."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Free it, and its room. May be called again."""
        self._release()


class LargeValue(Held):
    """A value that takes room."""

    __slots__ = ("data",)

    def __init__(self, data: bytes, release: Callable[[], None]) -> None:
        super().__init__(release)
        self.data = data

    def release(self) -> None:
        self.data = b""
        super().release()


Found: TypeAlias = bytes | LargeValue | None
"""What a read finds; None when there is no such key."""


class Read(Pending[Found]):
    """A read of one key."""

    __slots__ = ("key", "size")

    key: str
    size: int
    """Of the value, in bytes, once it is known to be large."""


class Budget:
    """Decides which values and pages there is room for.

    Values get it in the order in which they were found to be large. The first page that waits is not in that order: it
    gets room whenever there is enough. So while reads take all that is released, a large page may wait until its
    deadline, and so may a large value while pages do.
    """

    def __init__(self, bytes_max: int, on_room: Callable[[], None]) -> None:
        """`on_room` is called when there may be room for what waits."""
        self.bytes_max = bytes_max
        self.on_room = on_room
        self.held_bytes = 0
        """Of values and pages that were requested, or that readers have."""
        self.requested_bytes = 0
        """Of the values among these, what has not arrived."""
        self.waiting: deque[Read] = deque()

    def acquire_for_page(self, size: int) -> "Room | None":
        """Room for a page; None when there is not enough. It is not counted as requested: one page is, at a time."""
        if not self.has_room(size):
            return None
        room = Room(self)
        room.resize(size)
        return room

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
        return bool(self.waiting) and not self.has_room(self.waiting[0].size)

    def _may_request(self, size: int) -> bool:
        is_first = not self.requested_bytes
        return self.has_room(size) and (is_first or self.requested_bytes + size <= _REQUESTED_BYTES_MAX)

    def has_room(self, size: int) -> bool:
        """True when a value or page of this size fits. One that is alone always does."""
        return not self.held_bytes or self.held_bytes + size <= self.bytes_max


class Room:
    """What one value, or page, takes of a budget."""

    __slots__ = ("_budget", "_held_bytes", "_requested_bytes")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held_bytes = self._requested_bytes = 0

    def resize(self, held_bytes: int, *, requested_bytes: int = 0) -> None:
        """Take as much for the value from now on; `requested_bytes` of it have not arrived."""
        budget = self._budget
        is_less = held_bytes < self._held_bytes or requested_bytes < self._requested_bytes
        budget.held_bytes += held_bytes - self._held_bytes
        budget.requested_bytes += requested_bytes - self._requested_bytes
        self._held_bytes, self._requested_bytes = held_bytes, requested_bytes
        if is_less:
            budget.on_room()

    def release(self) -> None:
        """Take nothing any more. May be called again."""
        self.resize(0)


async def claimed(read: Awaitable[_T]) -> _T:
    """What a read finds, for a reader that may be cancelled in the turn in which that arrives."""
    try:
        return await read
    except BaseException:
        release_unclaimed(read)
        raise
    finally:
        del read  # a failure refers to this frame, and the read to its failure


def release_unclaimed(read: object) -> None:
    """Release what a read found whose reader was cancelled after that had arrived."""
    if not isinstance(read, asyncio.Future) or not read.done() or read.cancelled() or read.exception():
        return
    if isinstance(found := read.result(), Held):
        found.release()
