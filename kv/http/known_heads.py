"""What a client's header fields were found to mean, so that the same bytes need not be parsed with every request.

Clients send the same few header blocks thousands of times: all fields of a request, with the empty line after them.
What is kept was found by the parser, so it means the same again. It is kept for one connection alone: no client can
change what the request of another means, nor take the room of another. Knows no parser and no socket.
"""

from typing import Final, Generic, TypeVar

BLOCKS_MAX: Final = 4
"""As of reads, and of writes of a few lengths."""
BYTES_MAX: Final = 1024
"""Of all blocks together: each connection may cost so much memory."""

_Head = TypeVar("_Head")


class KnownHeads(Generic[_Head]):
    """Header blocks, and what was found in each. The oldest makes room for a new one."""

    __slots__ = ("_bytes", "_bytes_max", "_heads")

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = min(bytes_max, BYTES_MAX)
        self._bytes = 0
        self._heads: dict[bytes, _Head] = {}

    def find(self, block: bytes) -> _Head | None:
        """What was found in this block, if it is known."""
        return self._heads.get(block)

    def add(self, block: bytes, head: _Head) -> None:
        """Keep a block that is not known, unless it is too large."""
        if len(block) > self._bytes_max:
            return
        while len(self._heads) == BLOCKS_MAX or self._bytes + len(block) > self._bytes_max:
            oldest = next(iter(self._heads))
            del self._heads[oldest]
            self._bytes -= len(oldest)
        self._heads[block] = head
        self._bytes += len(block)
