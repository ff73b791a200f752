"""The bytes that a worker holds for all of its clients together, and which client is refused when they are too many.

Counts what has been received and not been answered: unparsed bytes, unfinished heads, bodies, pipelined requests. A
request that arrives whole and alone is not counted: it is answered before anything else is read from its client.
Knows no HTTP; how a holder releases its bytes is decided by the holder.
"""

from typing import Protocol


class Holder(Protocol):
    """A client that holds bytes."""

    def evictable_bytes(self) -> int:
        """What `evict` would free."""

    def evict(self) -> None:
        """Refuse what has not been served yet, and release its bytes."""


class BufferBudget:
    """At most `bytes_max`, unless one holder alone needs more: that is bounded by the limits on one request."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._held: dict[Holder, int] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """Count `size` bytes for a holder from now on, in place of what was counted; 0 removes it.

        Beyond the limit the holder that has the most to evict is evicted; small requests are never evicted before it.
        """
        self.held_bytes += size - self._held.pop(holder, 0)
        if size:
            self._held[holder] = size
            if self.held_bytes > max(self.bytes_max, size):
                largest = max(self._held, key=lambda each: each.evictable_bytes())
                if largest.evictable_bytes():
                    largest.evict()
