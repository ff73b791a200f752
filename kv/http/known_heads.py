"""What a client's header fields were found to mean, so that the same bytes need not be parsed with every request.

Clients send the same few header blocks thousands of times: all fields of a request, with the empty line after them.
What is kept was found by the parser, so it means the same again. It is kept for one connection alone: no client can
change what the request of another means, nor take the room of another. Knows no parser and no socket.
"""

from typing import Any, Final, Generic, TypeVar

BLOCKS_MAX: Final = 4
"""As of reads, and of writes of a few lengths."""
BYTES_MAX: Final = 4096
"""What all blocks together may take of memory, for each connection."""

_Head = TypeVar("_Head")


class Fields(list[tuple[bytes, bytes]]):
    """The fields of a head: names in lower case; values without white space around them."""

    __slots__ = ("meaning",)

    def __init__(self) -> None:
        super().__init__()
        self.meaning: Any = None
        """What the application has found in them, kept for the next request with the same."""


class KnownHeads(Generic[_Head]):
    """Header blocks, and what was found in each. The oldest makes room for a new one."""

    __slots__ = ("_bytes_max", "_heads", "_sizes", "find")

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = min(bytes_max, BYTES_MAX)
        self._heads: dict[bytes, _Head] = {}
        self.find = self._heads.get
        """What was found in a block; None when it is not known. Without a call of Python's, for each request."""
        self._sizes: list[int] = []
        """Of the blocks, oldest first."""

    def add(self, block: bytes, head: _Head, size: int) -> None:
        """Keep a block, unless it is known or too large. `size` is what it and its head take of memory."""
        if block in self._heads or size > self._bytes_max:
            return
        while len(self._heads) == BLOCKS_MAX or sum(self._sizes) + size > self._bytes_max:
            del self._heads[next(iter(self._heads))]
            del self._sizes[0]
        self._heads[block] = head
        self._sizes.append(size)
